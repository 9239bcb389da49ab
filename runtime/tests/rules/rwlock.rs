//! CoRwLock: shared readers, exclusive writers, in order; upgrades, downgrades, cancellation, and
//! consistency after panics.

use std::rc::Rc;
use std::time::Duration;

use crate::common::{Log, panic_of};
use coralio_runtime::{AioContext, Cancelled, CoRwLock, Coroutine, JoinHandle, TimedOut, spawn, timeout, yield_now};

/// Spawns coroutines that take the lock in this order, and hold it for one iteration of the loop:
/// `r` reads, `w` writes.
fn take_in_order(lock: &Rc<CoRwLock<u32>>, log: &Log, order: &str) -> Vec<JoinHandle<()>> {
    let take = |what| {
        let (lock, log) = (Rc::clone(lock), log.clone());
        spawn(move || match what {
            'r' => {
                let value = lock.read();
                log.add(format_args!("r{}", *value));
                yield_now();
                log.add("-");
            }
            _ => {
                let mut value = lock.write();
                *value += 1;
                log.add(format_args!("w{}", *value));
                yield_now();
                log.add("-");
            }
        })
    };
    order.chars().map(take).collect()
}

fn join_all(tasks: Vec<JoinHandle<()>>) {
    tasks.into_iter().for_each(|task| task.join().unwrap());
}

#[test]
fn waiters_are_served_in_order() {
    // S3: readers share, writers are exclusive, all in order of arrival: no reader overtakes a
    // writer
    AioContext::run(|_| {
        let (lock, log) = (Rc::new(CoRwLock::new(0)), Log::default());
        join_all(take_in_order(&lock, &log, "rrwwrrrwr"));
        assert_eq!(log.take(), "r0 r0 - - w1 - w2 - r2 r2 r2 - - - w3 - r3 -");
        assert_eq!(Rc::into_inner(lock).unwrap().into_inner(), 3);
    });
}

#[test]
fn stream_of_readers_does_not_starve_a_writer() {
    // S3: a writer gets in despite an endless stream of overlapping readers, after those that held
    // the lock when it arrived
    AioContext::run(|_| {
        let lock = Rc::new(CoRwLock::new(0));
        let mut readers: Vec<_> = (0..2)
            .map(|n| {
                let lock = Rc::clone(&lock);
                spawn(move || {
                    let mut reads = 0;
                    (0..n).for_each(|_| yield_now());
                    loop {
                        let value = lock.read();
                        yield_now();
                        yield_now();
                        if *value == 1 {
                            return reads;
                        }
                        reads += 1;
                    }
                })
            })
            .collect();
        let writer = spawn({
            let lock = Rc::clone(&lock);
            move || {
                (0..10).for_each(|_| yield_now());
                assert!(lock.try_write().is_none(), "others read");
                *lock.write() = 1;
            }
        });
        writer.join().unwrap();
        assert!(readers.drain(..).all(|reader| (2..8).contains(&reader.join().unwrap())));
    });
}

#[test]
fn try_lock_overtakes_no_waiter() {
    // S3: try_read and try_write take a free lock, and overtake no waiter
    AioContext::run(|ctx| {
        let lock = Rc::new(CoRwLock::new(0));
        let reading = (lock.try_read().unwrap(), lock.try_read().unwrap());
        assert!(lock.try_write().is_none());
        let tasks = take_in_order(&lock, &Log::default(), "w");
        ctx.poll(false);
        assert!(lock.try_read().is_none(), "a writer waits");
        drop(reading);
        assert!(lock.try_read().is_none() && lock.try_write().is_none(), "handed over, never free in between");
        join_all(tasks);
        let writing = lock.try_write().unwrap();
        assert!(lock.try_read().is_none() && lock.try_write().is_none());
        assert_eq!(format!("{lock:?} {writing:?}"), "CoRwLock { value: <locked> } 1");
        drop(writing);
        assert_eq!(format!("{lock:?}"), "CoRwLock { value: 1 }");
    });
}

#[test]
fn downgrade_admits_readers_up_to_the_next_writer() {
    // S3: a downgrade keeps writers out, and lets in the readers at the head of the queue
    AioContext::run(|ctx| {
        let (lock, log) = (Rc::new(CoRwLock::new(0)), Log::default());
        let mut writing = lock.try_write().unwrap();
        let tasks = take_in_order(&lock, &log, "rrwr");
        ctx.poll(false);
        *writing = 5;
        let reading = writing.downgrade();
        ctx.poll(false);
        assert_eq!((log.take(), *reading), ("r5 r5".to_string(), 5));
        assert!(lock.try_read().is_none(), "a writer waits");
        drop(reading);
        join_all(tasks);
        assert_eq!(log.take(), "- - w6 - r6 -");

        let alone = lock.try_write().unwrap().downgrade();
        assert!(lock.try_read().is_some() && lock.try_write().is_none());
        drop(alone);
        assert!(lock.try_write().is_some());
    });
}

#[test]
fn upgrade_is_queued_in_order() {
    // S3: an upgrade is immediate if there is no other reader or waiter; else it releases its
    // share, and queues at the end
    AioContext::run(|ctx| {
        let (lock, log) = (Rc::new(CoRwLock::new(0)), Log::default());
        let mut writing = lock.try_read().unwrap().try_upgrade().unwrap();
        *writing += 1;
        drop(writing);

        let upgrade = |name: &'static str| {
            let (lock, log) = (Rc::clone(&lock), log.clone());
            spawn(move || {
                let reading = lock.read();
                log.add(format_args!("{name}{}", *reading));
                yield_now();
                let mut writing = match reading.try_upgrade() {
                    Ok(_) => panic!("others read"),
                    Err(reading) => reading.upgrade(),
                };
                *writing += 1;
                log.add(format_args!("{name}{}", *writing));
            })
        };
        let upgraders = vec![upgrade("a"), upgrade("b")];
        ctx.poll(false);
        assert_eq!(log.take(), "a1 b1");
        let others = take_in_order(&lock, &log, "wr");
        join_all(upgraders);
        join_all(others);
        // Both read as they upgrade: the value has changed meanwhile for all but the first.
        assert_eq!(log.take(), "a2 b3 w4 - r4 -");
    });
}

#[test]
fn upgrade_is_queued_behind_a_waiting_writer() {
    // S3: the only reader, upgrading with a writer in the queue, is served after the writer, and
    // does not block it
    AioContext::run(|ctx| {
        let (lock, log) = (Rc::new(CoRwLock::new(0)), Log::default());
        let upgrader = spawn({
            let (lock, log) = (Rc::clone(&lock), log.clone());
            move || {
                let reading = lock.read();
                yield_now();
                let mut writing = reading.upgrade();
                *writing += 1;
                log.add(format_args!("u{}", *writing));
            }
        });
        let writer = take_in_order(&lock, &log, "w");
        ctx.poll(false);
        upgrader.join().unwrap();
        join_all(writer);
        assert_eq!(log.take(), "w1 - u2");
    });
}

#[test]
fn wait_can_be_cancelled() {
    // S4: a `_cancellable` wait ends early by cancelling or a timeout; a plain wait does not
    AioContext::run(|ctx| {
        let lock = Rc::new(CoRwLock::new(0));
        let reading = lock.try_read().unwrap();
        let soon = Duration::from_millis(1);
        let wait = |f: fn(&CoRwLock<u32>) -> bool| {
            let lock = Rc::clone(&lock);
            spawn(move || f(&lock))
        };
        let cancelled = wait(|lock| matches!(lock.write_cancellable(), Err(Cancelled)));
        // Behind that writer; it gets in as soon as the writer has given up, although another
        // reader holds the lock.
        let behind = wait(|lock| *lock.read() == 0);
        ctx.poll(false);
        assert!(lock.try_read().is_none());
        cancelled.cancel();
        assert!(cancelled.join().unwrap() && behind.join().unwrap());
        assert!(lock.try_read().is_some(), "the queue is empty");

        let late = Rc::clone(&lock);
        let late = spawn(move || timeout(soon, || late.write_cancellable().is_err()));
        assert_eq!(late.join().unwrap(), Err(TimedOut));

        let stubborn = wait(|lock| {
            *lock.write() += 1;
            true
        });
        ctx.poll(false);
        stubborn.cancel();
        assert!(!stubborn.is_finished());
        drop(reading);
        assert!(stubborn.join().unwrap());

        let writing = lock.try_write().unwrap();
        let reader = wait(|lock| matches!(lock.read_cancellable(), Err(Cancelled)));
        ctx.poll(false);
        reader.cancel();
        assert!(reader.join().unwrap());
        drop(writing);
        // A cancelled coroutine still gets a free lock.
        let free = wait(|lock| lock.read_cancellable().is_ok() && lock.write_cancellable().is_ok());
        free.cancel();
        assert!(free.join().unwrap());
    });
}

#[test]
fn second_lock_by_the_same_coroutine_panics() {
    // S6: a writer that locks again, to write or to read, gets an error with the place of its first
    // lock; others do not
    AioContext::run(|_| {
        let lock = Rc::new(CoRwLock::new(0));
        let task = Coroutine::builder().name("greedy").spawn({
            let lock = Rc::clone(&lock);
            move || {
                let line = line!() + 1;
                let writing = lock.write();
                for said in [panic_of(|| drop(lock.write())), panic_of(|| drop(lock.read()))] {
                    assert!(said.starts_with("'greedy' locks a CoRwLock that it already holds"), "{said}");
                    assert!(said.contains(&format!("{}:{line}", file!())), "{said}");
                }
                // It held the lock before; that is no reason to refuse it while others read.
                drop(writing.downgrade());
                yield_now();
                *lock.write() += 1;
            }
        });
        let reader = take_in_order(&lock, &Log::default(), "r");
        task.unwrap().join().unwrap();
        join_all(reader);
        assert_eq!(*lock.try_read().unwrap(), 1);
    });
}

#[test]
fn free_lock_is_taken_outside_a_coroutine() {
    // S3: outside a coroutine a free lock can be taken; waiting panics with the remedy, and the
    // lock stays consistent
    let lock = CoRwLock::new(5);
    let reading = lock.read();
    assert_eq!(*lock.read(), 5);
    let said = panic_of(|| drop(lock.write()));
    assert!(said.contains("spawn one"), "{said}");
    assert!(lock.try_read().is_some(), "the queue is empty");
    // The share of a failed upgrade is released.
    let other = lock.read();
    panic_of(|| drop(other.upgrade()));
    drop(reading);
    *lock.write() += 1;
    assert_eq!(lock.into_inner(), 6);
}
