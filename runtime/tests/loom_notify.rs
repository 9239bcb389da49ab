//! Notifying a loop that may be about to sleep, checked on every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_notify`
//!
//! `notify.rs` is the very file that the library is built of. Around it stand a queue as in `wake.rs` (a lock, and a flag
//! that is read without it) and an eventfd: a flag that stays up until the sleeper takes it. If a kick were lost, the loop
//! would sleep with work queued, and nobody left to run: loom calls that a deadlock. It finds one if either fence of
//! `notify.rs` is taken out.
#![cfg(loom)]
#![allow(unreachable_pub, dead_code)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering, fence};
}
#[path = "../src/context/notify.rs"]
mod notify;

struct Loop {
    sleep: notify::SleepState,
    queue: Mutex<Vec<usize>>,
    pending: AtomicBool,
    /// The eventfd.
    kicked: Mutex<bool>,
    changed: Condvar,
}

impl Loop {
    fn new() -> Arc<Loop> {
        Arc::new(Loop {
            sleep: notify::SleepState::new(),
            queue: Mutex::new(Vec::new()),
            pending: AtomicBool::new(false),
            kicked: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    fn produce(&self, work: usize) {
        {
            let mut queue = self.queue.lock().unwrap();
            queue.push(work);
            self.pending.store(true, Ordering::Relaxed);
        }
        if self.sleep.needs_kick() {
            *self.kicked.lock().unwrap() = true;
            self.changed.notify_one();
        }
    }

    fn round(&self) -> usize {
        if !self.pending.load(Ordering::Relaxed) {
            return 0;
        }
        let mut queue = self.queue.lock().unwrap();
        self.pending.store(false, Ordering::Relaxed);
        queue.drain(..).count()
    }

    fn run(&self, mut expected: usize) {
        loop {
            expected -= self.round();
            if expected == 0 {
                return;
            }
            self.sleep.going_to_sleep();
            if !self.pending.load(Ordering::Relaxed) {
                let mut kicked = self.kicked.lock().unwrap();
                while !*kicked {
                    kicked = self.changed.wait(kicked).unwrap();
                }
                *kicked = false;
            }
            self.sleep.awake();
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
