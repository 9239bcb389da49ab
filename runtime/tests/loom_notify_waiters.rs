//! `Notify`, checked on every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_notify_waiters`
//!
//! `notify.rs` and `wait_queue.rs` are the library's own source files. Each coroutine is a thread
//! here; a lost notification is a deadlock.
#![cfg(loom)]
#![allow(unreachable_pub, dead_code, unsafe_code)]

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

#[path = "loom_common/atomic.rs"]
mod atomic;
#[path = "loom_common/coroutine.rs"]
mod coroutine;

use coroutine as scheduler;
use coroutine as task;

#[path = "../src/sync"]
mod sync {
    pub(crate) mod notify;
    mod wait_queue;
}

use sync::notify::Notify;

/// Returns a `Notify` whose atomics have all been used by this thread.
fn used_notify() -> Notify {
    let notify = Notify::new();
    notify.notify_waiters();
    notify
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

#[test]
fn condition_and_notification_of_all_are_not_missed() {
    // S7: a thread makes the condition true and notifies all, while another checks it and waits
    model(|| {
        let shared = Arc::new((AtomicBool::new(false), used_notify()));
        assert!(!shared.0.load(Ordering::Relaxed));
        let theirs = Arc::clone(&shared);
        let other = thread::spawn(move || {
            theirs.0.store(true, Ordering::Relaxed);
            theirs.1.notify_waiters();
        });
        shared.1.wait_until(|| shared.0.load(Ordering::Relaxed)).unwrap();
        other.join().unwrap();
    });
}

#[test]
fn abandoned_wait_loses_no_notification() {
    // S7: a waiter is cancelled, or unwinds, while it is notified: it consumes the notification, or
    // leaves it to the other waiter
    for unwinds in [false, true] {
        model(move || {
            let notify = Arc::new(used_notify());
            let theirs = Arc::clone(&notify);
            let other = thread::spawn(move || {
                let mut consumed = false;
                if unwinds {
                    coroutine::unwind_instead_of_suspending(|| consumed = theirs.notified().is_ok());
                } else {
                    coroutine::cancel_this_thread();
                    consumed = theirs.notified().is_ok();
                }
                if consumed {
                    theirs.notify_one();
                }
            });
            notify.notify_one();
            notify.notified().unwrap();
            other.join().unwrap();
        });
    }
}
