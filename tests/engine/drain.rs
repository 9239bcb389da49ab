//! Waiting until an engine has no requests left (rule X9): the engine itself notifies waiting
//! threads.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use coralio::context::AioContext;
use coralio::driver::Plug;
use coralio::engine::Engine;
use coralio::engine::scripted::ScriptedBackend;
use coralio::{File, JoinHandle, spawn};

use crate::{Watch, touch, with_engine};

/// Starts a thread in `poll_while` until no request is left; returns once the thread has seen one.
fn waiter(context: &AioContext, engine: &Watch) -> thread::JoinHandle<()> {
    let (saw, seen) = channel();
    let (context, engine) = (context.clone(), engine.clone());
    let waiter = thread::spawn(move || {
        context.poll_while(|| {
            let stats = engine.stats();
            let is_busy = stats.in_flight + stats.pending > 0;
            if is_busy {
                let _ = saw.send(());
            }
            is_busy
        });
    });
    seen.recv().unwrap();
    waiter
}

#[test]
fn last_completion_wakes_a_draining_thread() {
    // X9: the last completion wakes a thread asleep in `poll_while`, which only the engine notifies
    with_engine(1, |context, backend, engine| {
        backend.script.hold(0);
        let reader = spawn({
            let engine = engine.clone();
            move || touch(&engine, 0)
        });
        context.poll(false);
        let waiter = waiter(context, engine);
        backend.script.release(0);
        context.poll(false);
        waiter.join().unwrap();
        assert_eq!(reader.join().unwrap(), Ok(0));
    });
}

/// Starts a request held back by a plug, and a thread that waits for its end, which `end` brings
/// about.
fn waits_until_pending(end: impl FnOnce(&AioContext, &crate::Watched, Plug, &JoinHandle<Result<usize, i32>>)) {
    with_engine(8, |context, backend, engine| {
        let plug = engine.plug();
        let reader = spawn({
            let engine = engine.clone();
            move || touch(&engine, 0)
        });
        context.poll(false);
        let waiter = waiter(context, engine);
        end(context, backend, plug, &reader);
        waiter.join().unwrap();
    });
}

#[test]
fn last_failed_submit_wakes_a_draining_thread() {
    // X9: a request that fails at submit, without a completion, wakes the waiting thread
    waits_until_pending(|context, backend, plug, reader| {
        backend.script.refuse(libc::EBADF);
        drop(plug);
        while !reader.is_finished() {
            context.poll(false);
        }
    });
}

#[test]
fn last_cancellation_wakes_a_draining_thread() {
    // X9, E11: a request taken back before the kernel has it wakes the waiting thread
    waits_until_pending(|context, backend, _plug, reader| {
        reader.cancel();
        while !reader.is_finished() {
            context.poll(false);
        }
        assert_eq!(backend.transcript(), "");
    });
}

#[test]
fn engine_context_and_file_drain() {
    // X9: `drain` works on the home thread, in a coroutine, and on another thread
    AioContext::run(|context| {
        let backend = ScriptedBackend::new(8);
        backend.set_disk(b"disk");
        let engine = Engine::<ScriptedBackend>::attach(backend.clone(), 8).unwrap();
        let open = || File::with_engine(&engine, OwnedFd::from(fs::File::open("/dev/null").unwrap())).unwrap();
        let start = || {
            let file = open();
            let reader = spawn(move || file.read_at(&mut [0; 4], 0).unwrap());
            context.poll(false);
            assert_eq!(engine.stats().in_flight, 1);
            drop(reader);
        };
        let is_idle = || (engine.stats().in_flight, engine.stats().pending) == (0, 0);
        start();
        engine.drain().unwrap();
        assert!(is_idle());
        start();
        context.drain();
        assert!(is_idle());
        start();
        let file = open();
        spawn(move || file.drain().unwrap()).join().unwrap();
        assert!(is_idle());
        start();
        let foreign = thread::spawn({
            let engine = Arc::clone(&engine);
            move || engine.drain().map_err(|error| error.kind())
        });
        while engine.stats().in_flight > 0 {
            context.poll(true);
        }
        assert_eq!(foreign.join().unwrap(), Ok(()));
        let detached = coralio::driver::detach().unwrap();
        assert_eq!(engine.drain().unwrap_err().kind(), io::ErrorKind::NotConnected);
        drop(detached);
    });
}
