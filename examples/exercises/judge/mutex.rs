//! Exercise 2: a mutex.

use std::cell::Cell;
use std::rc::Rc;

use coralio::simulate::Sim;

use super::{Judged, join, judge, pause, say, spawn};

/// A lock between the coroutines of a thread.
pub trait Mutex: Default + 'static {
    /// Waits until no coroutine holds the lock, and takes it.
    fn lock(&self);

    /// Gives the lock back. Called only by the coroutine that holds it.
    fn unlock(&self);
}

/// A, B and C each take the lock twice, and pause with and without it; main may wake all of them,
/// for another reason.
pub fn is_correct<M: Mutex>() -> Judged {
    judge(|sim: &Sim| {
        let (mutex, holder) = (Rc::new(M::default()), Rc::new(Cell::new(None)));
        let all = ["A", "B", "C"].map(|name| {
            let (mutex, holder, sim) = (Rc::clone(&mutex), Rc::clone(&holder), sim.clone());
            spawn(name, move || {
                for _ in 0..2 {
                    mutex.lock();
                    say("has the lock");
                    if let Some(other) = holder.replace(Some(name)) {
                        panic!("{name} has got the lock while {other} holds it.");
                    }
                    pause(&sim, 2);
                    holder.set(None);
                    say("gives the lock back");
                    mutex.unlock();
                    pause(&sim, 1);
                }
            })
        });
        pause(sim, 3);
        if sim.choose(2) == 1 {
            say("wakes all, for another reason");
            all.iter().for_each(|one| one.coroutine().wake());
        }
        join(all);
    })
}
