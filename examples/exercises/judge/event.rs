//! Exercise 1: an event.

use std::cell::Cell;
use std::rc::Rc;

use coralio::simulate::Sim;

use super::{Judged, join, judge, pause, say, spawn};

/// An event, which is set once.
pub trait Event: Default + 'static {
    /// Waits until the event has been set. Returns immediately if it was set before.
    fn wait(&self);

    /// Sets the event. All coroutines that wait for it continue.
    fn set(&self);
}

/// A and B wait; main sets the event. Before that, main may wake both of them for another reason.
pub fn is_correct<E: Event>() -> Judged {
    judge(|sim: &Sim| {
        let (event, is_set) = (Rc::new(E::default()), Rc::new(Cell::new(false)));
        let waiters = ["A", "B"].map(|name| {
            let (event, is_set, sim) = (Rc::clone(&event), Rc::clone(&is_set), sim.clone());
            spawn(name, move || {
                pause(&sim, 3);
                say("waits for the event");
                event.wait();
                assert!(is_set.get(), "`wait` has returned to {name} before the event was set.");
            })
        });
        pause(sim, 3);
        if sim.choose(2) == 1 {
            say("wakes both, for another reason");
            waiters.iter().for_each(|waiter| waiter.coroutine().wake());
            pause(sim, 3);
        }
        say("sets the event");
        is_set.set(true);
        event.set();
        join(waiters);
    })
}
