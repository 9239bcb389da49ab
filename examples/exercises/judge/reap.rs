//! Exercise 5: a reap.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use coralio::coroutine::{Coroutine, suspend};
use coralio::simulate::Sim;

use super::{Judged, judge, say};

/// Processes all completions on the ring, with the methods of [`Disk`].
pub type Reap = fn(&Disk);

/// An engine with one coroutine for each request. All requests are in flight at first, and the
/// queue depth is their number.
pub struct Disk {
    ring: RefCell<VecDeque<usize>>,
    in_flight: Cell<usize>,
    depth: usize,
    waiters: RefCell<Vec<Coroutine>>,
    is_done: RefCell<Vec<bool>>,
    reap: Reap,
}

impl Disk {
    /// Returns the request whose completion is the first on the ring, and leaves it there.
    pub fn peek(&self) -> Option<usize> {
        self.ring.borrow().front().copied()
    }

    /// Advances the ring's cursor: the first completion is then no longer on the ring.
    pub fn advance(&self) {
        let request = self.ring.borrow_mut().pop_front().expect("`advance` was called, and the ring is empty.");
        say(format!("takes request {request} off the ring"));
    }

    /// Decrements the number of requests in flight.
    pub fn count_down(&self) {
        let left = self.in_flight.get().checked_sub(1).expect("more requests are counted down than were in flight.");
        self.in_flight.set(left);
        say(format!("in flight: {left}"));
    }

    /// Completes a request, and enters the coroutine that waits for it. That coroutine may submit,
    /// and may poll the loop, which reaps.
    pub fn complete(&self, request: usize) {
        say(format!("completes request {request}"));
        let was_done = std::mem::replace(&mut self.is_done.borrow_mut()[request], true);
        assert!(!was_done, "request {request} was completed twice.");
        let waiter = self.waiters.borrow()[request];
        waiter.enter_unless_entered();
    }

    fn submit(&self) {
        assert!(
            self.in_flight.get() < self.depth,
            "the queue looks full: a coroutine is entered for its completion, which still counts as in flight."
        );
        say("submits another request");
    }

    fn wait(&self, request: usize) {
        while !self.is_done.borrow()[request] {
            suspend();
        }
    }
}

/// A, B and C wait for their requests. Each submits when it continues; the first one may then poll
/// until the other two are done.
pub fn is_correct(reap: Reap) -> Judged {
    judge(|sim: &Sim| {
        let disk = Rc::new(Disk {
            ring: RefCell::default(),
            in_flight: Cell::new(3),
            depth: 3,
            waiters: RefCell::default(),
            is_done: RefCell::new(vec![false; 3]),
            reap,
        });
        let polls = Rc::new(Cell::new(sim.choose(2) == 1));
        for (request, name) in ["A", "B", "C"].into_iter().enumerate() {
            let (disk, polls) = (Rc::clone(&disk), Rc::clone(&polls));
            let waiter = {
                let disk = Rc::clone(&disk);
                let body = move || {
                    disk.wait(request);
                    disk.submit();
                    if polls.replace(false) {
                        poll_until_done(&disk);
                    }
                };
                Coroutine::builder().name(name).create(body).expect("memory for a stack")
            };
            waiter.enter();
            disk.waiters.borrow_mut().push(waiter);
        }
        let mut order = VecDeque::from([0, 1, 2]);
        (0..sim.choose(3)).for_each(|_| order.rotate_left(1));
        say(format!("on the ring: {order:?}"));
        disk.ring.replace(order);
        reap(&disk);
        assert!(disk.peek().is_none(), "`reap` has returned, and a completion is still on the ring.");
        assert!(disk.in_flight.get() == 0, "all requests are done, and {} count as in flight.", disk.in_flight.get());
        let waiters = disk.waiters.borrow();
        assert!(waiters.iter().all(|waiter| waiter.has_ended()), "a coroutine was not entered for its completion.");
    })
}

fn poll_until_done(disk: &Disk) {
    for _ in 0..3 {
        if disk.is_done.borrow().iter().all(|is_done| *is_done) {
            return;
        }
        say("not all are done: polls");
        (disk.reap)(disk);
    }
    let is_done = disk.is_done.borrow();
    assert!(
        is_done.iter().all(|is_done| *is_done),
        "a coroutine polls until all requests are done, and the nested reap does not find their completions."
    );
}
