//! The hand-over of a CoMutex and of a CoQueue, checked on every interleaving that the memory model
//! allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_co_mutex`
//!
//! `co_mutex.rs`, `co_queue.rs` and `wait_queue.rs` are the library's own source files. Each
//! coroutine is a thread here: suspending parks it, waking unparks it. The value is in loom's cell,
//! which detects two simultaneous owners, and an owner that does not see the previous owner's
//! writes; a forgotten waiter is a deadlock.
#![cfg(loom)]
#![allow(unreachable_pub, dead_code, unsafe_code)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;

#[path = "loom_common/atomic.rs"]
mod atomic;
#[path = "loom_common/coroutine.rs"]
mod coroutine;

use coroutine as scheduler;
use coroutine as task;

#[path = "../src/sync"]
mod sync {
    pub(crate) mod co_mutex;
    pub(crate) mod co_queue;
    mod wait_queue;
}

use sync::co_mutex::CoMutex;
use sync::co_queue::CoQueue;

/// A counter that two threads must not access at the same time.
type Counter = CoMutex<UnsafeCell<usize>>;

/// Returns a lock whose atomics have all been used by this thread.
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
fn two_coroutines_take_the_lock_in_turn() {
    // S1: two coroutines on two threads: they never hold the lock at the same time, neither is
    // forgotten, and each sees the other's writes
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
fn abandoned_wait_passes_its_grant_on() {
    // S1, S4: a wait is cancelled while the lock is handed over: it either has the lock, or the
    // next waiter gets it
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
    // S1, S2, S4: a timeout expires while the lock is handed over, or while a CoQueue wakes:
    // success is reported exactly if the lock was granted, or the wake was consumed
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
fn three_waiters_are_queued_in_order() {
    // S1: a waiter that arrives while the lock is handed to another is not forgotten either
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
fn wake_after_the_mutex_release_is_not_missed() {
    // S2: changing the condition under the mutex, and then waking, wakes a waiter that has released
    // the mutex
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
