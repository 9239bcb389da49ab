//! Notifying a loop that may be about to sleep, checked on every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_notify`
//!
//! `notify.rs` and `wake.rs` are the very files that the library is built of. Around them stands an eventfd: a flag that
//! stays up until the sleeper takes it. If a kick were lost, the loop would sleep with work queued, and nobody left to run:
//! loom calls that a deadlock. It finds one if either fence of `notify.rs` is taken out, or the look after the sleep was
//! announced.
#![cfg(loom)]
#![allow(unreachable_pub, dead_code)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

    /// As parking_lot's: nobody panics here.
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Mutex<T> {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

/// A coroutine is a number.
mod coroutine {
    pub(crate) mod control {
        pub(crate) type CoroutineId = usize;
    }
}

#[path = "../src/context/notify.rs"]
mod notify;
#[path = "../src/context/wake.rs"]
mod wake;

use wake::{Arrival, Arrivals};

struct Loop {
    sleep: notify::SleepState,
    arrivals: Arrivals,
    /// What the loop polls for, beside its queue.
    came_true: AtomicBool,
    /// The eventfd.
    kicked: Mutex<bool>,
    changed: Condvar,
}

impl Loop {
    fn new() -> Arc<Loop> {
        Arc::new(Loop {
            sleep: notify::SleepState::new(),
            arrivals: Arrivals::new(),
            came_true: AtomicBool::new(false),
            kicked: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    fn notify(&self) {
        if self.sleep.needs_kick() {
            *self.kicked.lock().unwrap() = true;
            self.changed.notify_one();
        }
    }

    fn produce(&self, work: usize) {
        assert!(self.arrivals.push(Arrival::Wake(work)).is_ok());
        self.notify();
    }

    fn come_true(&self) {
        // Relaxed: the kick must carry it over.
        self.came_true.store(true, Ordering::Relaxed);
        self.sleep.look_again();
        self.notify();
    }

    fn round(&self) -> usize {
        if !self.arrivals.is_pending() {
            return 0;
        }
        let mut arrived = Vec::new();
        self.arrivals.take_all(&mut arrived);
        arrived.len()
    }

    fn sleep(&self) {
        self.sleep.going_to_sleep();
        if !self.arrivals.is_pending() && !self.sleep.has_to_look_again() {
            let mut kicked = self.kicked.lock().unwrap();
            while !*kicked {
                kicked = self.changed.wait(kicked).unwrap();
            }
            *kicked = false;
        }
        self.sleep.awake();
        self.sleep.take_look_again();
    }

    fn run(&self, mut expected: usize) {
        loop {
            expected -= self.round();
            if expected == 0 {
                return;
            }
            self.sleep();
        }
    }
}

fn check(producers: usize, each: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let looping = Loop::new();
        let producers: Vec<_> = (0..producers)
            .map(|n| {
                let looping = Arc::clone(&looping);
                thread::spawn(move || (0..each).for_each(|m| looping.produce(n * each + m)))
            })
            .collect();
        looping.run(producers.len() * each);
        producers.into_iter().for_each(|producer| producer.join().unwrap());
    });
}

#[test]
fn one_producer() {
    // X6: no kick is lost, whatever the interleaving: one producer, several pieces of work
    check(1, 3);
}

#[test]
fn two_producers() {
    // X6: nor with two producers, one of which may have undertaken the kick that the other relies on
    check(2, 1);
}

#[test]
fn what_is_polled_for_is_seen() {
    // X9: whoever polls for something that is on no queue sees it when it was kicked, though the loop had other work
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let looping = Loop::new();
        let other = {
            let looping = Arc::clone(&looping);
            thread::spawn(move || {
                looping.produce(1);
                looping.come_true();
            })
        };
        while !looping.came_true.load(Ordering::Relaxed) {
            if looping.round() == 0 {
                looping.sleep();
            }
        }
        other.join().unwrap();
    });
}
