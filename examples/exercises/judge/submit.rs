//! Exercise 6: a submit.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;

use coralio::simulate::Sim;

use super::{Judged, judge, say};

/// Gives the pending requests to the kernel. The loop calls it in each iteration.
pub type Submit = fn(&Kernel, &mut VecDeque<u32>);

/// A kernel with three reactions to a submit.
pub struct Kernel {
    sim: Sim,
    accepted: RefCell<Vec<u32>>,
    failed: RefCell<Vec<u32>>,
    /// The request that the kernel refuses, if any.
    bad: Option<u32>,
    /// The number of further submits that the kernel answers with "try again".
    busy: Cell<u32>,
    calls: Cell<u32>,
}

impl Kernel {
    /// Offers requests to the kernel, at least one.
    ///
    /// # Errors
    ///
    /// `WouldBlock`: the kernel has accepted none; offer them again in the next iteration. Any other
    /// error concerns the first request only; the kernel has not looked at the others.
    pub fn submit(&self, requests: &[u32]) -> io::Result<usize> {
        self.calls.set(self.calls.get() + 1);
        assert!(self.calls.get() <= 10, "`submit` calls the kernel again and again, and the loop cannot continue.");
        let &first = requests.first().expect("`submit` offers an empty list of requests.");
        if self.busy.get() > 0 && self.sim.choose(2) == 1 {
            self.busy.set(self.busy.get() - 1);
            say(format!("offers {requests:?}; the kernel: try again"));
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if Some(first) == self.bad {
            say(format!("offers {requests:?}; the kernel: {first} is invalid"));
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let good = requests.iter().take_while(|request| Some(**request) != self.bad).count();
        let accepted = good - self.sim.choose(good as u32) as usize;
        self.accepted.borrow_mut().extend(&requests[..accepted]);
        say(format!("offers {requests:?}; the kernel accepts {accepted}"));
        Ok(accepted)
    }

    /// Reports to the coroutine that made `request` that it has failed.
    pub fn fail(&self, request: u32) {
        say(format!("fails {request}"));
        assert!(Some(request) == self.bad, "request {request} was failed, and nothing is wrong with it.");
        self.failed.borrow_mut().push(request);
    }
}

/// Submits three requests, one of which may be invalid.
pub fn is_correct(submit: Submit) -> Judged {
    judge(|sim: &Sim| {
        let kernel = Kernel {
            sim: sim.clone(),
            accepted: RefCell::default(),
            failed: RefCell::default(),
            bad: Some(sim.choose(4)).filter(|bad| *bad > 0),
            busy: Cell::new(2),
            calls: Cell::new(0),
        };
        let mut pending = VecDeque::from([1, 2, 3]);
        for iteration in 1..=10 {
            say(format!("iteration {iteration}: pending {pending:?}"));
            kernel.calls.set(0);
            submit(&kernel, &mut pending);
        }
        let (accepted, failed) = (kernel.accepted.borrow(), kernel.failed.borrow());
        for request in 1..=3 {
            let times = accepted.iter().chain(&*failed).filter(|&&seen| seen == request).count();
            assert!(times > 0, "request {request} is lost: neither accepted nor failed. Its coroutine waits forever.");
            assert!(times == 1, "request {request} was accepted or failed {times} times.");
        }
        assert!(pending.is_empty(), "every request was accepted or failed, and {pending:?} are still pending.");
        assert!(accepted.is_sorted(), "the requests 1, 2, 3 were submitted in another order: {accepted:?}.");
    })
}
