//! The hand-over of a CoMutex and of a CoQueue, checked on every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_co_mutex`
//!
//! `co_mutex.rs`, `co_queue.rs` and `wait_queue.rs` are the very files that the library is built of. Each coroutine is a
//! thread of its own here: to suspend is to park, to wake is to unpark. The value lies in loom's cell, which finds two
//! holders at once, and a holder that does not see what the last one wrote; a waiter that is forgotten is a deadlock.
#![cfg(loom)]
#![allow(unreachable_pub, dead_code, unsafe_code)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

#[path = "loom_common/atomic.rs"]
mod atomic;
#[path = "loom_common/coroutine.rs"]
mod coroutine;

#[path = "../src/sync"]
mod sync {
    pub(crate) mod co_mutex;
    pub(crate) mod co_queue;
    mod wait_queue;
}

use sync::co_mutex::CoMutex;
use sync::co_queue::CoQueue;

/// A counter that two threads may not touch at once.
type Counter = CoMutex<UnsafeCell<usize>>;

/// A lock whose atomics have all been used by this thread.
fn counter() -> Arc<Counter> {
    let mutex = Arc::new(CoMutex::new(UnsafeCell::new(0)));
    let guard = Box::leak(Box::new(Arc::clone(&mutex))).lock();
    coroutine::instead_of_suspending(move || drop(guard));
    drop(mutex.lock());
    mutex
}

fn increment(mutex: &Counter) {
    let guard = mutex.lock();
    // SAFETY: the lock is held, which loom checks.
    guard.with_mut(|count| unsafe { *count += 1 });
}

fn read(held: &UnsafeCell<usize>) -> usize {
    // SAFETY: as above.
    held.with(|count| unsafe { *count })
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

#[test]
fn two_take_it_in_turn() {
    // S1: two coroutines on two threads: never both at once, nobody forgotten, what one wrote the other sees
    model(|| {
        let mutex = counter();
        let other = {
            let mutex = Arc::clone(&mutex);
            thread::spawn(move || increment(&mutex))
        };
        increment(&mutex);
        increment(&mutex);
        other.join().unwrap();
        assert_eq!(read(&mutex.lock()), 3);
    });
}

#[test]
fn one_that_gives_up_passes_on_what_it_was_granted() {
    // S1, S4: a wait is cancelled while the lock is being handed over: it has it then, or the next one gets it
    model(|| {
        let mutex = counter();
        let other = {
            let mutex = Arc::clone(&mutex);
            thread::spawn(move || {
                coroutine::cancel_this_thread();
                let guard = mutex.lock_cancellable();
                usize::from(guard.is_ok_and(|guard| guard.with_mut(|count| unsafe { *count += 1 }) == ()))
            })
        };
        increment(&mutex);
        let theirs = other.join().unwrap();
        assert_eq!(read(&mutex.lock()), 1 + theirs);
    });
}

#[test]
fn timeout_during_grant_reports_what_happened() {
    // S1, S2, S4: a timeout ends while the lock is handed over, or while a CoQueue wakes: success is reported exactly if the
    // lock was granted, or the wake was used up
    model(|| {
        let mutex = counter();
        let guard = mutex.try_lock().unwrap();
        let other = {
            let mutex = Arc::clone(&mutex);
            thread::spawn(move || coroutine::timeout(|| mutex.lock_cancellable().map(std::mem::forget).is_ok()))
        };
        drop(guard);
        let granted = other.join().unwrap() == Some(true);
        assert_eq!(mutex.try_lock().is_none(), granted);
    });
    model(|| {
        let shared = Arc::new((counter(), CoQueue::new()));
        assert!(!shared.1.wake_one());
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.1.wake_one())
        };
        let guard = shared.0.lock();
        let woken = coroutine::timeout(|| shared.1.wait_cancellable(guard).is_ok()).unwrap_or(false);
        assert_eq!(other.join().unwrap(), woken);
    });
}

#[test]
fn three_stand_in_line() {
    // S1: nor is one forgotten that comes while the lock is being handed to another
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let mutex = counter();
        let others = [(); 2].map(|()| {
            let mutex = Arc::clone(&mutex);
            thread::spawn(move || increment(&mutex))
        });
        increment(&mutex);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(read(&mutex.lock()), 3);
    });
}

#[test]
fn a_wake_after_the_mutex_was_given_up_is_not_missed() {
    // S2: whoever changes what is waited for under the mutex, and then wakes, wakes the one that gave it up
    model(|| {
        let shared = Arc::new((counter(), CoQueue::new()));
        assert!(!shared.1.wake_one());
        let other = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                increment(&shared.0);
                shared.1.wake_one();
            })
        };
        let mut guard = shared.0.lock();
        while read(&guard) == 0 {
            guard = shared.1.wait(guard);
        }
        drop(guard);
        other.join().unwrap();
    });
}
