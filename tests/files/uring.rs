//! The engine on io_uring with other threads: whichever thread polls, whatever sleeps, every
//! request completes once.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use coralio::context::AioContext;
use coralio::coroutine::{Coroutine, suspend};
use coralio::driver::BackendKind;
use coralio::engine::Engine;
use coralio::engine::io_uring::IoUring;
use coralio::engine::{Opcode, Operation};
use coralio::fs::Direct;
use coralio::task::{Cancelled, TimedOut, shield};
use coralio::{AlignedBuf, File, JoinHandle, RuntimeBuilder, spawn, timeout};

use crate::common::{Temp, is_all, scaled, skipped};

const BLOCK: usize = 4096;

/// Creates a file of `blocks` blocks, each filled with its number.
fn file_of(place: &Path, blocks: usize) -> Temp {
    Temp::with(place, (0..blocks * BLOCK).map(|i| (i / BLOCK) as u8).collect::<Vec<_>>())
}

fn disk() -> PathBuf {
    std::env::temp_dir()
}

/// Runs `f` as a coroutine, or reports a skip where io_uring is forbidden.
fn run<T>(depth: u32, f: impl FnOnce() -> T) -> Option<T> {
    run_on(BackendKind::Uring, depth, f)
}

fn run_on<T>(backend: BackendKind, depth: u32, f: impl FnOnce() -> T) -> Option<T> {
    let ran = RuntimeBuilder::new().backend(backend).queue_depth(depth).run(f);
    ran.inspect_err(|error| skipped(error)).ok()
}

/// Runs `f` with the engine itself, or reports a skip where io_uring is forbidden.
pub fn with_engine<T>(f: impl FnOnce(&AioContext, &Arc<Engine<IoUring>>) -> T) -> Option<T> {
    with_depth(8, f)
}

/// As `with_engine`, with a depth of up to eight, the capacity of the ring.
pub fn with_depth<T>(depth: u32, f: impl FnOnce(&AioContext, &Arc<Engine<IoUring>>) -> T) -> Option<T> {
    let backend = IoUring::new(8).inspect_err(|error| skipped(error)).ok()?;
    Some(AioContext::run(|context| f(context, &Engine::attach(backend, depth).unwrap())))
}

/// A descriptor whose read stays in flight until it is signalled.
#[derive(Clone)]
pub struct Never(Arc<OwnedFd>);

impl Never {
    pub fn new() -> Never {
        // SAFETY: no memory is involved; the descriptor is new and owned here alone.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) };
        Never(Arc::new(fd))
    }

    pub fn signal(&self) {
        // SAFETY: eight bytes, as an eventfd requires.
        let written = unsafe { libc::write(self.0.as_raw_fd(), 1u64.to_ne_bytes().as_ptr().cast(), 8) };
        assert_eq!(written, 8);
    }

    /// Waits for the signal on io_uring.
    pub fn read(&self, engine: &Engine<IoUring>) -> u64 {
        self.try_read(engine).unwrap()
    }

    pub fn try_read(&self, engine: &Engine<IoUring>) -> io::Result<u64> {
        let mut count = [0; 8];
        let operation = Operation {
            opcode: Opcode::Read,
            fd: self.0.as_raw_fd(),
            addr: count.as_mut_ptr() as u64,
            len: 8,
            offset: 0,
        };
        // SAFETY: the buffer is borrowed until this returns or unwinds.
        assert_eq!(unsafe { engine.transfer(&operation) }?, 8);
        Ok(u64::from_ne_bytes(count))
    }
}

/// Spawns `coroutines` coroutines, each of which reads `each` blocks in a scattered order and
/// checks them.
fn readers(file: &Rc<File>, coroutines: usize, each: usize, blocks: usize) -> Vec<JoinHandle<()>> {
    let one = |number| {
        let file = Rc::clone(file);
        spawn(move || {
            let mut buf = AlignedBuf::new(BLOCK, BLOCK);
            for i in 0..each {
                let block = (number * 7 + i * 13) % blocks;
                file.read_exact_at(&mut buf, (block * BLOCK) as u64).unwrap();
                assert!(is_all(&buf, block as u8), "block {block}");
            }
        })
    };
    (0..coroutines).map(one).collect()
}

fn assert_all_done(requests: usize) {
    let stats = coralio::driver::stats();
    assert_eq!((stats.requests, stats.completions), (requests as u64, requests as u64));
    assert_eq!((stats.in_flight, stats.pending), (0, 0));
}

#[test]
fn two_reaping_threads_lose_no_completion() {
    // H3, E9: while another thread polls constantly, every request completes once; on native AIO
    // too
    const COROUTINES: usize = 32;
    let each = scaled(if cfg!(debug_assertions) { 30_000 } else { 1_000_000 }) / COROUTINES;
    let temp = file_of(&disk(), 64);
    for backend in [BackendKind::Uring, BackendKind::Aio] {
        let stop = Arc::new(AtomicBool::new(false));
        let foreign = run_on(backend, 64, || {
            let (context, asked) = (AioContext::current().unwrap(), Arc::clone(&stop));
            let foreign = thread::spawn(move || {
                while !asked.load(Ordering::Relaxed) {
                    if !context.poll(false) {
                        thread::yield_now();
                    }
                }
            });
            let file = Rc::new(temp.open(Direct::Auto));
            readers(&file, COROUTINES, each, 64).into_iter().for_each(|reader| reader.join().unwrap());
            stop.store(true, Ordering::Relaxed);
            assert_all_done(COROUTINES * each);
            foreign
        });
        // Joined outside: the loop holds the context's lock while a coroutine runs, and the other
        // thread needs it.
        foreign.into_iter().for_each(|foreign| foreign.join().unwrap());
    }
}

#[test]
fn polling_thread_that_ended_takes_no_request_along() {
    // E9, E13: a thread that polls and exits cancels no request: one that it had submitted would
    // fail with its exit. Reads of uncached data through the page cache
    const BLOCKS: usize = 256;
    let temp = file_of(&disk(), BLOCKS);
    fs::File::open(&temp.0).unwrap().sync_all().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let foreign = run(4, || {
        let (context, asked) = (AioContext::current().unwrap(), Arc::clone(&stop));
        let foreign = thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                let context = context.clone();
                thread::spawn(move || context.poll(false)).join().unwrap();
            }
        });
        let file = Rc::new(temp.open(Direct::Never));
        for _ in 0..scaled(50) {
            // SAFETY: no pointers.
            unsafe { libc::posix_fadvise(file.as_fd().as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
            readers(&file, 64, 8, BLOCKS).into_iter().for_each(|reader| reader.join().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        foreign
    });
    foreign.into_iter().for_each(|foreign| foreign.join().unwrap());
}

#[test]
fn only_the_home_thread_submits() {
    // E8, E9: another thread's poll reaps, and pending requests wait for the home thread's
    // iteration
    with_engine(|context, engine| {
        let (first, second) = (Never::new(), Never::new());
        let reader = |never: &Never| {
            let (never, engine) = (never.clone(), Arc::clone(engine));
            Coroutine::new(move || assert_eq!(never.read(&engine), 1))
        };
        let submitted = reader(&first);
        submitted.enter();
        let plug = engine.plug();
        let pending = reader(&second);
        pending.enter();
        // Compared after the end: a failure in between would wait for the second request.
        let stats = || {
            let stats = engine.stats();
            (stats.in_flight, stats.pending, stats.submits)
        };
        let plugged = stats();
        drop(plug);
        first.signal();
        let there = context.clone();
        thread::spawn(move || while !there.poll(false) {}).join().unwrap();
        let reaped_elsewhere = stats();
        context.poll(false);
        let (at_home, has_ended) = (stats(), submitted.has_ended());
        second.signal();
        while !pending.has_ended() {
            context.poll(true);
        }
        assert_eq!([plugged, reaped_elsewhere, at_home], [(1, 1, 1), (0, 1, 1), (1, 0, 2)]);
        assert!(has_ended);
    });
}

#[test]
fn poll_on_another_thread_reaps_while_the_loop_sleeps() {
    // E9, W1: whichever thread finds the completion, the coroutine runs and the sleep ends
    with_engine(|context, engine| {
        let rounds = scaled(5000);
        let never = Never::new();
        let (go, next) = channel();
        let foreign = thread::spawn({
            let (context, never) = (context.clone(), never.clone());
            move || {
                for () in next {
                    never.signal();
                    context.poll(false);
                }
            }
        });
        let reader = spawn({
            let engine = Arc::clone(engine);
            move || {
                for _ in 0..rounds {
                    go.send(()).unwrap();
                    assert_eq!(never.read(&engine), 1);
                }
            }
        });
        reader.join().unwrap();
        assert_eq!(engine.stats().completions as usize, rounds);
        foreign.join().unwrap();
    });
}

#[test]
fn request_cancelled_in_flight_ends_early() {
    // E11: a read that never completes is cancelled in the kernel when its coroutine is cancelled
    // or its timeout expires; one within a shield is not
    with_engine(|context, engine| {
        let (never, later) = (Never::new(), Never::new());
        let reader = |never: &Never, shielded: bool| {
            let (never, engine) = (never.clone(), Arc::clone(engine));
            spawn(move || if shielded { shield(|| never.try_read(&engine)) } else { never.try_read(&engine) })
        };
        let (cancelled, shielded) = (reader(&never, false), reader(&later, true));
        let timed = spawn({
            let (never, engine) = (never.clone(), Arc::clone(engine));
            move || timeout(Duration::from_millis(1), || never.try_read(&engine))
        });
        context.poll(false);
        assert_eq!(engine.stats().in_flight, 3);
        cancelled.cancel();
        shielded.cancel();
        let error = cancelled.join().unwrap().unwrap_err();
        assert!(Cancelled::is_cause_of(&error), "{error}");
        assert_eq!(timed.join().unwrap().unwrap_err(), TimedOut);
        assert_eq!((engine.stats().in_flight, engine.stats().completions), (1, 2), "and each completed once");
        later.signal();
        assert_eq!(shielded.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn notification_ends_the_sleep() {
    // X6, W1: a wake from another thread ends the sleep of a loop whose next completion comes only
    // after that wake
    with_engine(|context, engine| {
        let never = Never::new();
        let (go, next) = channel::<coralio::coroutine::Waker>();
        let foreign = thread::spawn(move || next.into_iter().for_each(|waker| waker.wake()));
        for _ in 0..scaled(2000) {
            let reader = spawn({
                let (never, engine) = (never.clone(), Arc::clone(engine));
                move || assert_eq!(never.read(&engine), 1)
            });
            let woken = Coroutine::new({
                let (never, go) = (never.clone(), go.clone());
                move || {
                    go.send(Coroutine::current().unwrap().waker()).unwrap();
                    suspend();
                    never.signal();
                }
            });
            // The read is in flight before the other thread is asked to wake.
            context.poll(false);
            assert_eq!(engine.stats().in_flight, 1);
            woken.enter();
            while !(woken.has_ended() && reader.is_finished()) {
                context.poll(true);
            }
            reader.join().unwrap();
        }
        drop(go);
        foreign.join().unwrap();
    });
}

#[test]
fn context_end_waits_for_requests_in_flight() {
    // E13, C9: the stack is unwound once the kernel has filled the buffer or cancelled the read;
    // the signal comes at the same time
    struct Lent([u8; 8], Arc<AtomicBool>);
    impl Drop for Lent {
        fn drop(&mut self) {
            self.1.store(matches!(u64::from_ne_bytes(self.0), 0 | 1), Ordering::Relaxed);
        }
    }
    for _ in 0..scaled(100) {
        let unwound = Arc::new(AtomicBool::new(false));
        let never = Never::new();
        let signals = with_engine(|context, engine| {
            let (engine, unwound, source) = (Arc::clone(engine), Arc::clone(&unwound), never.clone());
            drop(spawn(move || {
                let mut lent = Lent([0; 8], unwound);
                let operation = Operation {
                    opcode: Opcode::Read,
                    fd: source.0.as_raw_fd(),
                    addr: lent.0.as_mut_ptr() as u64,
                    len: 8,
                    offset: 0,
                };
                // SAFETY: the buffer is borrowed until this returns or unwinds.
                let _ = unsafe { engine.transfer(&operation) };
            }));
            context.poll(false);
            thread::spawn(move || never.signal())
        });
        let Some(signals) = signals else { return };
        assert!(unwound.load(Ordering::Relaxed));
        signals.join().unwrap();
    }
}

/// Starts a coroutine whose read never completes by itself.
fn hung(context: &AioContext, engine: &Arc<Engine<IoUring>>, never: &Never) -> JoinHandle<io::Result<u64>> {
    let (reads, never) = (Arc::clone(engine), never.clone());
    let reader = spawn(move || never.try_read(&reads));
    while engine.stats().in_flight == 0 {
        context.poll(false);
    }
    reader
}

#[test]
fn context_end_cancels_a_read_that_never_completes() {
    // C9: the coroutine is unwound although its descriptor is never signalled
    let never = Never::new();
    with_engine(|context, engine| drop(hung(context, engine, &never)));
}

#[test]
fn stop_of_an_io_thread_cancels_a_read_that_never_completes() {
    // C9, X10: stopping an I/O thread cancels the read, as does the end of `run`
    let thread = coralio::context::IoThread::start("hung").unwrap();
    let (started, start) = channel();
    let scheduled = thread.context().schedule_oneshot(move || {
        let never = Never::new();
        let made = IoUring::new(8).inspect_err(|error| eprintln!("skipped: {error}"));
        if let Ok(backend) = made {
            let engine = Engine::<IoUring>::attach(backend, 8).unwrap();
            drop(hung(&AioContext::current().unwrap(), &engine, &never));
        }
        started.send(()).unwrap();
    });
    scheduled.unwrap();
    start.recv().unwrap();
    thread.stop().unwrap();
}

#[test]
fn unwinding_scope_cancels_a_read_that_never_completes() {
    // C9, S4: the scope's own stack unwinds, and its coroutine must not outlive its borrows
    let never = Never::new();
    with_engine(|_, engine| {
        let runs = (Arc::clone(engine), never.clone());
        let outer = spawn(move || {
            let (engine, never) = runs;
            coralio::scope(|scope| {
                drop(scope.spawn(|| never.try_read(&engine)));
                while engine.stats().in_flight == 0 {
                    coralio::yield_now();
                }
                std::panic::resume_unwind(Box::new("unwinds"));
            });
        });
        assert_eq!(outer.join().unwrap_err().downcast_ref(), Some(&"unwinds"));
        assert_eq!(engine.stats().in_flight, 0);
    });
}

#[test]
fn cancelling_the_last_request_lets_detach_continue() {
    // E11, E12: detach waits for a read that never completes until the read is cancelled
    let never = Never::new();
    with_engine(|context, engine| {
        let reader = hung(context, engine, &never);
        let cancels = spawn(move || reader.cancel());
        drop(coralio::driver::detach().unwrap());
        cancels.join().unwrap();
        assert_eq!(engine.stats().in_flight, 0);
    });
}
