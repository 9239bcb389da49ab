//! Incorrect use, and its reports: panics that name cause and remedy, and an abort where continuing
//! would be undefined behaviour.

use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use crate::common::{Log, assert_aborted, in_child, panic_of};
use coralio_runtime::{AioContext, CoMutex, Coroutine, can_suspend, spawn, suspend, yield_now};

#[test]
fn yield_outside_a_coroutine_panics() {
    // C3: yield outside a coroutine panics: without a context, on the thread's own stack, in the
    // loop
    assert!(!can_suspend());
    for wait in [suspend, yield_now] {
        let said = panic_of(wait);
        assert!(said.starts_with("yield outside a coroutine"), "{said}");
        AioContext::run(|ctx| {
            assert!(!can_suspend());
            let said = panic_of(wait);
            assert!(said.starts_with("yield outside a coroutine") && said.ends_with("spawn one"), "{said}");
            // A bottom half run by a coroutine's poll does not run as that coroutine.
            let ctx = ctx.clone();
            let task = spawn(move || {
                assert!(can_suspend());
                ctx.schedule_oneshot(move || {
                    assert!(!can_suspend());
                    let said = panic_of(wait);
                    assert!(said.starts_with("yield outside a coroutine"), "{said}");
                })
                .unwrap();
                assert!(ctx.poll(false));
                yield_now();
                6
            });
            assert_eq!(task.join().unwrap(), 6);
        });
    }
}

#[test]
fn yield_with_the_contexts_lock_is_rejected() {
    // X8: a coroutine that yields with the context's lock panics at the yield, and can continue
    // afterwards
    AioContext::run(|ctx| {
        let inner = ctx.clone();
        let task = Coroutine::builder().name("greedy").spawn(move || {
            let guards = (inner.acquire(), inner.acquire());
            let said = panic_of(suspend);
            assert!(
                said.starts_with("coroutine 'greedy' yields while it holds the context's lock (2 guards)"),
                "{said}"
            );
            let said = panic_of(yield_now);
            assert!(said.contains("drop the guards first"), "{said}");
            // With the lock held it may enter coroutines that do not hold the lock, and poll.
            let other = Coroutine::new(suspend);
            other.enter();
            inner.poll(false);
            drop(guards);
            yield_now();
            other.enter();
        });
        let task = task.unwrap();
        task.join().unwrap();
        // The enterer's lock does not count either.
        let _outer = ctx.acquire();
        let co = Coroutine::new(suspend);
        co.enter();
        co.enter();
        assert!(co.has_ended());
    });
}

#[test]
fn calls_outside_a_context_panic() {
    // C7: creating a coroutine outside a context panics; the message says how to get a context
    for said in [panic_of(|| spawn(|| {})), panic_of(|| Coroutine::new(|| {}))] {
        assert!(said.contains("outside a context") && said.contains("AioContext::run"), "{said}");
    }
    assert!(Coroutine::current().is_none() && AioContext::current().is_none());
}

#[test]
fn context_within_a_context_is_rejected() {
    // C7: running a second context on a thread is refused; the first continues
    AioContext::run(|_| {
        let said = panic_of(|| AioContext::run(|_| ()));
        assert!(said.contains("this thread already runs a context"), "{said}");
        let task = spawn(|| panic_of(|| AioContext::run(|_| ())));
        assert!(task.join().unwrap().contains("already"));
        assert!(AioContext::current().is_some());
        assert_eq!(spawn(|| 1).join().unwrap(), 1);
    });
}

#[test]
fn blocking_poll_on_a_foreign_thread_panics() {
    // X8: a foreign thread may only poll without blocking
    AioContext::run(|ctx| {
        let said = thread::scope(|scope| scope.spawn(|| panic_of(|| ctx.poll(true))).join().unwrap());
        assert!(said.contains("poll(true) called off the context's home thread"), "{said}");
    });
}

#[test]
fn joining_oneself_panics() {
    // C8: a coroutine that joins itself panics instead of deadlocking
    AioContext::run(|_| {
        let log = Log::default();
        let slot = Rc::new(std::cell::RefCell::new(None));
        let task = spawn({
            let (slot, log) = (Rc::clone(&slot), log.clone());
            move || {
                let me: coralio_runtime::JoinHandle<()> = slot.borrow_mut().take().unwrap();
                log.add(panic_of(|| me.join()));
            }
        });
        slot.replace(Some(task));
        let ctx = AioContext::current().unwrap();
        ctx.poll(false);
        assert_eq!(log.take(), "a coroutine joins itself: it would wait for ever; join it from another coroutine");
    });
}

#[test]
fn catching_the_payload_forever_aborts_the_process() {
    // C9: code that catches the unwinding payload repeatedly cannot keep its coroutine: the process
    // aborts
    match in_child("bad_use::catching_the_payload_forever_aborts_the_process") {
        Some(child) => assert_aborted(&child, "coroutine 'stubborn' (created at"),
        None => AioContext::run(|_| {
            let stubborn = Coroutine::builder().name("stubborn").create(|| {
                loop {
                    let _ = std::panic::catch_unwind(suspend);
                }
            });
            stubborn.unwrap().enter();
        }),
    }
}

/// Suspends in its destructor.
struct Waits;

impl Drop for Waits {
    fn drop(&mut self) {
        suspend();
    }
}

#[test]
fn destructor_that_waits_at_teardown_aborts_the_process() {
    // C9: a destructor that waits for another coroutine while its stack is unwound aborts with a
    // message
    match in_child("bad_use::destructor_that_waits_at_teardown_aborts_the_process") {
        Some(child) => assert_aborted(&child, &format!("waits for an enter or a wake, at {}:", file!())),
        None => AioContext::run(|_| {
            let co = Coroutine::new(|| {
                let _waits = Waits;
                suspend();
            });
            co.enter();
        }),
    }
}

#[test]
fn destructor_that_waits_during_a_panic_aborts_the_process() {
    // C8: likewise while a panic unwinds it: other coroutines must not observe the thread's panic
    // state
    match in_child("bad_use::destructor_that_waits_during_a_panic_aborts_the_process") {
        Some(child) => assert_aborted(&child, &format!("waits for an enter or a wake, at {}:", file!())),
        None => AioContext::run(|_| {
            let co = Coroutine::new(|| {
                let _waits = Waits;
                panic!("first");
            });
            co.enter();
        }),
    }
}

#[test]
fn waiting_for_a_lock_outside_a_coroutine_panics() {
    // S6: locking a held CoMutex outside a coroutine panics; locking a free one succeeds
    let mutex = Arc::new(CoMutex::new(()));
    AioContext::run(|ctx| {
        let holder = spawn({
            let mutex = Arc::clone(&mutex);
            move || {
                let _guard = mutex.lock();
                suspend();
            }
        });
        ctx.poll(false);
        let said = panic_of(|| drop(mutex.lock()));
        assert!(said.contains("would block outside a coroutine"), "{said}");
        drop(holder);
    });
    drop(mutex.lock());
}

#[test]
fn detached_result_with_a_waiting_destructor_is_rejected() {
    // C3, C8: an unfetched result is dropped outside a coroutine, where its destructor cannot be
    // suspended
    AioContext::run(|ctx| {
        drop(spawn(|| Waits));
        let said = panic_of(|| ctx.poll(false));
        assert!(said.contains("yield outside a coroutine"), "{said}");
        let still = spawn(|| 7);
        assert_eq!(still.join().unwrap(), 7);

        // Dropped by a running coroutine, it may suspend.
        let finished = spawn(yield_on_drop);
        let other = spawn(move || {
            while !finished.is_finished() {
                yield_now();
            }
            drop(finished);
            8
        });
        assert_eq!(other.join().unwrap(), 8);
    });
}

fn yield_on_drop() -> impl Sized {
    struct Yields;
    impl Drop for Yields {
        fn drop(&mut self) {
            yield_now();
        }
    }
    Yields
}
