//! Semaphore: a limited number of permits, in order; permits are never lost.

use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::common::{Log, panic_in, panic_of};
use coralio_runtime::{AioContext, Cancelled, JoinHandle, Semaphore, TimedOut, spawn, timeout, yield_now};

/// Spawns a coroutine that takes `count` permits, and logs when it has them.
fn take(semaphore: &Rc<Semaphore>, log: &Log, count: usize) -> JoinHandle<()> {
    let (semaphore, log) = (Rc::clone(semaphore), log.clone());
    spawn(move || {
        let _permit = semaphore.acquire_many(count);
        log.add(count);
        yield_now();
    })
}

fn join_all(tasks: impl IntoIterator<Item = JoinHandle<()>>) {
    tasks.into_iter().for_each(|task| task.join().unwrap());
}

#[test]
fn large_acquire_is_not_overtaken() {
    // S4: first come, first served: a waiter for many permits at the head of the queue is not
    // overtaken by smaller ones
    AioContext::run(|ctx| {
        let (semaphore, log) = (Rc::new(Semaphore::new(3)), Log::default());
        let permit = semaphore.try_acquire().unwrap();
        let tasks: Vec<_> = [3, 1, 1, 2, 0].into_iter().map(|count| take(&semaphore, &log, count)).collect();
        ctx.poll(false);
        assert_eq!((log.take(), semaphore.available()), (String::new(), 2));
        assert!(semaphore.try_acquire().is_none(), "two permits, but not for a later waiter");
        drop(permit);
        assert_eq!(semaphore.available(), 0, "handed over, never free in between");
        join_all(tasks);
        assert_eq!((log.take(), semaphore.available()), ("3 1 1 2 0".to_string(), 3));
        assert_eq!(format!("{semaphore:?}"), "Semaphore { available: 3 }");
    });
}

#[test]
fn permits_are_added_and_consumed() {
    // S4: a forgotten permit is not returned; permits can be added from any thread, in a coroutine
    // or not
    AioContext::run(|ctx| {
        let semaphore = Arc::new(Semaphore::new(1));
        semaphore.try_acquire().unwrap().forget();
        assert_eq!(semaphore.available(), 0);
        let waiting = {
            let semaphore = Arc::clone(&semaphore);
            spawn(move || semaphore.acquire_many(5).forget())
        };
        ctx.poll(false);
        semaphore.add_permits(2);
        thread::scope(|scope| {
            scope.spawn(|| semaphore.add_permits(4));
        });
        waiting.join().unwrap();
        assert_eq!(semaphore.available(), 1);
        let said = panic_of(|| semaphore.add_permits(usize::MAX));
        assert!(said.contains("more than a semaphore can count"), "{said}");
        assert_eq!(semaphore.available(), 1);
    });
}

#[test]
fn wait_can_be_cancelled() {
    // S4: a `_cancellable` wait ends early by cancelling or a timeout; those behind it need fewer
    // permits, and continue
    AioContext::run(|ctx| {
        let (semaphore, log) = (Rc::new(Semaphore::new(1)), Log::default());
        let many = {
            let semaphore = Rc::clone(&semaphore);
            spawn(move || matches!(semaphore.acquire_many_cancellable(2), Err(Cancelled)))
        };
        let behind = take(&semaphore, &log, 1);
        ctx.poll(false);
        assert_eq!(log.take(), "");
        many.cancel();
        assert!(many.join().unwrap());
        behind.join().unwrap();
        assert_eq!(log.take(), "1");

        let late = {
            let semaphore = Rc::clone(&semaphore);
            spawn(move || {
                let permit = semaphore.acquire_cancellable().expect("there is one");
                let second = timeout(Duration::from_millis(1), || semaphore.acquire_cancellable().is_err());
                drop(permit);
                second
            })
        };
        assert_eq!(late.join().unwrap(), Err(TimedOut));

        let permit = semaphore.try_acquire();
        let stubborn = take(&semaphore, &log, 1);
        ctx.poll(false);
        stubborn.cancel();
        assert!(!stubborn.is_finished());
        drop(permit);
        stubborn.join().unwrap();
        assert_eq!(semaphore.available(), 1);
    });
}

#[test]
fn panic_returns_the_permit() {
    // C8: a panic returns the panicking coroutine's permit; outside a coroutine, waiting panics
    // with the remedy
    AioContext::run(|_| {
        let (semaphore, log) = (Rc::new(Semaphore::new(2)), Log::default());
        let bad = spawn({
            let semaphore = Rc::clone(&semaphore);
            move || {
                let _permit = semaphore.acquire_many(2);
                yield_now();
                panic!("with the permit");
            }
        });
        let next = take(&semaphore, &log, 2);
        assert_eq!(panic_in(bad), "with the permit");
        next.join().unwrap();
        let said = panic_of(|| drop(semaphore.acquire_many(3)));
        assert!(said.contains("spawn one"), "{said}");
        assert_eq!(semaphore.available(), 2);
    });
}
