//! Blocking calls on threads that the test controls.

use super::*;
use crate::backend::pool::tests::{idle_pool, pool_of, serve};
use crate::{Coroutine, TimedOut, VirtualClock, sleep, spawn, timeout, yield_now};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;

type Calls = &'static Pool<Box<dyn FnOnce() + Send>>;

/// Runs `f` as a coroutine. No thread serves the pool until [`serve`] is called.
fn with_pool<R>(f: impl FnOnce(Calls) -> R) -> R {
    AioContext::builder().report_unwound(false).run_coroutine(|_| f(idle_pool())).unwrap()
}

fn text(payload: &(dyn std::any::Any + Send)) -> &str {
    payload.downcast_ref::<&str>().expect("a text")
}

#[test]
fn loop_runs_during_a_blocking_call() {
    // E15: the closure blocks until another coroutine of the same loop releases it
    with_pool(|pool| {
        let (go, wait) = channel();
        let blocked = spawn(move || unblock_on(pool, move || wait.recv().unwrap()).unwrap());
        yield_now();
        serve(pool);
        yield_now();
        assert!(!blocked.is_finished());
        go.send(7).unwrap();
        assert_eq!(blocked.join().unwrap(), 7);
    });
}

#[test]
fn call_runs_on_a_pool_thread_or_in_place() {
    // E15: a closure runs on a pool thread, but outside a coroutine or context on the calling
    // thread
    let me = thread::current().id();
    let there = || unblock(|| thread::current().id()).unwrap();
    assert_eq!(there(), me);
    AioContext::run(|_| assert_eq!(there(), me));
    crate::run(|| {
        assert_ne!(there(), me);
        let name = unblock(|| thread::current().name().map(str::to_string)).unwrap();
        assert_eq!(name.as_deref(), Some("coralio-call"));
    });
}

#[test]
fn panics_reach_the_caller() {
    // C8: a closure's panic propagates to the caller on its own thread, and the worker continues
    with_pool(|_| {
        let pool = pool_of(1, Duration::MAX);
        for _ in 0..2 {
            let bad = spawn(move || unblock_on(pool, || -> () { panic!("in the closure") }));
            assert_eq!(text(&*bad.join().unwrap_err()), "in the closure");
        }
        assert_eq!(unblock_on(pool, || 5).unwrap(), 5);
    });
}

/// Counts its drops.
struct Dropped(Arc<AtomicU32>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn cancelled_call_that_has_not_begun_never_runs() {
    // E11: a cancelled call never begins, and its captures are dropped before the call returns
    with_pool(|pool| {
        let (began, dropped) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (count, caught) = (Arc::clone(&began), Dropped(Arc::clone(&dropped)));
        let call = spawn(move || {
            let result = unblock_on(pool, move || {
                let _caught = caught;
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert!(Cancelled::is_cause_of(&result.unwrap_err()));
            assert_eq!(dropped.load(Ordering::Relaxed), 1);
            // Once cancelled, further calls are not queued either.
            assert!(Cancelled::is_cause_of(&unblock_on(pool, || ()).unwrap_err()));
        });
        yield_now();
        call.cancel();
        call.join().unwrap();
        serve(pool);
        assert_eq!(unblock_on(pool, || 5).unwrap(), 5, "the one behind it in the queue");
        assert_eq!(began.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn cancelled_call_that_has_begun_is_waited_for() {
    // E11: the call waits for a closure that has begun, and returns its result
    with_pool(|pool| {
        let ((begin, began), (go, wait)) = (channel(), channel());
        let call = spawn(move || {
            unblock_on(pool, move || {
                begin.send(()).unwrap();
                wait.recv().unwrap()
            })
        });
        yield_now();
        serve(pool);
        began.recv().unwrap();
        call.cancel();
        yield_now();
        assert!(!call.is_finished());
        go.send(7).unwrap();
        assert_eq!(call.join().unwrap().unwrap(), 7);
    });
}

#[test]
fn call_that_began_returns_its_result_after_a_timeout() {
    // S4, E11: a timeout that expires while the closure runs waits for the closure, and its result
    // is not lost
    //
    // With a virtual clock, no time passes before the call is queued, however slow the machine is.
    let builder = AioContext::builder().report_unwound(false).virtual_clock(VirtualClock::new());
    let run = builder.run_coroutine(|_| {
        let pool = idle_pool();
        let ((begin, began), (go, wait)) = (channel(), channel());
        let call = spawn(move || {
            timeout(Duration::from_millis(1), || {
                unblock_on(pool, move || {
                    begin.send(()).unwrap();
                    wait.recv().unwrap()
                })
            })
        });
        yield_now();
        serve(pool);
        began.recv().unwrap();
        // This timer is later, so the call has been resumed and has seen its timeout expire.
        sleep(Duration::from_millis(2)).unwrap();
        assert!(!call.is_finished());
        go.send(7).unwrap();
        assert_eq!(call.join().unwrap().unwrap().unwrap(), 7);
        // A closure that never begins is reported as timed out.
        assert!(matches!(timeout(Duration::from_millis(1), || unblock_on(idle_pool(), || ())), Err(TimedOut)));
    });
    run.unwrap();
}

#[test]
fn call_that_has_not_begun_is_dropped_at_context_end() {
    // C9, *never left behind*: the caller is unwound, and the closure never runs
    let ran = Arc::new(AtomicU32::new(0));
    let pool = with_pool(|pool| {
        let count = Arc::clone(&ran);
        drop(spawn(move || unblock_on(pool, move || count.fetch_add(1, Ordering::Relaxed))));
        yield_now();
        pool
    });
    serve(pool);
    with_pool(|_| unblock_on(pool, || ()).unwrap());
    assert_eq!(ran.load(Ordering::Relaxed), 0);
}

#[test]
fn context_end_waits_for_a_running_call() {
    // C9, *never left behind*: the caller is unwound after the closure has ended, and its result is
    // dropped before the context ends
    let dropped = Arc::new(AtomicU32::new(0));
    let (go, wait) = channel::<()>();
    let result = Dropped(Arc::clone(&dropped));
    let ((begin, began), last) = (channel(), Rc::new(Cell::new(None)));
    /// Releases the closure from a destructor that runs before the caller of `unblock` is unwound.
    struct Go(std::sync::mpsc::Sender<()>);
    impl Drop for Go {
        fn drop(&mut self) {
            let go = self.0.clone();
            thread::spawn(move || go.send(()));
        }
    }
    struct Seen(Rc<Cell<Option<u32>>>, Arc<AtomicU32>);
    impl Drop for Seen {
        fn drop(&mut self) {
            self.0.set(Some(self.1.load(Ordering::Relaxed)));
        }
    }
    with_pool(|pool| {
        let first = Go(go);
        drop(spawn(move || {
            let _first = first;
            crate::suspend();
        }));
        let seen = Seen(Rc::clone(&last), Arc::clone(&dropped));
        let body = move || {
            let _seen = seen;
            let _ = unblock_on(pool, move || {
                let counted = result;
                begin.send(()).unwrap();
                wait.recv().unwrap();
                drop(counted);
            });
        };
        drop(spawn(body));
        yield_now();
        serve(pool);
        began.recv().unwrap();
    });
    assert_eq!(last.get(), Some(1), "the closure was over when its caller's frame went");
}

/// Makes a blocking call when dropped.
struct CallsAtTheEnd(Calls, Rc<Cell<u32>>);

impl Drop for CallsAtTheEnd {
    fn drop(&mut self) {
        self.1.set(unblock_on(self.0, || 5).unwrap());
    }
}

#[test]
fn destructor_runs_the_call_in_place() {
    // E13: an unwinding stack cannot suspend; without a worker the destructor runs the closure
    // itself
    with_pool(|pool| {
        let result = Rc::new(Cell::new(0));
        let at_the_end = CallsAtTheEnd(pool, Rc::clone(&result));
        let bad = spawn(move || {
            let _at_the_end = at_the_end;
            panic!("with a destructor that calls");
        });
        assert_eq!(text(&*bad.join().unwrap_err()), "with a destructor that calls");
        assert_eq!(result.get(), 5);
    });
}

#[test]
fn unrelated_wake_does_not_end_the_wait() {
    // E7: the call checks for its result after each resumption
    with_pool(|pool| {
        let caller = Rc::new(Cell::new(None));
        let call = spawn({
            let caller = Rc::clone(&caller);
            move || {
                caller.set(Coroutine::current());
                unblock_on(pool, || 5).unwrap()
            }
        });
        yield_now();
        let caller = caller.take().unwrap();
        for _ in 0..3 {
            caller.enter();
            assert!(!call.is_finished());
        }
        serve(pool);
        assert_eq!(call.join().unwrap(), 5);
    });
}

#[test]
fn program_started_on_a_pool_thread_can_be_stopped() {
    // E15: a child process inherits blocked signals, and must be terminable
    let script = "kill -TERM $$; echo still there";
    let run = move || std::process::Command::new("sh").args(["-c", script]).output().unwrap();
    let output = crate::run(|| unblock(run)).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}
