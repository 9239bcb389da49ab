//! Cancellation: a flag that makes waits for events fail, and that waits for locks ignore.

mod common;

use std::rc::Rc;
use std::thread;
use std::time::Duration;

use common::Log;
use coralio_runtime::{
    AioContext, Cancelled, CoMutex, CoQueue, Coroutine, check_cancelled, is_cancelled, shield, sleep, spawn, suspend,
    yield_now,
};

#[test]
fn cancel_ends_each_kind_of_wait() {
    // S4: a coroutine cancelled in a wait for an event, or before it, resumes immediately with an
    // error; the lock is free afterwards
    AioContext::run(|ctx| {
        let lock = Rc::new(CoMutex::new(()));
        let queue = Rc::new(CoQueue::new());
        let held = lock.try_lock().unwrap();
        let kinds: [Box<dyn Fn() -> Result<(), Cancelled>>; 3] = [
            Box::new(|| sleep(Duration::MAX)),
            Box::new({
                let lock = Rc::clone(&lock);
                move || lock.lock_cancellable().map(drop)
            }),
            Box::new(move || {
                let own = CoMutex::new(());
                let woken = queue.wait_cancellable(own.lock()).map(drop);
                assert!(own.try_lock().is_some(), "the lock is released");
                woken
            }),
        ];
        for kind in kinds {
            let task = spawn(move || {
                let first = kind();
                (first, kind(), check_cancelled(), is_cancelled())
            });
            ctx.poll(false);
            assert!(!task.is_finished());
            task.cancel();
            assert_eq!(task.join().unwrap(), (Err(Cancelled), Err(Cancelled), Err(Cancelled), true));
        }
        drop(held);
        assert!(lock.try_lock().is_some());
        let fresh = spawn(|| sleep(Duration::MAX));
        fresh.cancel();
        assert_eq!(fresh.join().unwrap(), Err(Cancelled), "before it began");
    });
}

#[test]
fn cancelled_coroutine_still_waits_for_a_lock() {
    // S4: CoMutex::lock and CoQueue::wait are not cut short by cancellation; a cancelled coroutine
    // takes a free lock
    AioContext::run(|ctx| {
        let (lock, queue, log) = (Rc::new(CoMutex::new(())), Rc::new(CoQueue::new()), Log::default());
        let held = lock.try_lock().unwrap();
        let task = spawn({
            let (lock, queue, log) = (Rc::clone(&lock), Rc::clone(&queue), log.clone());
            move || {
                let guard = lock.lock();
                log.add("locked");
                let guard = queue.wait(guard);
                log.add("woken");
                drop(guard);
                assert!(lock.lock_cancellable().is_ok());
            }
        });
        ctx.poll(false);
        task.cancel();
        ctx.poll(false);
        assert_eq!(log.take(), "");
        drop(held);
        ctx.poll(false);
        task.cancel();
        ctx.poll(false);
        assert_eq!(log.take(), "locked");
        queue.wake_one();
        task.join().unwrap();
        assert_eq!(log.take(), "woken");
    });
}

#[test]
fn cancel_from_another_thread_ends_the_wait() {
    // S4, W1: a waker cancels from any thread, and notifies the loop
    AioContext::run(|ctx| {
        let task = spawn(|| sleep(Duration::MAX));
        ctx.poll(false);
        let waker = task.coroutine().waker();
        let other = thread::spawn(move || waker.cancel());
        assert_eq!(task.join().unwrap(), Err(Cancelled));
        other.join().unwrap();
    });
}

#[test]
fn shield_defers_cancellation() {
    // S4: waits inside a shield are not cut short, even with nested shields; after the outermost
    // one they are again
    AioContext::run(|_| {
        let task = spawn(|| {
            Coroutine::current().unwrap().cancel();
            shield(|| {
                shield(|| assert!(!is_cancelled()));
                assert_eq!(sleep(Duration::from_micros(1)), Ok(()));
                let caught = std::panic::catch_unwind(|| shield(|| std::panic::resume_unwind(Box::new(()))));
                assert!(caught.is_err() && !is_cancelled());
            });
            sleep(Duration::MAX)
        });
        assert_eq!(task.join().unwrap(), Err(Cancelled));
    });
}

#[test]
fn next_coroutine_in_the_same_block_is_not_cancelled() {
    // S4, W4: cancelling an ended coroutine has no effect, even if its control block is reused; nor
    // does the flag stay in the block
    AioContext::run(|ctx| {
        let first = spawn(|| ());
        let (handle, waker) = (first.coroutine(), first.coroutine().waker());
        first.cancel();
        first.join().unwrap();
        for _ in 0..100 {
            let next = spawn(|| {
                yield_now();
                is_cancelled()
            });
            ctx.poll(false);
            handle.cancel();
            waker.cancel();
            assert!(!next.join().unwrap());
        }
    });
}

#[test]
fn bare_suspension_is_woken_by_cancel() {
    // S4: cancelling wakes a coroutine in a bare suspension, which must check for the reason
    AioContext::run(|ctx| {
        let task = spawn(|| {
            suspend();
            check_cancelled()
        });
        ctx.poll(false);
        task.cancel();
        assert_eq!(task.join().unwrap(), Err(Cancelled));
    });
}
