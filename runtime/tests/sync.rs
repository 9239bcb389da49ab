//! CoMutex and CoQueue: fair, across contexts and threads, without stack growth; consistent after
//! panics.

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use common::{Log, panic_in, panic_of, scaled};
use coralio_runtime::{
    AioContext, Cancelled, CoMutex, CoQueue, Coroutine, JoinHandle, TimedOut, sleep, spawn, suspend, timeout, yield_now,
};

fn join_all<T: 'static>(tasks: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    tasks.into_iter().map(|task| task.join().unwrap()).collect()
}

#[test]
fn waiters_are_served_in_order() {
    // S1: the lock is fair: first come, first served; a later waiter cannot overtake, nor can
    // try_lock
    AioContext::run(|_| {
        let log = Log::default();
        let mutex = Rc::new(CoMutex::new(()));
        let tasks = (0..10).map(|n| {
            let (log, mutex) = (log.clone(), Rc::clone(&mutex));
            spawn(move || {
                for _ in 0..3 {
                    let guard = mutex.lock();
                    log.add(n);
                    yield_now();
                    assert!(mutex.try_lock().is_none());
                    drop(guard);
                    assert!(n == 9 || mutex.try_lock().is_none(), "handed over, never free in between");
                }
            })
        });
        // Collected first: all are spawned before any is joined.
        join_all(tasks.collect::<Vec<_>>());
        let order = log.take();
        let expected: Vec<_> = (0..30).map(|n| (n % 10).to_string()).collect();
        assert_eq!(order, expected.join(" "));
    });
}

#[test]
fn handover_wakes_and_does_not_enter() {
    // S1: unlock hands the lock to the next waiter and wakes it: it runs when the releaser yields,
    // not on top of it
    AioContext::run(|_| {
        let log = Log::default();
        let mutex = Rc::new(CoMutex::new(0));
        let holder = spawn({
            let (log, mutex) = (log.clone(), Rc::clone(&mutex));
            move || {
                let mut value = mutex.lock();
                yield_now();
                *value += 1;
                drop(value);
                log.add("released");
                yield_now();
                log.add("end");
            }
        });
        let next = spawn({
            let (log, mutex) = (log.clone(), Rc::clone(&mutex));
            move || {
                let value = mutex.lock();
                log.add(Coroutine::current().unwrap().try_enter().unwrap_err());
                *value
            }
        });
        assert_eq!(next.join().unwrap(), 1);
        holder.join().unwrap();
        let said = log.take();
        assert!(said.starts_with("released recursive entry of #2: main > loop > #2"), "{said}");
    });
}

#[test]
fn long_handover_chain_does_not_grow_the_stack() {
    // S1: the stack does not grow while 25,000 coroutines each take the lock, hand it on and end
    // (H8)
    let count = scaled(25_000);
    let work = move || {
        let run = |ctx: &AioContext| {
            let mutex = Rc::new(CoMutex::new(0));
            let deepest = Rc::new(Cell::new(0));
            let guard = mutex.try_lock().unwrap();
            let tasks: Vec<_> = (0..count)
                .map(|n| {
                    let (mutex, deepest) = (Rc::clone(&mutex), Rc::clone(&deepest));
                    let co = Coroutine::new(move || {
                        let mut turn = mutex.lock();
                        assert_eq!(*turn, n);
                        *turn += 1;
                        let chain = Coroutine::current().unwrap().try_enter().unwrap_err().to_string();
                        deepest.set(deepest.get().max(chain.matches(" > ").count()));
                    });
                    co.enter();
                    co
                })
                .collect();
            drop(guard);
            // One iteration: each that ends wakes the next, from the same frame. The chain is main
            // > loop > one of them.
            ctx.poll(false);
            assert!(tasks.iter().all(|co| co.has_ended()));
            assert_eq!((*mutex.try_lock().unwrap(), deepest.get()), (count, 2));
        };
        AioContext::builder().stack_size(16 * 1024).run(run).unwrap();
    };
    // A thread whose stack is so small that even a few bytes for each hand-over would not fit.
    thread::Builder::new().stack_size(256 * 1024).spawn(work).unwrap().join().unwrap();
}

/// Returns an address in the caller's frame.
#[inline(never)]
fn stack_address() -> usize {
    let here = 0u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "its locals do not lie on the stack")]
fn handovers_keep_the_callers_stack_depth() {
    // S1: two coroutines that pass the lock back and forth are resumed from the same depth of the
    // thread's stack
    AioContext::run(|ctx| {
        let mutex = Rc::new(CoMutex::new(0));
        let tasks: Vec<_> = (0..2)
            .map(|_| {
                let mutex = Rc::clone(&mutex);
                spawn(move || {
                    let begun = stack_address();
                    for _ in 0..scaled(12_500) {
                        let mut turn = mutex.lock();
                        *turn += 1;
                        yield_now();
                        drop(turn);
                        assert_eq!(stack_address(), begun);
                    }
                })
            })
            .collect();
        let (mut low, mut high) = (usize::MAX, 0);
        while !tasks.iter().all(JoinHandle::is_finished) {
            let lowest = Arc::new(AtomicUsize::new(0));
            ctx.schedule_oneshot({
                let lowest = Arc::clone(&lowest);
                move || lowest.store(stack_address(), Ordering::Relaxed)
            })
            .unwrap();
            ctx.poll(false);
            let address = lowest.load(Ordering::Relaxed);
            (low, high) = (low.min(address), high.max(address));
        }
        join_all(tasks);
        assert_eq!(low, high);
    });
}

#[test]
fn mutex_is_exclusive_between_two_threads_of_a_hundred_coroutines() {
    // S1: between coroutines of two contexts on two threads, no increment is lost, and the lock is
    // exclusive
    let (coroutines, rounds) = (100, scaled(1000));
    let mutex = Arc::new((CoMutex::new(0u64), AtomicUsize::new(0)));
    let begin = Barrier::new(2);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                AioContext::run(|_| {
                    begin.wait();
                    let tasks: Vec<_> = (0..coroutines)
                        .map(|n| {
                            let shared = Arc::clone(&mutex);
                            spawn(move || {
                                for round in 0..rounds {
                                    let mut count = shared.0.lock();
                                    assert_eq!(shared.1.fetch_add(1, Ordering::Relaxed), 0);
                                    *count += 1;
                                    if (round + n) % 16 == 0 {
                                        yield_now();
                                    }
                                    shared.1.fetch_sub(1, Ordering::Relaxed);
                                }
                            })
                        })
                        .collect();
                    join_all(tasks);
                });
            });
        }
    });
    let expected = 2 * coroutines * rounds;
    assert_eq!(*mutex.0.try_lock().unwrap(), expected as u64);
}

#[test]
fn panic_releases_the_lock() {
    // C8: a panic under the lock releases it, and the next waiter gets it; so does one on the
    // thread's own stack
    AioContext::run(|ctx| {
        let mutex = Rc::new(CoMutex::new(0));
        let bad = spawn({
            let mutex = Rc::clone(&mutex);
            move || {
                let _guard = mutex.lock();
                yield_now();
                panic!("under the lock");
            }
        });
        let next = |add: i32| {
            let mutex = Rc::clone(&mutex);
            spawn(move || {
                let mut value = mutex.lock();
                yield_now();
                *value += add;
                *value
            })
        };
        let (first, second) = (next(1), next(10));
        assert_eq!(panic_in(bad), "under the lock");
        assert_eq!((first.join().unwrap(), second.join().unwrap()), (1, 11));

        let third = next(100);
        panic_of(|| {
            let _guard = mutex.try_lock().unwrap();
            ctx.poll(false);
            panic!("on the thread's own stack");
        });
        assert_eq!(third.join().unwrap(), 111);
        assert!(mutex.try_lock().is_some());
    });
}

#[test]
fn unrelated_wake_keeps_the_place_in_the_queue() {
    // S1: a waiter woken without a grant keeps its place in the queue
    AioContext::run(|ctx| {
        let log = Log::default();
        let mutex = Rc::new(CoMutex::new(()));
        let guard = mutex.try_lock().unwrap();
        let waiting: Vec<_> = ["a", "b"]
            .into_iter()
            .map(|name| {
                let (log, mutex) = (log.clone(), Rc::clone(&mutex));
                let co = Coroutine::new(move || {
                    let _guard = mutex.lock();
                    log.add(name);
                });
                co.enter();
                co
            })
            .collect();
        for _ in 0..3 {
            waiting[1].wake();
            waiting[0].enter();
        }
        assert_eq!(log.take(), "");
        drop(guard);
        ctx.poll(false);
        assert_eq!(log.take(), "a b");
    });
}

#[test]
fn free_lock_is_taken_outside_a_coroutine() {
    // S1: outside a coroutine a free lock can be taken; a held lock panics with the remedy, and
    // stays consistent
    let mutex = CoMutex::new(5);
    let guard = mutex.lock();
    let said = panic_of(|| mutex.lock());
    assert!(said.contains("spawn one"), "{said}");
    assert!(mutex.try_lock().is_none());
    drop(guard);
    assert_eq!(*mutex.lock(), 5);
    assert_eq!(format!("{mutex:?}"), "CoMutex { value: 5 }");
    assert_eq!(mutex.into_inner(), 5);
}

#[test]
fn queue_wakes_in_order() {
    // S2: wake_one and wake_all wake in order of arrival, and later arrivals wait
    AioContext::run(|ctx| {
        let log = Log::default();
        let shared = Rc::new((CoMutex::new(0), CoQueue::new()));
        let tasks: Vec<_> = (0..6)
            .map(|n| {
                let (log, shared) = (log.clone(), Rc::clone(&shared));
                spawn(move || {
                    let guard = shared.1.wait(shared.0.lock());
                    log.add(n);
                    drop(guard);
                })
            })
            .collect();
        ctx.poll(false);
        assert!(shared.0.try_lock().is_some(), "wait released the mutex");
        assert!(shared.1.wake_one() && shared.1.wake_one());
        assert_eq!(log.take(), "", "they run in the next round");
        ctx.poll(false);
        assert_eq!(log.take(), "0 1");
        let waker = spawn({
            let (log, shared) = (log.clone(), Rc::clone(&shared));
            move || {
                shared.1.wake_all();
                log.add("woke");
            }
        });
        waker.join().unwrap();
        join_all(tasks);
        assert_eq!(log.take(), "woke 2 3 4 5");
        assert!(!shared.1.wake_one());
    });
}

#[test]
fn wake_all_wakes_each_waiter_once() {
    // S2: wake_all wakes the present waiters; one that waits again meanwhile is not woken twice
    AioContext::run(|ctx| {
        let log = Log::default();
        let shared = Rc::new((CoMutex::new(()), CoQueue::new()));
        for n in 0..3 {
            let (log, shared) = (log.clone(), Rc::clone(&shared));
            drop(spawn(move || {
                let mut guard = shared.0.lock();
                loop {
                    guard = shared.1.wait(guard);
                    log.add(n);
                }
            }));
        }
        ctx.poll(false);
        shared.1.wake_all();
        while ctx.poll(false) {}
        assert_eq!(log.take(), "0 1 2");
        shared.1.wake_one();
        ctx.poll(false);
        assert_eq!(log.take(), "0");
    });
}

#[test]
fn wait_reacquires_the_mutex() {
    // S2: wait releases the mutex and takes it again: a producer and consumers on two threads lose
    // nothing
    let shared = Arc::new((CoMutex::new(Vec::<usize>::new()), CoQueue::new()));
    let count = scaled(5000);
    let sum = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            AioContext::run(|_| {
                let consumer = || {
                    let shared = Arc::clone(&shared);
                    spawn(move || {
                        let mut sum = 0;
                        loop {
                            let mut items = shared.0.lock();
                            while items.is_empty() {
                                items = shared.1.wait(items);
                            }
                            match items.pop().unwrap() {
                                0 => return sum,
                                item => sum += item,
                            }
                        }
                    })
                };
                let consumers: Vec<_> = (0..4).map(|_| consumer()).collect();
                sum.fetch_add(join_all(consumers).into_iter().sum(), Ordering::Relaxed);
            });
        });
        scope.spawn(|| {
            AioContext::run(|_| {
                let shared = Arc::clone(&shared);
                let producer = spawn(move || {
                    for item in (1..=count).chain([0; 4]) {
                        let mut items = shared.0.lock();
                        // The zeros, which end the consumers, must come out last.
                        items.insert(0, item);
                        drop(items);
                        shared.1.wake_one();
                    }
                });
                producer.join().unwrap();
            });
        });
    });
    assert_eq!(sum.into_inner(), count * (count + 1) / 2);
}

#[test]
fn waiter_unwound_in_the_queue_blocks_no_other() {
    // C9: waiters leave the queue when their context ends; the lock goes to coroutines of another
    // context
    let mutex = Arc::new(CoMutex::new(0));
    let (ready, done) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        let guard = mutex.try_lock().unwrap();
        scope.spawn(|| {
            AioContext::run(|ctx| {
                for _ in 0..5 {
                    let mutex = Arc::clone(&mutex);
                    drop(spawn(move || *mutex.lock() += 1));
                }
                ctx.poll(false);
            });
            ready.wait();
            done.wait();
        });
        ready.wait();
        drop(guard);
        assert_eq!(*mutex.try_lock().unwrap(), 0);
        done.wait();
    });
    // An owner whose context ends releases the lock.
    AioContext::run(|_| {
        let order = Rc::new(RefCell::new(Vec::new()));
        let (mutex, order_in) = (Arc::clone(&mutex), Rc::clone(&order));
        let co = Coroutine::new(move || {
            let mut value = mutex.lock();
            order_in.borrow_mut().push(*value);
            *value += 1;
            suspend();
        });
        co.enter();
        assert_eq!(*order.borrow(), [0]);
    });
    assert_eq!(*mutex.try_lock().unwrap(), 1);
}

#[test]
fn unlock_outside_a_coroutine_enters_no_coroutine() {
    // S1: a destructor enters no coroutine: the next owner runs in the loop's next iteration, not
    // on top of the releaser.
    AioContext::run(|ctx| {
        let lock = Rc::new(CoMutex::new(0));
        let guard = lock.try_lock().unwrap();
        let waiter = Coroutine::new({
            let lock = Rc::clone(&lock);
            move || *lock.lock() += 1
        });
        waiter.enter();
        drop(guard);
        assert!(!waiter.has_ended());
        assert!(ctx.poll(false));
        assert!(waiter.has_ended());
        assert_eq!(*lock.try_lock().unwrap(), 1);
    });
}

#[test]
fn join_ends_on_cancel() {
    // S4: a timeout around a join ends the join, and cancels the joined coroutine, which continues
    // and ends by itself
    AioContext::run(|_| {
        let task = spawn(|| {
            let inner = spawn(|| sleep(Duration::from_secs(3600)));
            let joined = inner.coroutine();
            let late = timeout(Duration::from_millis(1), || inner.join().unwrap_err().is::<Cancelled>());
            assert_eq!(late, Err(TimedOut));
            while !joined.has_ended() {
                yield_now();
            }
        });
        task.join().unwrap();
    });
}
