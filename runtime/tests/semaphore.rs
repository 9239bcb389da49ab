//! Semaphore: a limited number of permits, in order; permits are never lost.

mod common;

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use common::{Log, panic_in, panic_of, scaled};
use coralio_runtime::{AioContext, Cancelled, Coroutine, JoinHandle, Semaphore, TimedOut, spawn, timeout, yield_now};

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
fn handover_wakes_and_does_not_enter() {
    // S4, S1: a waiter that is granted a permit runs when the releaser yields, not on top of it
    AioContext::run(|_| {
        let (semaphore, log) = (Rc::new(Semaphore::new(0)), Log::default());
        let waiting = spawn({
            let (semaphore, log) = (Rc::clone(&semaphore), log.clone());
            move || {
                semaphore.acquire().forget();
                log.add(Coroutine::current().unwrap().try_enter().unwrap_err());
            }
        });
        let giving = spawn({
            let (semaphore, log) = (Rc::clone(&semaphore), log.clone());
            move || {
                semaphore.add_permits(1);
                log.add("added");
            }
        });
        join_all([waiting, giving]);
        assert_eq!(log.take(), "added recursive entry of #1: main > loop > #1");
        assert_eq!(semaphore.available(), 0);
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

#[test]
fn lock_is_exclusive_between_two_threads_of_fifty_coroutines() {
    // S4: between coroutines of two contexts on two threads, the number of permits is never
    // exceeded, and none is lost
    let (coroutines, rounds, permits) = (50, scaled(1000), 3);
    let shared = Arc::new((Semaphore::new(permits), AtomicUsize::new(0)));
    let begin = Barrier::new(2);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                AioContext::run(|_| {
                    begin.wait();
                    let tasks: Vec<_> = (0..coroutines)
                        .map(|n| {
                            let shared = Arc::clone(&shared);
                            spawn(move || {
                                for round in 0..rounds {
                                    let count = (round + n) % (permits + 1);
                                    let _permit = shared.0.acquire_many(count);
                                    assert!(shared.1.fetch_add(count, Ordering::Relaxed) + count <= permits);
                                    if (round + n) % 16 == 0 {
                                        yield_now();
                                    }
                                    shared.1.fetch_sub(count, Ordering::Relaxed);
                                }
                            })
                        })
                        .collect();
                    join_all(tasks);
                });
            });
        }
    });
    assert_eq!(shared.0.available(), permits);
}

#[test]
fn waiter_unwound_in_the_queue_blocks_no_other() {
    // C9, S4: a waiter whose context ends leaves the queue, and those behind it continue; a granted
    // one returns its permits
    let semaphore = Arc::new(Semaphore::new(1));
    let (in_line, behind) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            AioContext::run(|ctx| {
                let many = Arc::clone(&semaphore);
                drop(spawn(move || many.acquire_many(2).forget()));
                ctx.poll(false);
                in_line.wait();
                behind.wait();
            });
        });
        in_line.wait();
        AioContext::run(|ctx| {
            let one = Arc::clone(&semaphore);
            let one = spawn(move || drop(one.acquire()));
            ctx.poll(false);
            assert!(!one.is_finished());
            behind.wait();
            one.join().unwrap();
        });
    });
    AioContext::run(|ctx| {
        let permit = semaphore.try_acquire().unwrap();
        let granted = Arc::clone(&semaphore);
        drop(spawn(move || granted.acquire().forget()));
        ctx.poll(false);
        drop(permit);
        assert_eq!(semaphore.available(), 0);
    });
    assert_eq!(semaphore.available(), 1);
}
