//! A semaphore's permits and a channel's messages, checked on every interleaving that the memory
//! model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_semaphore`
//!
//! `semaphore.rs`, `channel.rs` and `wait_queue.rs` are the library's own source files. Each
//! coroutine is a thread here. The value guarded by a permit is in loom's cell, which detects two
//! simultaneous owners, and an owner that does not see the previous owner's writes; a forgotten
//! waiter is a deadlock.
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
    pub(crate) mod channel;
    pub(crate) mod semaphore;
    mod wait_queue;
}

use sync::channel::{Receiver, Sender, bounded};
use sync::semaphore::Semaphore;

/// A value that the owner of the permit may change.
struct Guarded(Semaphore, UnsafeCell<usize>);

// SAFETY: loom checks each access.
unsafe impl Sync for Guarded {}

impl Guarded {
    /// Creates it with `permits` permits. Its atomics have all been used by this thread.
    fn new(permits: usize) -> Arc<Guarded> {
        let guarded = Arc::new(Guarded(Semaphore::new(permits), UnsafeCell::new(0)));
        assert_eq!(guarded.0.available(), permits);
        guarded
    }

    fn add(&self) {
        // SAFETY: as above.
        self.1.with_mut(|count| unsafe { *count += 1 });
    }

    fn on_a_thread<T: 'static>(self: &Arc<Self>, f: impl FnOnce(&Guarded) -> T + 'static) -> JoinHandle<T> {
        let guarded = Arc::clone(self);
        thread::spawn(move || f(&guarded))
    }
}

fn model(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(f);
}

#[test]
fn single_permit_acts_as_a_lock() {
    // S4: two coroutines on two threads: one at a time, neither is forgotten, and each sees the
    // other's writes
    model(3, || {
        let guarded = Guarded::new(1);
        let work = |guarded: &Guarded| {
            let _permit = guarded.0.acquire();
            guarded.add();
        };
        let other = guarded.on_a_thread(work);
        work(&guarded);
        work(&guarded);
        other.join().unwrap();
        assert_eq!(guarded.0.available(), 1);
    });
}

#[test]
fn permits_added_one_by_one_satisfy_a_waiter() {
    // S4: a waiter for two permits gets them when another thread adds one after the other
    model(3, || {
        let guarded = Guarded::new(0);
        let other = guarded.on_a_thread(|guarded| {
            guarded.add();
            (0..2).for_each(|_| guarded.0.add_permits(1));
        });
        guarded.0.acquire_many(2).forget();
        guarded.add();
        other.join().unwrap();
        assert_eq!(guarded.0.available(), 0);
    });
}

#[test]
fn abandoned_wait_loses_no_permit() {
    // S4: a waiter is cancelled, or unwinds, while it is granted a permit: it either has the
    // permit, or returns it
    for unwinds in [false, true] {
        model(3, move || {
            let guarded = Guarded::new(1);
            let other = guarded.on_a_thread(move |guarded| {
                if unwinds {
                    coroutine::unwind_instead_of_suspending(|| {
                        let _permit = guarded.0.acquire();
                        guarded.add();
                    });
                } else {
                    coroutine::cancel_this_thread();
                    if let Ok(_permit) = guarded.0.acquire_cancellable() {
                        guarded.add();
                    }
                }
            });
            let permit = guarded.0.acquire();
            guarded.add();
            drop(permit);
            drop(guarded.0.acquire());
            other.join().unwrap();
            assert_eq!(guarded.0.available(), 1);
        });
    }
}

#[test]
fn timeout_during_grant_loses_no_permit() {
    // S4: a timeout expires while permits are granted: it either returns them, or they stay in the
    // semaphore
    model(3, || {
        let guarded = Guarded::new(0);
        let other = guarded.on_a_thread(|guarded| guarded.0.add_permits(2));
        let timed = coroutine::timeout(|| guarded.0.acquire_many_cancellable(2).map(|permit| permit.forget()));
        let in_time = match timed {
            Some(acquired) => acquired.is_ok(),
            None => false,
        };
        other.join().unwrap();
        assert_eq!(guarded.0.available(), if in_time { 0 } else { 2 });
    });
}

#[test]
fn timeout_during_grant_loses_no_message() {
    // S4: a timeout of `recv` expires while a message is handed over: this `recv` or the next one
    // returns the message
    for capacity in [0, 1] {
        model(3, move || {
            let (sender, receiver) = used_channel(capacity);
            let other = thread::spawn(move || sender.send(1).unwrap());
            let in_time = coroutine::timeout(|| receiver.recv().ok()).flatten();
            let received = in_time.or_else(|| receiver.recv().ok());
            other.join().unwrap();
            assert_eq!(received, Some(1));
        });
    }
}

#[test]
fn timeout_of_send_tells_whether_the_message_was_sent() {
    // S4: a timeout of `send` expires while its message is received: it reports success exactly if
    // the message was received
    for capacity in [0, 1] {
        model(3, move || {
            let (sender, receiver) = used_channel(capacity);
            (0..capacity).for_each(|_| sender.try_send(0).unwrap());
            let other = thread::spawn(move || receiver.iter().filter(|&n| n == 1).count());
            let sent = coroutine::timeout(|| sender.send(1).is_ok()).unwrap_or(false);
            drop(sender);
            assert_eq!(other.join().unwrap(), usize::from(sent));
        });
    }
}

#[test]
fn abandoned_wait_keeps_no_other_waiter_waiting() {
    // S4: a waiter for more permits than there are gives up: the one behind it, which needs fewer,
    // continues
    model(3, || {
        let guarded = Guarded::new(1);
        let other = guarded.on_a_thread(|guarded| {
            coroutine::cancel_this_thread();
            assert!(guarded.0.acquire_many_cancellable(2).is_err());
        });
        drop(guarded.0.acquire());
        other.join().unwrap();
        assert_eq!(guarded.0.available(), 1);
    });
}

/// Returns a channel whose atomics have all been used by this thread.
fn used_channel(capacity: usize) -> (Sender<usize>, Receiver<usize>) {
    let (sender, receiver) = bounded(capacity);
    assert!(receiver.try_recv().is_err());
    (sender, receiver)
}

#[test]
fn messages_arrive_in_order_before_disconnection() {
    // S4: a sender waits for space, and a receiver for messages: all messages arrive, and then the
    // disconnection
    for capacity in [0, 1] {
        model(2, move || {
            let (sender, receiver) = used_channel(capacity);
            let other = thread::spawn(move || (1..=2).for_each(|n| sender.send(n).unwrap()));
            assert!(receiver.iter().eq(1..=2));
            other.join().unwrap();
        });
    }
}

#[test]
fn unwinding_receiver_loses_no_message() {
    // S4, C9: a receiver unwinds, or is cancelled, while it is handed a message: another receiver
    // gets the message
    for unwinds in [false, true] {
        model(3, move || {
            let (sender, receiver) = used_channel(1);
            let theirs = receiver.clone();
            let other = thread::spawn(move || {
                let mut received = None;
                if unwinds {
                    coroutine::unwind_instead_of_suspending(|| received = theirs.recv().ok());
                } else {
                    coroutine::cancel_this_thread();
                    received = theirs.recv().ok();
                }
                received
            });
            sender.send(1).unwrap();
            let received = other.join().unwrap();
            assert_eq!(received.or_else(|| receiver.try_recv().ok()), Some(1));
        });
    }
}

#[test]
fn sender_learns_of_a_dropped_receiver() {
    // S4: the last receiver goes while a sender waits for space: the sender gets an error, and its
    // message back
    model(3, || {
        let (sender, receiver) = used_channel(1);
        let other = thread::spawn(move || drop(receiver));
        if sender.try_send(1).is_ok() {
            assert_eq!(sender.send(2).map_err(|error| error.into_inner()), Err(2));
        }
        other.join().unwrap();
    });
}
