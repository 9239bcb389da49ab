//! The runtime's side. Setup and warm-up are not timed.

use std::cell::Cell;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use coralio_runtime::trace::Trace;
use coralio_runtime::{AioContext, CoFd, CoMutex, Coroutine, spawn, suspend, yield_now};

use crate::measure::{BATCH, time};

// Not inlined, here and in `bare`: a real program suspends deep within other calls.
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

/// Enters a coroutine, which yields.
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

/// Records one event in the log.
pub(crate) fn traced_event(times: u64) -> f64 {
    let trace = Trace::new(10_000);
    let run = |context: &AioContext| {
        let tracer = context.tracer().expect("just given one");
        time(times, || (0..times as u32).for_each(|n| tracer.counters(black_box(n), 0, 0)))
    };
    AioContext::builder().trace(&trace).run(run).expect("the system has descriptors")
}

/// Creates a coroutine and enters it; it ends.
pub(crate) fn create_enter_end(times: u64) -> f64 {
    AioContext::run(|_| {
        let one = |caught| Coroutine::new(move || _ = black_box(caught)).enter();
        one(0);
        time(times, || (0..times).for_each(one))
    })
}

/// Spawns a coroutine, which the loop runs to its end: one batch per iteration.
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

/// Spawns a coroutine, and joins it from another one.
pub(crate) fn spawn_and_join_do_not_allocate(times: u64) -> f64 {
    in_coroutine(move || {
        let one = |caught| drop(black_box(spawn(move || caught).join()));
        one(0);
        time(times, || (0..times).for_each(one))
    })
}

/// Locks and unlocks an uncontended mutex.
pub(crate) fn mutex(times: u64) -> f64 {
    in_coroutine(move || {
        let mutex = CoMutex::new(0);
        time(times, || (0..times).for_each(|_| *black_box(&mutex).lock() += 1))
    })
}

/// Schedules a bottom half, and runs the iteration that calls it.
pub(crate) fn bottom_half(times: u64) -> f64 {
    AioContext::run(|ctx| {
        let bh = ctx.new_bottom_half(|| _ = black_box(0)).unwrap();
        let one = |_| {
            bh.schedule();
            ctx.poll(false);
        };
        one(0);
        time(times, || (0..times).for_each(one))
    })
}

/// Runs `coroutines` coroutines, each of which does its share of `times`.
fn share<F: FnOnce(u64) + 'static>(coroutines: u64, times: u64, share: impl Fn() -> F) -> f64 {
    AioContext::run(|_| {
        time(times, || {
            let start = |share: F| spawn(move || share(times / coroutines));
            let coroutines: Vec<_> = (0..coroutines).map(|_| start(share())).collect();
            coroutines.into_iter().for_each(|one| one.join().expect("no case panics"));
        })
    })
}

/// Yields to the loop and resumes, with a single coroutine.
pub(crate) fn yield_alone(times: u64) -> f64 {
    share(1, times, || |times| (0..times).for_each(|_| yield_now()))
}

/// Two coroutines yield to each other: two switches per iteration of the loop.
pub(crate) fn yield_two(times: u64) -> f64 {
    share(2, times, || |times| (0..times).for_each(|_| yield_now()))
}

/// Four coroutines contend for one lock, and yield while holding it.
pub(crate) fn mutex_contended(times: u64) -> f64 {
    let mutex = Rc::new(CoMutex::new(0));
    share(4, times, || {
        let mutex = Rc::clone(&mutex);
        move |times| {
            for _ in 0..times {
                let mut guard = mutex.lock();
                *guard += 1;
                yield_now();
            }
        }
    })
}

/// Two coroutines wake each other and suspend: no iteration of the loop in between.
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

/// Sends 64 bytes through a socket to another coroutine, which sends them back.
pub(crate) fn echo(times: u64) -> f64 {
    in_coroutine(move || {
        let (here, there) = UnixStream::pair().expect("the system has descriptors");
        let (mut here, mut there) = (CoFd::new(here).unwrap(), CoFd::new(there).unwrap());
        let server = spawn(move || {
            let mut message = [0; 64];
            while there.read_exact(&mut message).is_ok() {
                there.write_all(&message).expect("the client reads");
            }
        });
        let mut message = [1; 64];
        let figure = time(times, || {
            for _ in 0..times {
                here.write_all(&message).expect("the server reads");
                here.read_exact(&mut message).expect("the server answers");
            }
        });
        drop(here);
        server.join().expect("no case panics");
        figure
    })
}

/// An iteration with nothing to do.
pub(crate) fn empty_poll(times: u64) -> f64 {
    AioContext::run(|ctx| time(times, || (0..times).for_each(|_| _ = black_box(ctx.poll(false)))))
}
