//! Requests that a coroutine makes one at a time: submitted immediately, while nothing else is to run.

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use coralio::context::AioContext;
use coralio::coroutine::{Coroutine, suspend};
use coralio::net::CoFd;
use coralio::task::spawn_now;
use coralio::{JoinHandle, spawn};

use crate::{Watch, touch, with_engine};

/// Runs `coroutines` that make `count` requests each. Returns the number of submits, and of iterations
/// of the loop.
fn submits_and_rounds(context: &AioContext, engine: &Watch, coroutines: usize, count: usize) -> (u64, usize) {
    let before = engine.stats().submits;
    let running = (0..coroutines).map(|_| {
        let engine = engine.clone();
        spawn(move || (0..count).for_each(|_| assert_eq!(touch(&engine, 1), Ok(0))))
    });
    let running: Vec<_> = running.collect();
    let mut rounds = 0;
    while !running.iter().all(|one| one.is_finished()) {
        context.poll(false);
        rounds += 1;
    }
    running.into_iter().for_each(|one| one.join().unwrap());
    (engine.stats().submits - before, rounds)
}

#[test]
fn lone_requests_are_submitted_immediately() {
    // E7, E8: after eight batches of one request, a coroutine's next requests do not wait for the
    // loop, which gets a turn after 32; coroutines that join it share submits again
    with_engine(8, |context, backend, engine| {
        (0..5 * 330 + 8).for_each(|number| backend.script.complete_on_submit(number, number));
        let (submits, rounds) = submits_and_rounds(context, engine, 1, 330);
        assert_eq!(submits, 330);
        assert!((8 + 330 / 40..8 + 330 / 20).contains(&rounds), "{rounds} iterations");
        let (submits, _) = submits_and_rounds(context, engine, 4, 330);
        assert!(submits < 330 + 40, "{submits} submits for 4 times 330 requests");
        let (_, rounds) = submits_and_rounds(context, engine, 1, 8);
        assert!(rounds >= 8, "{rounds} iterations for the first 8 requests");
    });
}

/// Spawns a coroutine that makes `count` requests.
fn spawn_reader(engine: &Watch, count: usize) -> JoinHandle<()> {
    let engine = engine.clone();
    spawn(move || (0..count).for_each(|_| assert_eq!(touch(&engine, 1), Ok(0))))
}

/// Lets eight coroutines, which a bottom half enters one after the other, make a request each, twenty
/// times. Returns the number of submits.
fn submits_of_bursts(context: &AioContext, engine: &Watch) -> u64 {
    const BURSTS: usize = 20;
    let served = Rc::new(Cell::new(0));
    let readers = [(); 8].map(|()| {
        let (engine, served) = (engine.clone(), Rc::clone(&served));
        let reader = Coroutine::new(move || {
            for _ in 0..BURSTS {
                suspend();
                assert_eq!(touch(&engine, 1), Ok(0));
                served.set(served.get() + 1);
            }
        });
        reader.enter();
        reader
    });
    let before = engine.stats().submits;
    for burst in 1..=BURSTS {
        let wakers: Vec<_> = readers.each_ref().map(|reader| reader.waker()).into();
        context.schedule_oneshot(move || wakers.iter().for_each(|reader| reader.wake())).unwrap();
        context.poll_while(|| served.get() < burst * 8);
    }
    engine.stats().submits - before
}

#[test]
fn coroutines_entered_one_by_one_share_a_submit() {
    // E3: after many batches of one request, several coroutines that make a request in the same
    // iteration share a submit, whether requests complete within it or later
    for complete_within in [true, false] {
        with_engine(64, |context, backend, engine| {
            if complete_within {
                (0..20 * 9).for_each(|number| backend.script.complete_on_submit(number, number));
            }
            spawn_reader(engine, 20).join().unwrap();
            // The first burst may need two: a coroutine may have the number of one that has ended.
            let submits = submits_of_bursts(context, engine);
            assert!((20..=21).contains(&submits), "{submits} submits");
        });
    }
}

#[test]
fn coroutines_entered_by_one_that_reads_share_a_submit() {
    // E3: a coroutine reads, and enters others that read too, repeatedly: the latter share a submit
    with_engine(64, |_, _, engine| {
        const ROUNDS: u64 = 20;
        spawn_reader(engine, 20).join().unwrap();
        let before = engine.stats().submits;
        let reads = engine.clone();
        let coordinator = spawn(move || {
            for _ in 0..ROUNDS {
                assert_eq!(touch(&reads, 0), Ok(0));
                let readers = [1, 2, 3, 4].map(|offset| {
                    let reads = reads.clone();
                    spawn_now(move || touch(&reads, offset))
                });
                readers.into_iter().for_each(|reader| assert_eq!(reader.join().unwrap(), Ok(0)));
            }
        });
        coordinator.join().unwrap();
        assert_eq!(engine.stats().submits - before, 2 * ROUNDS);
    });
}

type Effect = Box<dyn Fn() + Send>;

/// Lets a coroutine make requests that complete within submit; after `first` of them it calls `cause`,
/// whose result lives until the last. Returns how many requests followed before the effect, which calls
/// the argument of `cause`.
fn requests_before<T: 'static>(cause: fn(&AioContext, Effect) -> T, first: usize) -> u64 {
    const LATER: usize = 300;
    with_engine(8, |context, backend, engine| {
        (0..first + LATER).for_each(|number| backend.script.complete_on_submit(number, number));
        let (context, engine) = (context.clone(), engine.clone());
        let reader = spawn(move || {
            let read = || assert_eq!(touch(&engine, 1), Ok(0));
            (0..first).for_each(|_| read());
            let made = Arc::new(AtomicU64::new(0));
            let at_effect = Arc::new(AtomicU64::new(u64::MAX));
            let (seen, at) = (Arc::clone(&made), Arc::clone(&at_effect));
            let effect = move || _ = at.fetch_min(seen.load(Ordering::Relaxed), Ordering::Relaxed);
            let _cause = cause(&context, Box::new(effect));
            (0..LATER).for_each(|_| {
                read();
                made.fetch_add(1, Ordering::Relaxed);
            });
            at_effect.load(Ordering::Relaxed)
        });
        // With sleeps, unlike `poll(false)`: a busy loop polls descriptors every eighth time.
        reader.join().unwrap()
    })
}

/// Returns the largest result of `requests_before`, whatever the loop was at when the cause came.
fn most_requests_before<T: 'static>(cause: fn(&AioContext, Effect) -> T) -> u64 {
    (100..400).step_by(7).map(|first| requests_before(cause, first)).max().unwrap()
}

#[test]
fn lone_requests_do_not_delay_events() {
    // E8, W2, X5, X7: a coroutine whose requests complete within submit delays a bottom half, or the wake
    // of another thread, by two requests, and a poll handler, a timer or a descriptor by about eight
    let bottom_half = most_requests_before(|context, effect| context.schedule_oneshot(effect).unwrap());
    assert!(bottom_half <= 2, "{bottom_half} requests before a bottom half");

    let wake = most_requests_before(|_, effect| {
        let sleeper = spawn_now(move || {
            suspend();
            effect();
        });
        let waker = sleeper.coroutine().waker();
        thread::spawn(move || waker.wake()).join().unwrap();
        sleeper
    });
    assert!(wake <= 2, "{wake} requests before a coroutine that another thread woke");

    let poll_handler = most_requests_before(|context, effect| context.add_poll_handler(|| true, effect).unwrap());
    assert!(poll_handler <= 10, "{poll_handler} requests before a poll handler");

    let timer = most_requests_before(|context, effect| {
        let timer = context.new_timer(effect).unwrap();
        timer.arm_at(context.now());
        timer
    });
    assert!(timer <= 10, "{timer} requests before a timer");

    let descriptor = most_requests_before(|_, effect| {
        let (socket, mut peer) = UnixStream::pair().unwrap();
        let waiter = spawn_now(move || {
            CoFd::new(socket).unwrap().read_exact(&mut [0]).unwrap();
            effect();
        });
        peer.write_all(b"!").unwrap();
        waiter
    });
    assert!(descriptor <= 10, "{descriptor} requests before a descriptor");
}
