//! Poll handlers, and descriptors that coroutines wait for.

use std::cell::Cell;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use coralio_runtime::{
    AioContext, Cancelled, CoFd, Interest, TimedOut, spawn, timeout, wait_readable, wait_writable, yield_now,
};

#[test]
fn sources_ready_in_memory_are_served() {
    // X5: a poll handler is called in each iteration in which its source is ready; a notify ends a
    // sleep for it
    AioContext::run(|ctx| {
        let ready = Arc::new(AtomicBool::new(false));
        let runs = Arc::new(AtomicUsize::new(0));
        let handler = ctx
            .add_poll_handler(
                {
                    let ready = Arc::clone(&ready);
                    move || ready.load(Ordering::Acquire)
                },
                {
                    let (ready, runs) = (Arc::clone(&ready), Arc::clone(&runs));
                    move || {
                        ready.store(false, Ordering::Release);
                        runs.fetch_add(1, Ordering::Relaxed);
                    }
                },
            )
            .unwrap();
        assert!(!ctx.poll(false));
        for expected in 1..=100 {
            let (ready, notify) = (Arc::clone(&ready), ctx.clone());
            let other = thread::spawn(move || {
                ready.store(true, Ordering::Release);
                notify.notify();
            });
            while runs.load(Ordering::Relaxed) < expected {
                ctx.poll(true);
            }
            other.join().unwrap();
        }
        drop(handler);
        ready.store(true, Ordering::Release);
        assert!(!ctx.poll(false), "the handler is gone");
    });
}

#[test]
fn polling_handler_is_not_called_recursively() {
    // H9, X4: a poll handler that polls while its source is still ready is not called recursively
    AioContext::run(|ctx| {
        let (depth, deepest) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (polls, seen) = (ctx.clone(), Arc::clone(&deepest));
        let _handler = ctx
            .add_poll_handler(
                || true,
                move || {
                    seen.fetch_max(depth.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    assert!(depth.load(Ordering::Relaxed) < 100, "it is entered without end");
                    polls.poll(false);
                    depth.fetch_sub(1, Ordering::Relaxed);
                },
            )
            .unwrap();
        assert!(ctx.poll(false));
        assert_eq!(deepest.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn always_ready_source_starves_no_descriptor() {
    // X4, X5: a descriptor is served although a poll handler keeps the loop busy
    AioContext::run(|ctx| {
        let _busy = ctx.add_poll_handler(|| true, || {}).unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"x").unwrap();
        let reader = spawn(move || wait_readable(&near).and_then(|()| (&near).read(&mut [0; 8])));
        for _ in 0..32 {
            ctx.poll(false);
        }
        assert!(reader.is_finished());
        assert_eq!(reader.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn late_work_of_blocking_iterations_starves_no_socket() {
    // X4: a socket is served although each iteration makes progress after it looks at descriptors,
    // here by a poll handler or a timer, and so never sleeps
    for with_timer in [false, true] {
        AioContext::run(|ctx| {
            let _busy = (!with_timer).then(|| ctx.add_poll_handler(|| true, || {}).unwrap());
            let start = ctx.now();
            let timer = ctx.new_timer_with(move |timer| timer.arm_at(start)).unwrap();
            if with_timer {
                timer.arm_at(start);
            }
            let (near, mut far) = UnixStream::pair().unwrap();
            let mut near = CoFd::new(near).unwrap();
            let reader = spawn(move || near.read(&mut [0; 8]));
            (0..4).for_each(|_| _ = ctx.poll(true));
            far.write_all(b"x").unwrap();
            for _ in 0..32 {
                ctx.poll(true);
            }
            assert!(reader.is_finished());
            assert_eq!(reader.join().unwrap().unwrap(), 1);
        });
    }
}

#[test]
fn several_coroutines_wait_for_one_descriptor() {
    // X4: one coroutine waits to read and another to write the same descriptor, next to a handler
    // that watches it
    AioContext::run(|ctx| {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let near = Arc::new(near);
        let watched = Arc::new(AtomicUsize::new(0));
        let _watch = ctx
            .add_fd_handler(Arc::clone(&near), Interest::Read, {
                let watched = Arc::clone(&watched);
                move |_| _ = watched.fetch_add(1, Ordering::Relaxed)
            })
            .unwrap();
        let reader = spawn({
            let near = Arc::clone(&near);
            move || wait_readable(&near).map(|()| (&*near).read(&mut [0; 8]).unwrap())
        });
        let writer = spawn({
            let near = Arc::clone(&near);
            move || {
                let mut sent = 0;
                // Until it is full, and once more when there is space.
                while let Ok(n) = (&*near).write(&[0; 65536]) {
                    sent += n;
                }
                wait_writable(&near).map(|()| sent + (&*near).write(&[0; 1]).unwrap())
            }
        });
        (0..4).for_each(|_| _ = ctx.poll(false));
        assert!(!reader.is_finished() && !writer.is_finished());
        far.write_all(b"word").unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), 4);
        let drain = thread::spawn(move || {
            let mut all = Vec::new();
            far.read_to_end(&mut all).unwrap();
            all.len()
        });
        let sent = writer.join().unwrap().unwrap();
        near.shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(drain.join().unwrap(), sent);
        assert!(watched.load(Ordering::Relaxed) > 0);
    });
}

#[test]
fn wait_for_a_descriptor_ends_early() {
    // S4, X4: a cancelled or timed out wait for a descriptor fails, and leaves nothing behind;
    // unsupported descriptors are rejected
    AioContext::run(|_| {
        let (near, _far) = UnixStream::pair().unwrap();
        let timed_out = Rc::new(Cell::new(false));
        let told = Rc::clone(&timed_out);
        let waits = spawn(move || {
            let late = timeout(Duration::from_millis(1), || wait_readable(&near));
            assert_eq!(late.map_err(|TimedOut| ()).unwrap_err(), ());
            wait_writable(&near).unwrap();
            told.set(true);
            wait_readable(&near)
        });
        let canceller = {
            let waiting = waits.coroutine();
            spawn(move || {
                while !timed_out.get() {
                    yield_now();
                }
                (0..3).for_each(|_| yield_now());
                waiting.cancel();
            })
        };
        let error = waits.join().unwrap().unwrap_err();
        assert!(Cancelled::is_cause_of(&error), "{error}");
        canceller.join().unwrap();
        let refused = spawn(|| {
            let file = File::open("/proc/self/exe").unwrap();
            assert!(file.as_raw_fd() >= 0);
            wait_readable(&file)
        });
        let error = refused.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
        assert!(error.to_string().contains("read it through File"), "{error}");
    });
}

#[test]
fn handler_deletes_itself() {
    // X4, X5, X11: a poll handler that receives its own handle deletes itself; it is listed until
    // then, and then freed
    AioContext::run(|ctx| {
        let (freed, lists) = (Arc::new(()), ctx.clone());
        let kept = Arc::clone(&freed);
        let handler = ctx.add_poll_handler_with(
            || true,
            move |own| {
                let _ = &kept;
                assert!(lists.poll_handlers()[0].is_running);
                own.delete();
            },
        );
        let handler = handler.unwrap();
        assert_eq!(ctx.poll_handlers()[0].window, Duration::ZERO);
        assert!(ctx.poll(false) && !ctx.poll(false));
        assert_eq!((Arc::strong_count(&freed), ctx.poll_handlers().len()), (1, 0));
        drop(handler);
    });
}
