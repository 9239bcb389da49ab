//! Exercise 7: a plug.

use std::cell::RefCell;

use coralio::simulate::Sim;

use super::{Judged, judge, say};

/// The number of pending requests that is a full batch.
pub const FULL: usize = 3;

/// A queue of requests, which gather while the queue is plugged.
pub trait Queue {
    /// A plug: exists from `plug` until it is dropped.
    type Plug<'a>
    where
        Self: 'a;

    /// Creates a queue that gives its requests to `kernel`.
    fn new(kernel: Kernel) -> Self;

    /// Delays requests while the returned plug exists. Plugs nest: when the last one has been
    /// dropped, the loop's next iteration submits the requests that have gathered.
    fn plug(&self) -> Self::Plug<'_>;

    /// Queues a request. Submits all pending requests if there is no plug, or if their number has
    /// reached [`FULL`].
    fn push(&self, request: u32);

    /// Submits all pending requests unless there is a plug. The loop calls it in each iteration.
    fn iteration(&self);
}

/// The kernel: remembers what was submitted.
#[derive(Clone, Default)]
pub struct Kernel(std::rc::Rc<RefCell<Vec<u32>>>);

impl Kernel {
    /// Submits requests by one system call.
    pub fn submit(&self, requests: &[u32]) {
        assert!(!requests.is_empty(), "a system call submits nothing.");
        say(format!("submits {requests:?}"));
        self.0.borrow_mut().extend(requests);
    }
}

/// Pushes requests, with up to two plugs at a time, and compares what was submitted with a model.
pub fn is_correct<Q: Queue>() -> Judged {
    judge(|sim: &Sim| {
        let kernel = Kernel::default();
        let queue = Q::new(kernel.clone());
        let (mut plugs, mut pushed, mut expected) = (Vec::new(), 0, 0);
        for _ in 0..10 {
            match sim.choose(5) {
                1 if plugs.len() < 2 => {
                    say("plugs");
                    plugs.push(queue.plug());
                }
                2 if !plugs.is_empty() => {
                    say("drops a plug");
                    plugs.pop();
                }
                3 => {
                    pushed += 1;
                    say(format!("pushes {pushed}"));
                    queue.push(pushed);
                    if plugs.is_empty() || pushed - expected == FULL as u32 {
                        expected = pushed;
                    }
                }
                4 => {
                    say("an iteration of the loop");
                    queue.iteration();
                    if plugs.is_empty() {
                        expected = pushed;
                    }
                }
                _ => continue,
            }
            let submitted = kernel.0.borrow();
            assert!(submitted.is_sorted(), "the requests were submitted in another order: {submitted:?}.");
            let (now, plugs) = (submitted.len() as u32, plugs.len());
            assert!(
                now == expected,
                "{now} of {pushed} requests were submitted, and {expected} should have been: the number of plugs is \
                 {plugs}, and a full batch is {FULL}."
            );
        }
    })
}
