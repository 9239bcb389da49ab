//! Exercise 4: a value that is computed once, behind a read-write lock.

use std::cell::Cell;
use std::rc::Rc;

use coralio::simulate::Sim;
use coralio::sync::{CoRwLock, Notify};

use super::{Judged, join, judge, pause, say, spawn};

/// Returns the value in the lock. The first call computes it.
pub type GetOrCompute = fn(&CoRwLock<Option<u32>>, &dyn Fn() -> u32) -> u32;

/// A, B and C ask at the same time, perhaps while another coroutine writes something else. Then D
/// asks, while another coroutine reads.
pub fn is_correct(get_or_compute: GetOrCompute) -> Judged {
    judge(|sim: &Sim| {
        let (lock, computed) = (Rc::new(CoRwLock::new(None)), Rc::new(Cell::new(0)));
        let ask = |name| {
            let (lock, computed, sim) = (Rc::clone(&lock), Rc::clone(&computed), sim.clone());
            spawn(name, move || {
                let compute = || {
                    say("computes");
                    computed.set(computed.get() + 1);
                    assert!(computed.get() == 1, "the value is computed a second time, by {name}.");
                    pause(&sim, 2);
                    42
                };
                pause(&sim, 1);
                let value = get_or_compute(&lock, &compute);
                assert!(value == 42, "{name} was given {value}, and the value is 42.");
            })
        };
        let writer = {
            let (lock, sim) = (Rc::clone(&lock), sim.clone());
            spawn("writer", move || {
                let _exclusive = lock.write();
                pause(&sim, 3);
            })
        };
        join(["A", "B", "C"].map(ask));
        join([writer]);
        let done = Rc::new(Notify::new());
        let reader = {
            let (lock, done) = (Rc::clone(&lock), Rc::clone(&done));
            spawn("reader", move || {
                let _shared = lock.read();
                say("reads, until D has its value");
                done.notified().expect("it is not cancelled");
            })
        };
        pause(sim, 1);
        join([ask("D")]);
        done.notify_one();
        join([reader]);
    })
}
