//! The loop: the steps of an iteration, nested polls, panics that propagate through it, sleeping
//! and being kicked.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::common::{Log, Sleeper, panic_of};
use coralio_runtime::{
    AioContext, Coroutine, EventSource, Flush, HomeToken, Interest, LoopToken, SourceState, suspend,
};

#[test]
fn blocking_poll_sleeps_until_work_is_due() {
    // X1: a blocking poll sleeps until something is due, and runs it before it returns
    AioContext::run(|ctx| {
        let (send, receive) = mpsc::channel();
        let other = thread::spawn({
            let ctx = ctx.clone();
            move || ctx.schedule_oneshot(move || send.send(thread::current().id()).unwrap()).unwrap()
        });
        while receive.try_recv() != Ok(thread::current().id()) {
            ctx.poll(true);
        }
        other.join().unwrap();
    });
}

/// Gives the context an engine that sleeps by calling `how`.
fn sleeps(ctx: &AioContext, how: impl Fn(BorrowedFd<'_>) + Send + Sync + 'static) {
    ctx.attach(Arc::new(Sleeper { idle: true, how: move |other: BorrowedFd<'_>, _| how(other) })).unwrap();
}

/// An engine to which another thread adds a completion while the loop asks for its state, at the
/// call with this number.
struct CompletedMeanwhile {
    context: AioContext,
    at: usize,
    calls: AtomicUsize,
    completed: AtomicBool,
}

impl EventSource for CompletedMeanwhile {
    fn dispatch(&self, _token: LoopToken<'_>) -> bool {
        self.completed.swap(false, Ordering::Relaxed)
    }

    fn flush(&self, _token: LoopToken<'_>, _when: Flush) -> bool {
        false
    }

    fn state(&self) -> SourceState {
        let state = if self.completed.load(Ordering::Relaxed) { SourceState::Ready } else { SourceState::Waiting };
        if self.calls.fetch_add(1, Ordering::Relaxed) == self.at {
            let complete = || {
                self.completed.store(true, Ordering::Relaxed);
                self.context.wake_loop();
            };
            thread::scope(|scope| scope.spawn(complete).join().unwrap());
        }
        state
    }

    fn describe(&self) -> String {
        String::new()
    }

    fn sleep(&self, _: HomeToken<'_>, other: BorrowedFd<'_>, _: Option<Duration>) -> Option<io::Result<bool>> {
        let mut fd = libc::pollfd { fd: other.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, alive during the call.
        let is_kicked = unsafe { libc::poll(&mut fd, 1, 0) } == 1;
        let completed = self.completed.swap(true, Ordering::Relaxed);
        assert!(!completed || is_kicked, "the loop sleeps although there is a completion");
        Some(Ok(true))
    }
}

#[test]
fn completion_that_arrives_before_the_sleep_is_not_missed() {
    // X6: an engine publishes a completion and then wakes the loop; the loop announces its sleep and
    // then asks the engine
    for at in 0..5 {
        AioContext::run(|context| {
            let (calls, completed) = (AtomicUsize::new(0), AtomicBool::new(false));
            let engine = CompletedMeanwhile { context: context.clone(), at, calls, completed };
            context.attach(Arc::new(engine)).unwrap();
            assert!(context.poll(true), "call {at}");
        });
    }
}

#[test]
fn source_does_not_see_a_stale_notification() {
    // X6: a kick ends one sleep, even one inside an I/O engine; the next sleep is a real sleep
    // again
    AioContext::run(|ctx| {
        let (slept, spurious) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (own, counted, early) = (ctx.clone(), Arc::clone(&slept), Arc::clone(&spurious));
        sleeps(ctx, move |other| {
            let mut fd = libc::pollfd { fd: other.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, alive during the call.
            if unsafe { libc::poll(&mut fd, 1, 0) } != 0 {
                early.fetch_add(1, Ordering::Relaxed);
            }
            counted.fetch_add(1, Ordering::Relaxed);
            let ctx = own.clone();
            let kick = thread::spawn(move || ctx.schedule_oneshot(|| {}).unwrap());
            // SAFETY: as above.
            assert_eq!(unsafe { libc::poll(&mut fd, 1, -1) }, 1);
            kick.join().unwrap();
        });
        for expected in 1..=5 {
            assert!(ctx.poll(true));
            assert_eq!(slept.load(Ordering::Relaxed), expected);
        }
        assert_eq!(spurious.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn dump_in_the_sleep_of_an_engine_returns() {
    // X11: an engine's `sleep` runs on the home thread: a dump there does not stop its own thread
    // and wait for it
    AioContext::run(|ctx| {
        let own = ctx.clone();
        let (text, dumped) = std::sync::mpsc::channel();
        sleeps(ctx, move |_| {
            let locks = own.clone();
            let (locked, holds) = std::sync::mpsc::sync_channel(0);
            let (release, released) = std::sync::mpsc::channel::<()>();
            let holder = thread::spawn(move || {
                let _guard = locks.acquire();
                locked.send(()).unwrap();
                released.recv().unwrap();
            });
            holds.recv().unwrap();
            text.send(own.dump().to_string()).unwrap();
            release.send(()).unwrap();
            holder.join().unwrap();
        });
        ctx.poll(true);
        let text = dumped.recv().unwrap();
        assert!(text.contains("cannot be interrupted: the calling thread is its own"), "{text}");
    });
}

#[test]
fn child_forked_in_the_sleep_of_an_engine_has_no_context() {
    // C7: an engine's `sleep` forks, while its home is hidden: the child may not use the context
    let Some(run) = crate::common::in_child("context::child_forked_in_the_sleep_of_an_engine_has_no_context") else {
        AioContext::run(|ctx| {
            let child = Arc::new(AtomicUsize::new(usize::MAX));
            let forked = Arc::clone(&child);
            // SAFETY: the child checks what it may do, and leaves by `_exit`.
            sleeps(ctx, move |_| forked.store(unsafe { libc::fork() } as usize, Ordering::Relaxed));
            let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ctx.poll(true)));
            let child = child.load(Ordering::Relaxed) as libc::pid_t;
            if child == 0 {
                let passed = AioContext::current().is_none();
                // SAFETY: ends the child.
                unsafe { libc::_exit(if passed { 33 } else { 99 }) };
            }
            assert!(polled.is_ok() && child > 0);
            let mut status = 0;
            // SAFETY: the kernel writes the status.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(libc::WEXITSTATUS(status), 33);
        });
        return;
    };
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}

/// Gives the context an engine whose sleeps end immediately. Returns the number of sleeps, and how
/// many of them found the loop's epoll set ready, so that the loop would not have slept.
fn counted_sleeps(ctx: &AioContext) -> impl Fn() -> (usize, usize) {
    let counts = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let counted = Arc::clone(&counts);
    sleeps(ctx, move |other| {
        let mut fd = libc::pollfd { fd: other.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, alive during the call.
        let ready = unsafe { libc::poll(&mut fd, 1, 0) };
        counted.0.fetch_add(1, Ordering::Relaxed);
        counted.1.fetch_add(ready as usize, Ordering::Relaxed);
    });
    move || (counts.0.swap(0, Ordering::Relaxed), counts.1.swap(0, Ordering::Relaxed))
}

#[test]
fn notification_before_the_sleep_makes_one_poll_return() {
    // X6: a notification between the caller's check and the blocking poll makes that poll return
    // without sleeping, by itself or after the work of an iteration; the next poll sleeps again.
    // Non-blocking polls and polls of other threads do not consume the notification
    AioContext::run(|ctx| {
        let slept = counted_sleeps(ctx);
        ctx.notify();
        ctx.notify();
        ctx.poll(false);
        thread::scope(|scope| assert!(!scope.spawn(|| ctx.poll(false)).join().unwrap()));
        assert!(!ctx.poll(true));
        assert_eq!(slept(), (0, 0), "it was notified");
        ctx.poll(true);
        assert_eq!(slept(), (1, 0), "it was not notified again");
        // Within an iteration that has work: one more poll returns.
        let notifies = ctx.clone();
        ctx.schedule_oneshot(move || notifies.notify()).unwrap();
        assert!(ctx.poll(true) && !ctx.poll(true));
        assert_eq!(slept(), (0, 0));
        ctx.poll(true);
        assert_eq!(slept(), (1, 0));
    });
}

#[test]
fn disabled_fd_handler_does_not_keep_the_loop_awake() {
    // X4: a descriptor watched with no interest, whose peer hangs up, does not wake the loop,
    // whether from the beginning, after a change, or within the handler; watched again, the hang-up
    // is reported
    AioContext::run(|ctx| {
        let slept = counted_sleeps(ctx);
        let log = Log::default();
        let watch_for = |interest| {
            let (near, far) = UnixStream::pair().unwrap();
            let log = log.clone();
            let watch = ctx.add_fd_handler_with(near, interest, move |own, _| {
                log.add("hang-up");
                own.set_interest(Interest::Disabled).unwrap();
            });
            drop(far);
            watch.unwrap()
        };
        let from_the_beginning = watch_for(Interest::Disabled);
        let changed = watch_for(Interest::Read);
        changed.set_interest(Interest::Disabled).unwrap();
        for watch in [&from_the_beginning, &changed] {
            assert!(!ctx.poll(true));
            assert_eq!((slept(), log.take()), ((1, 0), String::new()));
            watch.set_interest(Interest::ReadWrite).unwrap();
            assert!(ctx.poll(true));
            assert_eq!(log.take(), "hang-up");
            slept();
            assert!(!ctx.poll(true));
            assert_eq!((slept(), log.take()), ((1, 0), String::new()), "the handler waits for nothing now");
        }
        // In its own handler, below a nested poll that sleeps.
        let (near, far) = UnixStream::pair().unwrap();
        let (polls, logged) = (ctx.clone(), log.clone());
        let _nested = ctx.add_fd_handler_with(near, Interest::Read, move |own, _| {
            own.set_interest(Interest::Disabled).unwrap();
            assert!(!polls.poll(true));
            own.set_interest(Interest::Read).unwrap();
            assert!(!polls.poll(true));
            own.set_interest(Interest::Disabled).unwrap();
            logged.add("nested");
        });
        drop(far);
        assert!(ctx.poll(true));
        assert_eq!(log.take(), "nested");
        slept();
        assert!(!ctx.poll(true));
        assert_eq!(slept(), (1, 0));
    });
}

#[test]
fn reports_for_removed_handlers_do_not_keep_the_loop_awake() {
    // X4: a handler panics, and the watches reported with it are removed: the loop sleeps
    AioContext::run(|ctx| {
        let slept = counted_sleeps(ctx);
        let watches = [(); 2].map(|()| {
            let (near, far) = UnixStream::pair().unwrap();
            drop(far);
            ctx.add_fd_handler(near, Interest::Read, |_| panic!("in a handler")).unwrap()
        });
        assert_eq!(panic_of(|| ctx.poll(false)), "in a handler");
        drop(watches);
        ctx.poll(true);
        assert_eq!(slept(), (1, 0));
    });
}

#[test]
fn no_context_runs_within_the_sleep_of_another() {
    // C7: a thread remains home to its context while the loop sleeps: another context cannot run in
    // that sleep
    AioContext::run(|ctx| {
        let said = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&said);
        sleeps(ctx, move |_| *heard.lock().unwrap() = panic_of(|| AioContext::run(|_| ())));
        ctx.poll(true);
        let said = said.lock().unwrap();
        assert!(said.contains("cannot run a context"), "{said}");
    });
}

#[test]
fn engine_is_attached_to_one_context_at_a_time() {
    // E9: attaching an engine to a second context fails, since that context would sleep in it and
    // submit to it from another thread
    let engine: Arc<dyn EventSource> = Arc::new(Sleeper { idle: true, how: |_: BorrowedFd<'_>, _| () });
    let attach_elsewhere = || {
        let engine = Arc::clone(&engine);
        thread::spawn(move || AioContext::run(|other| other.attach(engine).map_err(|error| error.kind())))
    };
    AioContext::run(|ctx| {
        ctx.attach(Arc::clone(&engine)).unwrap();
        assert_eq!(attach_elsewhere().join().unwrap(), Err(io::ErrorKind::ResourceBusy));
        assert_eq!(ctx.attach(Arc::clone(&engine)).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(ctx.detach().unwrap());
        assert_eq!(attach_elsewhere().join().unwrap(), Ok(()));
        ctx.attach(Arc::clone(&engine)).unwrap();
    });
    assert_eq!(attach_elsewhere().join().unwrap(), Ok(()));
}

#[test]
fn loop_is_woken_although_is_ready_has_slept() {
    // X5, X6: a poll handler's `is_ready` runs a blocking poll just before the loop sleeps; the
    // loop is woken from its own sleep nevertheless
    AioContext::run(|ctx| {
        let woken = Arc::new(AtomicUsize::new(0));
        let (own, seen) = (ctx.clone(), Arc::clone(&woken));
        sleeps(ctx, move |other| {
            own.schedule_oneshot(|| {}).unwrap();
            let mut fd = libc::pollfd { fd: other.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, alive during the call.
            seen.fetch_add(unsafe { libc::poll(&mut fd, 1, 0) } as usize, Ordering::Relaxed);
        });
        let (looks, polls) = (AtomicUsize::new(0), ctx.clone());
        let is_ready = move || {
            // The first look is the iteration's.
            if looks.fetch_add(1, Ordering::Relaxed) == 1 {
                polls.poll(true);
            }
            false
        };
        let _handler = ctx.add_poll_handler(is_ready, || {}).unwrap();
        assert!(ctx.poll(true));
        assert_eq!(woken.load(Ordering::Relaxed), 2, "both sleeps");
    });
}

#[test]
fn engine_attached_at_the_end_leaves_with_the_context() {
    // C9: a destructor attaches an engine while the context ends: no other thread's poll finds the
    // engine afterwards
    struct Attaches(AioContext);
    impl Drop for Attaches {
        fn drop(&mut self) {
            sleeps(&self.0, |_| {});
        }
    }
    let run = |ctx: &AioContext| {
        let at_end = Attaches(ctx.clone());
        Coroutine::new(move || drop((suspend(), at_end))).enter();
        ctx.clone()
    };
    let ctx = AioContext::builder().report_unwound(false).run(run).unwrap();
    assert!(ctx.source().is_none());
}

#[test]
fn callback_that_panics_is_put_back_or_dropped_once() {
    // C8, X3, X4, X5, X7: a callback that panics stays registered, and runs again; if it has
    // deleted itself before the panic, it is dropped once, without the table's lock
    struct UsesTables(AioContext, Arc<AtomicUsize>);
    impl Drop for UsesTables {
        fn drop(&mut self) {
            let UsesTables(ctx, drops) = self;
            let left = ctx.bottom_halves().len() + ctx.timers().len() + ctx.poll_handlers().len();
            // Not an assertion: the thread may be unwinding.
            drops.fetch_add(if left + ctx.fd_handlers().len() == 0 { 1 } else { 100 }, Ordering::Relaxed);
        }
    }
    fn run(own: &(UsesTables, Arc<AtomicUsize>), delete: impl FnOnce()) {
        let before = own.1.fetch_add(1, Ordering::Relaxed);
        if before == 1 {
            delete();
        }
        panic!("run {before}");
    }
    AioContext::run(|ctx| {
        let (runs, drops) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let owned = || (UsesTables(ctx.clone(), Arc::clone(&drops)), Arc::clone(&runs));
        let check = |queue: &dyn Fn()| {
            for expected in ["run 0", "run 1"] {
                queue();
                assert_eq!(panic_of(|| ctx.poll(false)), expected);
            }
            queue();
            assert!(!ctx.poll(false), "it is gone");
            assert_eq!((runs.swap(0, Ordering::Relaxed), drops.swap(0, Ordering::Relaxed)), (2, 1));
        };
        let own = owned();
        let bh = ctx.new_bottom_half_with(move |handle| run(&own, || handle.delete())).unwrap();
        check(&|| bh.schedule());
        let own = owned();
        let timer = ctx.new_timer_with(move |handle| run(&own, || handle.delete())).unwrap();
        check(&|| timer.arm_after(Duration::ZERO));
        let own = owned();
        let handler = ctx.add_poll_handler_with(|| true, move |handle| run(&own, || handle.delete())).unwrap();
        check(&|| ());
        // Its peer is closed.
        let (near, _) = UnixStream::pair().unwrap();
        let own = owned();
        let watch = ctx.add_fd_handler_with(near, Interest::Read, move |handle, _| run(&own, || handle.delete()));
        check(&|| ());
        drop((bh, timer, handler, watch));
    });
}
