//! Owned permits and guards: they move to other coroutines and threads, and keep their semaphore or
//! mutex alive.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use crate::common::{panic_in, panic_of};
use coralio_runtime::{AioContext, Cancelled, CoMutex, OwnedCoMutexGuard, Semaphore, spawn, yield_now};

#[test]
fn owned_permit_is_returned_where_it_is_dropped() {
    // S10: by another coroutine, and by another thread; a forgotten one is not returned
    AioContext::run(|ctx| {
        let semaphore = Arc::new(Semaphore::new(3));
        let permit = Semaphore::try_acquire_owned(Arc::clone(&semaphore)).unwrap();
        let holder = spawn(move || {
            yield_now();
            drop(permit);
        });
        let theirs = Arc::clone(&semaphore);
        let waiting = spawn(move || {
            let permit = Semaphore::acquire_many_owned(theirs, 3);
            thread::spawn(move || drop(permit)).join().unwrap();
        });
        ctx.poll(false);
        assert!(!waiting.is_finished());
        waiting.join().unwrap();
        holder.join().unwrap();
        assert_eq!(semaphore.available(), 3);
        Semaphore::acquire_owned(&*Box::leak(Box::new(Semaphore::new(1)))).forget();
        let theirs = Arc::clone(&semaphore);
        let cancelled = spawn(move || {
            Semaphore::acquire_owned(Arc::clone(&theirs)).forget();
            let _rest = Semaphore::acquire_many_owned(Arc::clone(&theirs), 2);
            Semaphore::acquire_owned_cancellable(theirs).map(drop)
        });
        ctx.poll(false);
        cancelled.cancel();
        assert_eq!(cancelled.join().unwrap(), Err(Cancelled));
        assert_eq!(semaphore.available(), 2);
    });
}

#[test]
fn owned_guard_unlocks_where_it_is_dropped() {
    // S10: a guard moves to another coroutine, which uses the value and unlocks; the coroutine that
    // took the lock may wait for that
    AioContext::run(|_| {
        let mutex = Rc::new(CoMutex::new(vec![1]));
        let task = spawn(move || {
            let mut guard = CoMutex::lock_owned(Rc::clone(&mutex));
            assert!(CoMutex::try_lock_owned(Rc::clone(&mutex)).is_none());
            let other = spawn(move || {
                yield_now();
                guard.push(2);
            });
            mutex.lock().push(3);
            other.join().unwrap();
            let theirs = Rc::clone(&mutex);
            let guard = CoMutex::lock_owned_cancellable(theirs).unwrap();
            format!("{guard:?}")
        });
        assert_eq!(task.join().unwrap(), "[1, 2, 3]");
    });
}

#[test]
fn plain_guard_still_excludes_its_owner() {
    // S6, S10: a coroutine that holds the lock by a plain guard is refused an owned one
    AioContext::run(|_| {
        let mutex = Rc::new(CoMutex::new(()));
        let task = spawn(move || {
            let _guard = mutex.lock();
            drop(CoMutex::lock_owned(Rc::clone(&mutex)));
        });
        let said = panic_in(task);
        assert!(said.contains("locks a CoMutex that it already holds"), "{said}");
    });
}

#[test]
fn owned_guard_moves_to_another_thread() {
    // S10: with an `Arc` the guard may be sent, and then unlocks for a waiter of another thread;
    // it is shared between threads only if its value may be
    trait IfNot<Marker> {
        fn holds() {}
    }
    struct Shareable;
    impl<T> IfNot<()> for T {}
    impl<T: Sync> IfNot<Shareable> for T {}
    fn is_send<T: Send>() {}
    is_send::<OwnedCoMutexGuard<Arc<CoMutex<Cell<u8>>>>>();
    // Ambiguous, and so an error, if the guard were `Sync`.
    <OwnedCoMutexGuard<Arc<CoMutex<Cell<u8>>>> as IfNot<_>>::holds();

    AioContext::run(|ctx| {
        let mutex = Arc::new(CoMutex::new(Cell::new(1)));
        let guard = CoMutex::try_lock_owned(Arc::clone(&mutex)).unwrap();
        let theirs = Arc::clone(&mutex);
        let waiting = spawn(move || theirs.lock().get());
        ctx.poll(false);
        thread::spawn(move || guard.set(2)).join().unwrap();
        assert_eq!(waiting.join().unwrap(), 2);
        let _held = CoMutex::try_lock_owned(Arc::clone(&mutex)).unwrap();
        let said = panic_of(|| drop(CoMutex::lock_owned(Arc::clone(&mutex))));
        assert!(said.contains("would block outside a coroutine"), "{said}");
    });
}

#[test]
fn dump_shows_the_place_of_an_owned_guard() {
    // S10, X11: a waiter's line names the place where the lock was taken, and no coroutine
    AioContext::builder()
        .report_unwound(false)
        .run(|ctx| {
            let mutex = Rc::new(CoMutex::new(()));
            let held = Rc::clone(&mutex);
            drop(spawn(move || {
                let guard = CoMutex::lock_owned(held);
                std::mem::forget(guard);
                yield_now();
            }));
            drop(spawn(move || drop(mutex.lock())));
            ctx.poll(false);
            let dump = ctx.dump().to_string();
            assert!(dump.contains(&format!("held by a thread or an owned guard since {}", file!())), "{dump}");
        })
        .unwrap();
}
