//! Operations in steady use allocate nothing. This program's allocator counts per thread.

#![allow(unsafe_code)]

mod common;
#[path = "common/counting.rs"]
mod counting;

use std::rc::Rc;
use std::sync::Arc;
use std::thread;

use common::scaled;
use coralio_runtime::{
    AioContext, CoMutex, CoQueue, CoRwLock, Coroutine, Semaphore, channel, spawn, suspend, yield_now,
};
use counting::allocations;

/// Runs `f` often enough to fill every pool, and then asserts that it allocates nothing.
fn steady(mut f: impl FnMut()) {
    let rounds = scaled(1000);
    (0..100).for_each(|_| f());
    let before = allocations();
    (0..rounds).for_each(|_| f());
    assert_eq!(allocations() - before, 0, "allocations in the steady state");
}

#[test]
fn counting_allocator_counts() {
    // C10: (a check of this test) the counter notices an allocation, even inside a coroutine
    AioContext::run(|_| {
        let before = allocations();
        spawn(|| drop(std::hint::black_box(Box::new(7)))).join().unwrap();
        assert!(allocations() > before);
    });
}

#[test]
fn spawn_and_join_do_not_allocate() {
    // C10: spawn, yield, end and join allocate nothing in the steady state; nor does a name that is
    // a literal
    AioContext::run(|ctx| {
        steady(|| {
            let caught = [1u64; 8];
            let task = spawn(move || {
                yield_now();
                caught.iter().sum::<u64>()
            });
            assert_eq!(task.join().unwrap(), 8);
        });
        steady(|| {
            drop(Coroutine::builder().name("literal").stack_size(64 * 1024).spawn(|| [0u8; 100]).unwrap());
            ctx.poll(false);
        });
        steady(|| {
            let inner = spawn(|| 1);
            let outer = spawn(move || inner.join().unwrap());
            assert_eq!(outer.join().unwrap(), 1);
        });
    });
}

#[test]
fn enter_and_wake_do_not_allocate() {
    // C10: enter, suspend, wake and schedule allocate nothing
    AioContext::run(|ctx| {
        let forever = || {
            loop {
                suspend();
            }
        };
        let co = Coroutine::new(forever);
        let other = Coroutine::new(move || {
            loop {
                co.wake();
                suspend();
            }
        });
        let waker = co.waker();
        steady(|| {
            co.enter();
            co.wake();
            other.enter();
            co.schedule().unwrap();
            ctx.poll(false);
            waker.clone().schedule().unwrap();
            ctx.poll(false);
        });
    });
}

#[test]
fn wakes_from_another_thread_do_not_allocate() {
    // C10: a wake from another thread allocates nothing on either thread
    AioContext::run(|ctx| {
        let co = Coroutine::new(|| {
            loop {
                suspend();
            }
        });
        co.enter();
        let waker = co.waker();
        let (ask, asked) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(std::sync::Barrier::new(2)));
        let turns = 100 + scaled(1000);
        let other = thread::spawn({
            let (ask, asked) = (Arc::clone(&ask), Arc::clone(&asked));
            move || {
                let mut before = 0;
                for turn in 0..turns {
                    if turn == 100 {
                        before = allocations();
                    }
                    ask.wait();
                    waker.wake();
                    asked.wait();
                }
                allocations() - before
            }
        });
        steady(|| {
            ask.wait();
            asked.wait();
            assert!(ctx.poll(false));
        });
        assert_eq!(other.join().unwrap(), 0);
    });
}

#[test]
fn locks_and_bottom_halves_do_not_allocate() {
    // C10: waiting in a CoMutex or a CoQueue allocates nothing, nor does rescheduling a bottom half
    AioContext::run(|ctx| {
        let shared = Rc::new((CoMutex::new(0), CoQueue::new()));
        let bh = ctx.new_bottom_half(|| {}).unwrap();
        steady(|| {
            let tasks = [(); 4].map(|()| {
                let shared = Rc::clone(&shared);
                spawn(move || {
                    let mut guard = shared.0.lock();
                    yield_now();
                    *guard += 1;
                    while *guard % 4 != 0 {
                        guard = shared.1.wait(guard);
                    }
                    drop(guard);
                    shared.1.wake_all();
                })
            });
            bh.schedule();
            for task in tasks {
                task.join().unwrap();
            }
            bh.schedule_idle();
            bh.schedule();
            ctx.poll(false);
        });
    });
}

#[test]
fn readers_permits_and_messages_do_not_allocate() {
    // C10: waiting in a CoRwLock, a semaphore or a channel allocates nothing, nor does ending the
    // wait early
    AioContext::run(|ctx| {
        let shared = Rc::new((CoRwLock::new(0), Semaphore::new(2), channel::bounded(1)));
        steady(|| {
            let tasks = [0, 1, 2, 3].map(|n| {
                let shared = Rc::clone(&shared);
                spawn(move || {
                    let (lock, semaphore, (sender, receiver)) = &*shared;
                    let reading = lock.read();
                    yield_now();
                    *reading.upgrade() += 1;
                    let permit = semaphore.acquire_many(1 + n % 2);
                    yield_now();
                    drop(permit);
                    if n < 2 {
                        (0..3).for_each(|n| sender.send(n).unwrap());
                    } else {
                        assert_eq!((0..3).filter_map(|_| receiver.recv().ok()).count(), 3);
                    }
                })
            });
            for task in tasks {
                task.join().unwrap();
            }
            let writing = shared.0.try_write().unwrap();
            let waiting = {
                let shared = Rc::clone(&shared);
                spawn(move || assert!(shared.0.read_cancellable().is_err() && shared.2.1.recv().is_err()))
            };
            ctx.poll(false);
            waiting.cancel();
            waiting.join().unwrap();
            drop(writing);
        });
    });
}
