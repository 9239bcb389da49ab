//! Backtraces of suspended coroutines, and of coroutines running on top of others.

use std::backtrace::Backtrace;
use std::cell::Cell;
use std::hint::black_box;
use std::io::ErrorKind;
use std::rc::Rc;

use crate::common::Log;
use coralio_runtime::{AioContext, Coroutine, spawn, suspend, yield_now};

// Never inlined, and each function does something after its call, so that each keeps its frame.

#[inline(never)]
fn outer_function() {
    middle_function();
    black_box(());
}

#[inline(never)]
fn middle_function() {
    waiting_function();
    black_box(());
}

#[inline(never)]
fn waiting_function() {
    suspend();
    black_box(());
}

/// Asserts that all names are in the text, in this order.
fn assert_in_order(text: &str, names: &[&str]) {
    let mut rest = text;
    for name in names {
        let at = rest.find(name).unwrap_or_else(|| panic!("no {name} where it should be, in:\n{text}"));
        rest = &rest[at..];
    }
}

#[test]
fn backtrace_of_suspended_coroutine_shows_its_wait() {
    // C13: the backtrace of a suspended coroutine goes from its wait up to its root; the coroutine
    // is undisturbed and resumes normally
    AioContext::run(|_| {
        let log = Log::default();
        let co = Coroutine::new({
            let log = log.clone();
            move || {
                let _drop = log.on_drop("dropped");
                outer_function();
                log.add("went-on");
                suspend();
            }
        });
        co.enter();
        let first = co.backtrace().unwrap().to_string();
        assert_in_order(&first, &["waiting_function", "middle_function", "outer_function"]);
        // Repeating it does not grow the stack.
        assert_eq!(co.backtrace().unwrap().to_string().lines().count(), first.lines().count());
        assert_eq!(log.take(), "");
        co.enter();
        assert_eq!(log.take(), "went-on");
        assert!(!co.backtrace().unwrap().to_string().contains("waiting_function"));
        co.enter();
        assert_eq!(log.take(), "dropped");
        assert_eq!(co.backtrace().unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn backtrace_of_running_coroutine_continues_into_its_enterers() {
    // C13: a plain capture in a running coroutine continues through its enterers to the thread's
    // own stack
    #[inline(never)]
    fn enters_inner(inner: Coroutine) {
        inner.enter();
        black_box(());
    }
    #[inline(never)]
    fn enters_outer(outer: Coroutine) {
        outer.enter();
        black_box(());
    }
    #[inline(never)]
    fn captures() -> Backtrace {
        black_box(Backtrace::force_capture())
    }
    AioContext::run(|_| {
        let trace = Rc::new(Cell::new(None));
        let inner = Coroutine::new({
            let trace = Rc::clone(&trace);
            move || trace.set(Some(captures()))
        });
        enters_outer(Coroutine::new(move || enters_inner(inner)));
        let text = trace.take().unwrap().to_string();
        let own = "backtrace_of_running_coroutine_continues_into_its_enterers";
        assert_in_order(&text, &["captures", "enters_inner", "enters_outer", own]);
    });
}

#[test]
fn backtrace_of_scheduled_coroutine_is_taken_by_another() {
    // C13: a coroutine can take a backtrace, even in a destructor during a panic; a scheduled
    // target stays scheduled
    struct Asks(Coroutine, Log);
    impl Drop for Asks {
        fn drop(&mut self) {
            assert_in_order(&self.0.backtrace().unwrap().to_string(), &["waiting_function", "outer_function"]);
            self.1.add("asked");
        }
    }
    let log = Log::default();
    AioContext::run(|ctx| {
        let waits = Coroutine::new({
            let log = log.clone();
            move || {
                outer_function();
                log.add("went-on");
            }
        });
        waits.enter();
        let asks = Asks(waits, log.clone());
        let panics = spawn(move || {
            let _asks = asks;
            panic!("with a destructor that asks");
        });
        assert!(panics.join().is_err());
        let rescheduled = Rc::new(Cell::new(None));
        let task = spawn({
            let (rescheduled, log) = (Rc::clone(&rescheduled), log.clone());
            move || {
                rescheduled.set(Coroutine::current());
                yield_now();
                log.add("rescheduled-went-on");
            }
        });
        let first = rescheduled.clone();
        spawn(move || drop(first.get().map(|co| co.backtrace().unwrap()))).join().unwrap();
        task.join().unwrap();
        waits.wake();
        assert!(!ctx.poll(false));
    });
    assert_eq!(log.take(), "asked rescheduled-went-on went-on");
}

#[test]
fn unstarted_and_ended_coroutines_have_no_backtrace() {
    // C13: a coroutine that was never entered, is entered, or has ended returns an error that says
    // so
    AioContext::run(|_| {
        let fresh = Coroutine::builder().name("fresh").create(|| {}).unwrap();
        let error = fresh.backtrace().unwrap_err();
        assert_eq!(error.to_string(), "no backtrace of coroutine 'fresh': not entered yet, so it has no frames");
        spawn(|| {
            let error = Coroutine::current().unwrap().backtrace().unwrap_err();
            assert!(error.kind() == ErrorKind::ResourceBusy && error.to_string().contains("force_capture"), "{error}");
        })
        .join()
        .unwrap();
        fresh.enter();
        assert!(fresh.backtrace().unwrap_err().to_string().ends_with("it has ended or belongs to another thread"));
    });
}

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "AddressSanitizer keeps locals off the stack")]
fn backtrace_needs_little_stack() {
    // C13: a backtrace needs only stack that the coroutine has left; with too little left it is
    // refused
    const SIZE: usize = 64 * 1024;
    /// Suspends on every level, until there is just enough stack left to suspend.
    fn descend(lowest: usize) {
        let here = black_box([0u8; 16]);
        suspend();
        if here.as_ptr().addr() > lowest {
            descend(lowest);
        }
        black_box(here);
    }
    AioContext::run(|_| {
        let root = || {
            // The first stack of a context ends at a page boundary.
            let here = black_box([0u8; 16]);
            let top = here.as_ptr().addr().next_multiple_of(4096);
            descend(top - SIZE + 4096 + 1500);
        };
        let co = Coroutine::builder().stack_size(SIZE).track_stack_usage(true).create(root).unwrap();
        let (mut had, mut refused, mut most) = (0, 0, 0);
        co.enter();
        while !co.has_ended() {
            let before = co.peak_stack_usage().unwrap();
            match co.backtrace() {
                Ok(_) => {
                    had += 1;
                    most = most.max(co.peak_stack_usage().unwrap() - before);
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                    refused += 1;
                }
            }
            co.enter();
        }
        assert!(had > 10 && refused > 0, "{had} had, {refused} refused");
        assert!(most < 512, "a backtrace takes {most} bytes of the coroutine's stack");
    });
}
