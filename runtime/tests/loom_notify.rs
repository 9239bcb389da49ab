//! Notifying a loop that may be about to sleep, checked on every interleaving that the memory model
//! allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_notify`
//!
//! `notify.rs` and `remote_queue.rs` are the library's own source files. The eventfd is modelled by
//! a flag that stays set until the sleeper takes it. If a kick were lost, the loop would sleep with
//! work queued, or with its condition true, and no thread left to run: loom reports that as a
//! deadlock. It does so if either fence of `notify.rs` is removed, or the check after announcing
//! the sleep, or if `notify` stores its flag instead of swapping it.
#![cfg(loom)]
#![allow(unreachable_pub, dead_code)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

    /// Like parking_lot's: there are no panics here.
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
    pub(crate) type CoroutineId = usize;
}

#[path = "../src/scheduler/notify.rs"]
mod notify;
#[path = "../src/scheduler/remote_queue.rs"]
mod remote_queue;

use remote_queue::{RemoteEvent, RemoteQueue};

struct Loop {
    sleep: notify::NotifyState,
    arrivals: RemoteQueue,
    /// The conditions that the loop polls for, beside its queue.
    came_true: [AtomicBool; 2],
    /// The eventfd.
    kicked: Mutex<bool>,
    changed: Condvar,
}

impl Loop {
    fn new() -> Arc<Loop> {
        Arc::new(Loop {
            sleep: notify::NotifyState::new(),
            arrivals: RemoteQueue::new(),
            came_true: [AtomicBool::new(false), AtomicBool::new(false)],
            kicked: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    fn kick(&self) {
        *self.kicked.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn produce(&self, work: usize) {
        assert!(self.arrivals.push(RemoteEvent::Wake(work)).is_ok());
        if self.sleep.needs_kick() {
            self.kick();
        }
    }

    fn come_true(&self, condition: usize) {
        // Relaxed: the notification must publish it.
        self.came_true[condition].store(true, Ordering::Relaxed);
        if self.sleep.notify() {
            self.kick();
        }
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
        if !self.arrivals.is_pending() && !self.sleep.is_notified() {
            let mut kicked = self.kicked.lock().unwrap();
            while !*kicked {
                kicked = self.changed.wait(kicked).unwrap();
            }
            *kicked = false;
        }
        self.sleep.awake();
    }

    /// A blocking poll.
    fn poll(&self) -> usize {
        let mut done = self.round();
        if done == 0 {
            self.sleep();
            done = self.round();
            self.sleep.take_notified();
        }
        done
    }

    fn run(&self, mut expected: usize) {
        while expected > 0 {
            expected -= self.poll();
        }
    }

    fn poll_until_true(&self, conditions: usize) {
        while !self.came_true[..conditions].iter().all(|condition| condition.load(Ordering::Relaxed)) {
            self.poll();
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
fn one_producer_wakes_the_loop() {
    // X6: no kick is lost, whatever the interleaving: one producer, several pieces of work
    check(1, 3);
}

#[test]
fn two_producers_wake_the_loop() {
    // X6: nor with two producers, one of which may have taken on the kick that the other relies on
    check(2, 1);
}

fn check_conditions(conditions: usize, each: impl Fn(&Loop, usize) + Send + Sync + Copy + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let looping = Loop::new();
        let others: Vec<_> = (0..conditions)
            .map(|n| {
                let looping = Arc::clone(&looping);
                thread::spawn(move || each(&looping, n))
            })
            .collect();
        looping.poll_until_true(conditions);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn notification_between_check_and_sleep_is_not_lost() {
    // X6: a condition that is not in a queue becomes true at any moment between the check and the
    // sleep: the poll returns, and the next check sees the condition
    check_conditions(1, Loop::come_true);
}

#[test]
fn both_of_two_notifications_are_seen() {
    // X6: two threads change a condition each, and one may find the other's notification already
    // set: the loop sees both conditions
    check_conditions(2, Loop::come_true);
}

#[test]
fn polled_condition_is_seen() {
    // X9: a loop that polls for a condition that is not in a queue sees it after a notification,
    // even if it had other work
    check_conditions(1, |looping, condition| {
        looping.produce(1);
        looping.come_true(condition);
    });
}
