//! Requests on io_uring that do not complete within submit: the loop's sleep submits them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use coralio::context::AioContext;
use coralio::engine::Engine;
use coralio::engine::io_uring::IoUring;
use coralio::task::Cancelled;
use coralio::{JoinHandle, spawn, yield_now};

use crate::uring::{Never, with_depth, with_engine};

/// Spawns a coroutine that reads `count` times.
fn reader(engine: &Arc<Engine<IoUring>>, never: &Never, count: usize) -> JoinHandle<()> {
    let (engine, never) = (Arc::clone(engine), never.clone());
    spawn(move || (0..count).for_each(|_| assert_eq!(never.read(&engine), 1)))
}

/// Starts a thread that completes each of `count` reads when it is in flight.
fn signal_each(engine: &Arc<Engine<IoUring>>, never: &Never, count: u64) -> thread::JoinHandle<()> {
    let (engine, never) = (Arc::clone(engine), never.clone());
    thread::spawn(move || {
        for number in 0..count {
            while (engine.stats().completions, engine.stats().in_flight) != (number, 1) {
                thread::yield_now();
            }
            never.signal();
        }
    })
}

/// Completes one read, after which the engine expects that reads wait.
fn teach(context: &AioContext, engine: &Arc<Engine<IoUring>>, never: &Never) {
    let reader = reader(engine, never, 1);
    context.poll(false);
    assert_eq!(engine.stats().in_flight, 1);
    never.signal();
    reader.join().unwrap();
}

#[test]
fn sleep_submits_requests_that_wait() {
    // E2, E8: after a submit that completed nothing, the next 63 batches are submitted by the call
    // in which the loop sleeps, and the one after them by a submit
    let never = Never::new();
    with_engine(|_, engine| {
        const READS: usize = 129;
        let signals = signal_each(engine, &never, READS as u64);
        reader(engine, &never, READS).join().unwrap();
        let stats = engine.stats();
        assert_eq!((stats.completions, stats.submits), (READS as u64, 3));
        // A read that was submitted directly may complete before the loop sleeps.
        assert!((READS as u64 - 3..=READS as u64).contains(&stats.sleeps), "{} sleeps", stats.sleeps);
        signals.join().unwrap();
    });
}

#[test]
fn sleep_submits_the_request_that_there_is_room_for() {
    // E2, E8: the same for several coroutines at queue depth 1, where every request fills the queue
    let never = Never::new();
    with_depth(1, |_, engine| {
        const READERS: usize = 4;
        const READS: usize = 20;
        let signals = signal_each(engine, &never, (READERS * READS) as u64);
        let readers = [(); READERS].map(|()| reader(engine, &never, READS));
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        let stats = engine.stats();
        assert_eq!(stats.completions, (READERS * READS) as u64);
        assert!(stats.submits < 10, "{} submits", stats.submits);
        signals.join().unwrap();
    });
}

#[test]
fn requests_that_complete_within_submit_are_not_deferred() {
    // E2, E8: each has a submit of its own; after a request that waits, 63 are deferred before one is
    // submitted directly, and shows that the next ones need not be
    const READS: u64 = 300;
    const DEFERRED: u64 = 63;
    let (never, ready) = (Never::new(), Never::new());
    with_engine(|context, engine| {
        for waits in [false, true] {
            if waits {
                teach(context, engine, &never);
            }
            let before = engine.stats();
            let (reads, made) = (Arc::clone(engine), ready.clone());
            let reader = spawn(move || {
                for _ in 0..READS {
                    made.signal();
                    assert_eq!(made.read(&reads), 1);
                }
            });
            reader.join().unwrap();
            let after = engine.stats();
            let deferred = if waits { DEFERRED } else { 0 };
            assert_eq!(after.submits - before.submits, READS - deferred);
        }
    });
}

#[test]
fn measured_submits_are_not_deferred() {
    // E8, E14: with a threshold for slow submits no request is left to the sleep, whose time is not
    // that of a submit
    let never = Never::new();
    with_engine(|_, engine| {
        const READS: u64 = 100;
        engine.set_slow_submit_threshold(Duration::ZERO);
        let signals = signal_each(engine, &never, READS);
        reader(engine, &never, READS as usize).join().unwrap();
        assert_eq!((engine.stats().submits, engine.stats().slow_submits), (READS, READS));
        signals.join().unwrap();
    });
}

#[test]
fn deferred_requests_do_not_exceed_the_depth() {
    // E2, E8: the loop's sleep submits only as many requests as the engine's depth has room for,
    // although the ring has more
    let never = Never::new();
    with_depth(6, |context, engine| {
        teach(context, engine, &never);
        let mut readers: Vec<_> = (0..3).map(|_| reader(engine, &never, 1)).collect();
        context.poll(false);
        assert_eq!(engine.stats().in_flight, 3);
        readers.extend((0..5).map(|_| reader(engine, &never, 1)));
        let (watched, signals) = (Arc::clone(engine), never.clone());
        let most = thread::spawn(move || {
            let mut most = 3;
            for completions in 1..9 {
                // The first sleep submits; a later one, the rest.
                while watched.stats().completions != completions || most == 3 {
                    most = most.max(watched.stats().in_flight);
                    thread::yield_now();
                }
                signals.signal();
            }
            most
        });
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        assert_eq!(most.join().unwrap(), 6);
    });
}

#[test]
fn busy_loop_submits_held_requests() {
    // E8: a loop that never sleeps submits a request after two iterations at the latest
    let never = Never::new();
    with_engine(|_, engine| {
        const READS: usize = 100;
        let reader = reader(engine, &never, READS);
        let counted = Arc::clone(engine);
        let (engine, never) = (Arc::clone(engine), never.clone());
        let spins = spawn(move || {
            for number in 0..READS as u64 {
                let mut rounds = 0;
                while engine.stats().in_flight == 0 {
                    yield_now();
                    rounds += 1;
                    assert!(rounds <= 3, "read {number} is still pending after {rounds} iterations");
                }
                never.signal();
                while engine.stats().completions == number {
                    yield_now();
                }
            }
        });
        spins.join().unwrap();
        reader.join().unwrap();
        assert_eq!(counted.stats().submits, READS as u64, "no system call without a request");
    });
}

/// Runs `f` while a poll handler keeps the loop from sleeping and calls `each`; fails after a
/// thousand calls.
fn without_sleeping(context: &AioContext, never: &Never, each: impl Fn() + Send + 'static, f: impl FnOnce()) {
    let mut calls = 0;
    let never = never.clone();
    let count = move || {
        calls += 1;
        if calls == 1000 {
            // The context's end waits for the request.
            never.signal();
            panic!("a request is still waiting after {calls} iterations");
        }
        each();
    };
    let handler = context.add_poll_handler(|| true, count).unwrap();
    f();
    drop(handler);
}

#[test]
fn deferred_request_is_submitted_if_the_loop_does_not_sleep() {
    // E8, X5: the loop has left a request to its sleep, and then finds work instead of sleeping
    let never = Never::new();
    with_engine(|context, engine| {
        teach(context, engine, &never);
        let (watched, signalled) = (Arc::clone(engine), never.clone());
        let signals = move || {
            if watched.stats().in_flight == 1 {
                signalled.signal();
            }
        };
        without_sleeping(context, &never, signals, || reader(engine, &never, 1).join().unwrap());
    });
}

#[test]
fn deferred_request_can_be_cancelled() {
    // E11: a request that was left to the loop's sleep, and that the kernel has not seen, is
    // cancelled
    let never = Never::new();
    with_engine(|context, engine| {
        teach(context, engine, &never);
        let (reads, watched) = ((Arc::clone(engine), never.clone()), Arc::clone(engine));
        let reader = spawn(move || reads.1.try_read(&reads.0).unwrap_err());
        let waker = reader.coroutine().waker();
        let has_cancelled = AtomicBool::new(false);
        let cancels = move || {
            // Once: the kernel would find the request later.
            if watched.stats().in_flight == 1 && !has_cancelled.swap(true, Ordering::Relaxed) {
                waker.cancel();
            }
        };
        without_sleeping(context, &never, cancels, || {
            let error = reader.join().unwrap();
            assert!(Cancelled::is_cause_of(&error), "{error}");
        });
    });
}

#[test]
fn only_a_loop_that_continues_holds_requests() {
    // E8: when a poll by the user, or a wait that runs the loop, has returned, no request of its
    // last iteration is pending
    let never = Never::new();
    with_engine(|context, engine| {
        teach(context, engine, &never);
        let state = || (engine.stats().pending, engine.stats().in_flight);
        let polled = reader(engine, &never, 1);
        context.poll(true);
        assert_eq!(state(), (0, 1));
        never.signal();
        polled.join().unwrap();

        let reads = reader(engine, &never, 1);
        spawn(|| ()).join().unwrap();
        assert_eq!(state(), (0, 1));
        never.signal();
        reads.join().unwrap();
    });
}

#[test]
fn completion_on_the_ring_does_not_hide_a_held_request() {
    // E8: a wait that runs the loop submits held requests when it ends, whatever else has happened
    let never = Never::new();
    with_engine(|context, engine| {
        teach(context, engine, &never);
        let first = reader(engine, &never, 1);
        context.poll(false);
        let later = Never::new();
        // Ends in the iteration in which `second` makes its request, after the first one's
        // completion has arrived.
        let second = reader(engine, &later, 1);
        let completes = never.clone();
        spawn(move || completes.signal()).join().unwrap();
        let stats = engine.stats();
        assert_eq!(stats.pending, 0, "{stats:?}");
        later.signal();
        [first, second].into_iter().for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn no_request_waits_for_those_of_later_iterations() {
    // E8: a poll handler that makes a request in each iteration and keeps the loop from sleeping, as
    // a virtual disk does: each is submitted after two iterations at the latest
    let ready = Never::new();
    (0..200).for_each(|_| ready.signal());
    with_engine(|context, engine| {
        teach(context, engine, &Never::new());
        let made = Arc::new(AtomicU64::new(0));
        let (count, counted) = (Arc::clone(&made), Arc::clone(engine));
        let reads = (Arc::clone(engine), ready.clone());
        let before = engine.stats().completions;
        let each = move || {
            let made = count.fetch_add(1, Ordering::Relaxed);
            let late = before + made - counted.stats().completions;
            assert!(late <= 3, "{late} of {made} requests have not completed");
            let reads = reads.clone();
            // Completes as soon as the kernel has it.
            drop(spawn(move || {
                reads.1.signal();
                reads.1.try_read(&reads.0)
            }));
        };
        without_sleeping(context, &ready, each, || context.poll_while(|| made.load(Ordering::Relaxed) < 100));
    });
}

#[test]
fn busy_polling_loop_submits_first() {
    // E8, X5: a loop that polls in memory for completions leaves no request to its sleep: the
    // completion would not come
    let never = Never::new();
    with_engine(|context, engine| {
        const READS: u64 = 20;
        context.set_busy_poll_max(Duration::from_micros(50));
        let signals = signal_each(engine, &never, READS);
        reader(engine, &never, READS as usize).join().unwrap();
        assert_eq!(engine.stats().submits, READS);
        signals.join().unwrap();
    });
}

#[test]
fn full_queue_is_submitted_immediately() {
    // E3: as many requests as the queue is deep do not wait for the end of the iteration, whatever
    // the engine expects of them
    let never = Never::new();
    with_engine(|context, engine| {
        teach(context, engine, &never);
        let readers: Vec<_> = (0..8).map(|_| reader(engine, &never, 1)).collect();
        let watched = Arc::clone(engine);
        spawn(move || assert_eq!((watched.stats().pending, watched.stats().in_flight), (0, 8))).join().unwrap();
        drop(readers);
    });
}

#[test]
fn end_of_the_context_completes_deferred_requests() {
    // C9, E13: a panic of a callback ends the context before the loop has slept: the request is
    // submitted, cancelled and awaited
    let never = Never::new();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        with_engine(|context, engine| {
            teach(context, engine, &never);
            let watched = Arc::clone(engine);
            let panics = move || assert!(watched.stats().in_flight == 0, "in flight");
            let reads = reader(engine, &never, 1);
            without_sleeping(context, &never, panics, || reads.join().unwrap());
        })
    }));
    // Without a panic io_uring is forbidden.
    assert!(!matches!(ended, Ok(Some(()))));
}
