//! A CoRwLock's readers, writers and upgraders, checked on every interleaving that the memory model
//! allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_rwlock`
//!
//! `co_rwlock.rs` and `wait_queue.rs` are the library's own source files. Each coroutine is a
//! thread here. The value is in loom's cell, which detects a writer that is not alone, and a reader
//! that does not see earlier writes; a forgotten waiter is a deadlock.
#![cfg(loom)]
#![allow(unreachable_pub, dead_code, unsafe_code)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread::{self, JoinHandle};

#[path = "loom_common/atomic.rs"]
mod atomic;
#[path = "loom_common/coroutine.rs"]
mod coroutine;

use coroutine as scheduler;
use coroutine as task;

#[path = "../src/sync"]
mod sync {
    pub(crate) mod co_rwlock;
    mod wait_queue;
}

use sync::co_rwlock::CoRwLock;

/// A counter for many readers or one writer.
struct Counter(UnsafeCell<usize>);

// SAFETY: loom checks each access.
unsafe impl Sync for Counter {}

impl Counter {
    fn add(&self) {
        // SAFETY: as above.
        self.0.with_mut(|count| unsafe { *count += 1 });
    }

    fn get(&self) -> usize {
        // SAFETY: as above.
        self.0.with(|count| unsafe { *count })
    }
}

type Lock = Arc<CoRwLock<Counter>>;

/// Returns a lock whose atomics have all been used by this thread.
fn counter() -> Lock {
    let lock = Arc::new(CoRwLock::new(Counter(UnsafeCell::new(0))));
    let guard = Box::leak(Box::new(Arc::clone(&lock))).read();
    coroutine::instead_of_suspending(move || drop(guard));
    drop(lock.write());
    lock
}

fn on_a_thread<T: 'static>(lock: &Lock, f: impl FnOnce(&CoRwLock<Counter>) -> T + 'static) -> JoinHandle<T> {
    let lock = Arc::clone(lock);
    thread::spawn(move || f(&lock))
}

fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(f);
}

#[test]
fn writer_excludes_all_others() {
    // S3: a writer and a reader: they never hold the lock at the same time, neither is forgotten,
    // and each sees the other's writes
    model(3, || {
        let lock = counter();
        let other = on_a_thread(&lock, |lock| {
            lock.write().add();
            lock.read().get()
        });
        let before = lock.read().get();
        lock.write().add();
        let after = lock.read().get();
        assert!(before < after && (1..=2).contains(&other.join().unwrap()));
        assert_eq!(lock.read().get(), 2);
    });
}

#[test]
fn timeout_during_grant_reports_what_happened() {
    // S3, S4: a timeout expires while a share is granted: success is reported exactly if the share
    // was granted
    for writes in [true, false] {
        model(3, move || {
            let lock = counter();
            let guard = lock.try_write().unwrap();
            let other = on_a_thread(&lock, move |lock| {
                coroutine::timeout(|| {
                    if writes {
                        lock.write_cancellable().map(std::mem::forget).is_ok()
                    } else {
                        lock.read_cancellable().map(std::mem::forget).is_ok()
                    }
                })
            });
            drop(guard);
            let granted = other.join().unwrap() == Some(true);
            assert_eq!(lock.try_write().is_none(), granted);
        });
    }
}

#[test]
fn three_waiters_are_queued_in_order() {
    // S3: a waiter that arrives while others are let in is not forgotten either
    for others in [[true, false], [false, false], [true, true]] {
        model(2, move || {
            let lock = counter();
            let others = others.map(|writes| {
                on_a_thread(&lock, move |lock| if writes { lock.write().add() } else { assert!(lock.read().get() < 3) })
            });
            lock.write().add();
            for other in others {
                other.join().unwrap();
            }
            assert!(lock.try_write().is_some());
        });
    }
}

#[test]
fn last_of_two_readers_admits_the_writer() {
    // S3: a writer that arrives while two readers leave is let in by one of them, and sees both
    // gone
    model(2, || {
        let lock = counter();
        let reader = on_a_thread(&lock, |lock| lock.read().get());
        let writer = on_a_thread(&lock, |lock| lock.write().add());
        lock.read().get();
        writer.join().unwrap();
        reader.join().unwrap();
        assert_eq!(lock.read().get(), 1);
    });
}

#[test]
fn two_upgrades_take_turns() {
    // S3: two readers that upgrade at the same time both succeed, one after the other
    model(2, || {
        let lock = counter();
        let upgrade = |lock: &CoRwLock<Counter>| {
            let reading = lock.read();
            reading.get();
            reading.upgrade().add();
        };
        let other = on_a_thread(&lock, upgrade);
        upgrade(&lock);
        other.join().unwrap();
        assert_eq!(lock.read().get(), 2);
    });
}

#[test]
fn upgrade_waits_for_other_readers() {
    // S3: an immediate upgrade writes after everything that another reader read
    model(3, || {
        let lock = counter();
        let other = on_a_thread(&lock, |lock| lock.read().get());
        let added = lock.read().try_upgrade().map(|writing| writing.add()).is_ok();
        assert!(other.join().unwrap() <= usize::from(added));
        assert!(lock.try_write().is_some());
    });
}

#[test]
fn downgrade_admits_readers() {
    // S3: a downgrade lets a queued reader in although the lock is still held; the reader sees the
    // write
    model(3, || {
        let lock = counter();
        let writing = lock.write();
        let other = on_a_thread(&lock, |lock| lock.read().get());
        writing.add();
        let reading = writing.downgrade();
        assert_eq!(other.join().unwrap(), 1);
        drop(reading);
        assert!(lock.try_write().is_some());
    });
}

#[test]
fn abandoned_wait_keeps_no_other_waiter_waiting() {
    // S3, S4: a writer at the head of the queue is cancelled: readers behind it get in, although
    // another reader still holds the lock
    model(2, || {
        let lock = counter();
        let reading = lock.read();
        let writer = on_a_thread(&lock, |lock| {
            coroutine::cancel_this_thread();
            assert!(lock.write_cancellable().is_err());
        });
        let reader = on_a_thread(&lock, |lock| lock.read().get());
        writer.join().unwrap();
        reader.join().unwrap();
        drop(reading);
        assert!(lock.try_write().is_some());
    });
}

#[test]
fn abandoned_wait_passes_its_grant_on() {
    // S3, S4: a wait is cancelled while the lock is handed over: it either has the lock, or the
    // next waiter gets it
    model(3, || {
        let lock = counter();
        let other = on_a_thread(&lock, |lock| {
            coroutine::cancel_this_thread();
            lock.write_cancellable().map(|counter| counter.add()).is_ok()
        });
        lock.write().add();
        let theirs = usize::from(other.join().unwrap());
        assert_eq!(lock.write().get(), 1 + theirs);
    });
}

#[test]
fn unwinding_waiter_passes_its_grant_on() {
    // S3, C9: a coroutine that unwinds while it waits either was granted the lock and releases it,
    // or leaves the queue
    for writes in [true, false] {
        model(3, move || {
            let lock = counter();
            let other = on_a_thread(&lock, move |lock| {
                coroutine::unwind_instead_of_suspending(|| if writes { drop(lock.write()) } else { drop(lock.read()) });
            });
            lock.write().add();
            other.join().unwrap();
            assert!(lock.try_write().is_some());
        });
    }
}
