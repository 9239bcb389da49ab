//! The runtime's side. Setting up and warming up is not timed.

use std::cell::Cell;
use std::hint::black_box;
use std::rc::Rc;

use coralio_runtime::{AioContext, CoMutex, Coroutine, spawn, suspend, yield_now};

use crate::measure::{BATCH, cpu_time, time};

// Not inlined, in `bare` neither: a real program suspends deep within other calls.
#[inline(never)]
fn enter(co: Coroutine) {
    co.enter();
}

#[inline(never)]
fn pause() {
    suspend();
}

/// Measures `f` in a coroutine, while the loop runs.
fn in_coroutine(f: impl FnOnce() -> f64 + 'static) -> f64 {
    AioContext::run(|_| spawn(f).join().expect("no case panics"))
}

/// Into a coroutine and back.
pub(crate) fn enter_and_yield(times: u64) -> f64 {
    AioContext::run(|_| {
        let co = Coroutine::new(|| {
            loop {
                pause();
            }
        });
        enter(co);
        time(times, || (0..times).for_each(|_| enter(co)))
    })
}

/// A coroutine made, entered, and over.
pub(crate) fn create_enter_end(times: u64) -> f64 {
    AioContext::run(|_| {
        let one = |caught| Coroutine::new(move || _ = black_box(caught)).enter();
        one(0);
        time(times, || (0..times).for_each(one))
    })
}

/// A coroutine spawned, run by the loop, and over: a batch to each round.
pub(crate) fn spawn_and_end(times: u64) -> f64 {
    AioContext::run(|ctx| {
        let batch = || {
            for caught in 0..BATCH {
                drop(spawn(move || _ = black_box(caught)));
            }
            ctx.poll(false);
        };
        batch();
        time(times, || (0..times / BATCH).for_each(|_| batch()))
    })
}

/// A coroutine spawned, and its result waited for in another one.
pub(crate) fn spawn_and_join(times: u64) -> f64 {
    in_coroutine(move || {
        let one = |caught| drop(black_box(spawn(move || caught).join()));
        one(0);
        time(times, || (0..times).for_each(one))
    })
}

/// A lock that is free: taken and given up.
pub(crate) fn mutex(times: u64) -> f64 {
    in_coroutine(move || {
        let mutex = CoMutex::new(0);
        time(times, || (0..times).for_each(|_| *black_box(&mutex).lock() += 1))
    })
}

/// A bottom half scheduled, and the round that runs it.
pub(crate) fn bottom_half(times: u64) -> f64 {
    AioContext::run(|ctx| {
        let bh = ctx.bottom_half(|| _ = black_box(0));
        let one = |_| {
            bh.schedule();
            ctx.poll(false);
        };
        one(0);
        time(times, || (0..times).for_each(one))
    })
}

/// Through the loop and back, alone.
pub(crate) fn yield_now_alone(times: u64) -> f64 {
    in_coroutine(move || time(times, || (0..times).for_each(|_| yield_now())))
}

/// As before, while another one does the same: two yields to each round of the loop.
pub(crate) fn yield_now_in_turns(times: u64) -> f64 {
    in_coroutine(move || {
        let over = Rc::new(Cell::new(false));
        let other = spawn({
            let over = Rc::clone(&over);
            move || {
                while !over.get() {
                    yield_now();
                }
            }
        });
        yield_now();
        let before = cpu_time();
        (0..times / 2).for_each(|_| yield_now());
        let took = cpu_time() - before;
        over.set(true);
        other.join().expect("it only yields");
        took / times as f64
    })
}

/// Two that wake each other and suspend: no round of the loop between them.
pub(crate) fn wake(times: u64) -> f64 {
    AioContext::run(|_| {
        let (ours, theirs) = (Rc::new(Cell::new(None::<Coroutine>)), Rc::new(Cell::new(0)));
        let left = Rc::clone(&theirs);
        let partner = Rc::clone(&ours);
        let ping_pong = move || {
            while left.get() != 0 {
                left.set(left.get() - 1);
                let other = partner.replace(Coroutine::current()).expect("both are there before one is entered");
                other.wake();
                pause();
            }
        };
        let first = Coroutine::new(ping_pong.clone());
        ours.set(Some(Coroutine::new(ping_pong)));
        theirs.set(times);
        time(times, || first.enter())
    })
}

/// A round with nothing to do.
pub(crate) fn empty_poll(times: u64) -> f64 {
    AioContext::run(|ctx| time(times, || (0..times).for_each(|_| _ = black_box(ctx.poll(false)))))
}
