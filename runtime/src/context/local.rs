//! The part of a context that belongs to its home thread.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};
use std::{mem, ptr};

use crate::context::{AioContext, Attached, Heartbeat, HomeToken, IdleTimer, PollWindow, atfork};
use crate::coroutine::StackPool;
use crate::scheduler::{Scheduler, no_home};
use crate::sys::{FirstPanic, Payload, abort, drop_quietly, in_child};

thread_local! {
    /// The context of this thread, while it runs one that is not hidden.
    static CURRENT: Cell<*const LocalContext> = const { Cell::new(ptr::null()) };
    /// The context of this thread while it is hidden: its loop sleeps, and another thread may
    /// inspect it.
    static SUSPENDED: Cell<*const LocalContext> = const { Cell::new(ptr::null()) };
}

/// The settings of a run.
pub(crate) struct Settings {
    pub(crate) stacks: StackPool,
    pub(crate) heartbeat: Option<Arc<Heartbeat>>,
    pub(crate) idle_timer: IdleTimer,
    /// Whether the end of the context reports the coroutines that were unwound.
    pub(crate) reports_unwound: bool,
}

/// A context as its home thread sees it.
pub(crate) struct LocalContext {
    pub(crate) context: AioContext,
    pub(crate) scheduler: Scheduler,
    /// The I/O source of this context, if it has one.
    pub(crate) source: Attached,
    /// How long busy-polling for completions pays off before the loop sleeps.
    pub(crate) source_window: PollWindow,
    /// Iterations that made progress.
    pub(crate) progress: Cell<u64>,
    /// Read by the stall watcher, if there is one.
    pub(crate) heartbeat: Option<Arc<Heartbeat>>,
    pub(crate) idle_timer: IdleTimer,
}

impl LocalContext {
    /// Makes this thread home to a context while `f` runs, then ends the remaining coroutines.
    #[track_caller]
    pub(crate) fn run<R>(context: &AioContext, settings: Settings, f: impl FnOnce() -> R) -> R {
        atfork::install();
        assert!(
            SUSPENDED.get().is_null(),
            "cannot run a context inside an engine's `sleep`: the thread's context is asleep; run it on another thread"
        );
        assert!(
            CURRENT.get().is_null(),
            "this thread already runs a context; spawn a coroutine in it, or run the other context on another thread"
        );
        let home = LocalContext {
            context: context.clone(),
            scheduler: Scheduler::new(Arc::clone(&context.shared.scheduler), settings.stacks),
            source: Attached::default(),
            source_window: PollWindow::default(),
            progress: Cell::new(0),
            heartbeat: settings.heartbeat,
            idle_timer: settings.idle_timer,
        };
        let current = Current::set(&home);
        // Panics are caught, so that the coroutines are unwound on a thread that is not itself
        // unwinding.
        let outcome = catch_unwind(AssertUnwindSafe(f));
        let ended = home.end(settings.reports_unwound);
        drop(current);
        if in_child() {
            // The child's copies of coroutines are never unwound, since they would wait for the
            // parent's I/O.
            atfork::report_leak(&home.scheduler);
            mem::forget(home);
        } else if home.scheduler.is_leaking() {
            mem::forget(home);
        } else {
            // Dropped here and not at the end: an engine's destructor may panic, and this thread is
            // not unwinding yet.
            drop(home);
        }
        match (outcome, ended) {
            (Ok(value), None) => value,
            (Err(payload), ended) => {
                ended.into_iter().for_each(drop_quietly);
                resume_unwind(payload)
            }
            (Ok(_), Some(payload)) => resume_unwind(payload),
        }
    }

    /// Returns the context of this thread, if it runs one.
    #[inline]
    pub(crate) fn current<'a>() -> Option<&'a LocalContext> {
        // SAFETY: *home outlives its stacks*: the pointer is non-null only during `run`, and
        // callers keep the reference on stacks that end before `run` does.
        unsafe { CURRENT.get().as_ref() }
    }

    /// Like [`current`](Self::current), but also while the context is hidden. For a signal handler,
    /// which only reads.
    pub(crate) fn current_or_suspended<'a>() -> Option<&'a LocalContext> {
        // SAFETY: as in `current`: `with_context_hidden` returns before the context is gone.
        LocalContext::current().or_else(|| unsafe { SUSPENDED.get().as_ref() })
    }

    /// Returns the context of this thread, or panics with `what` as the refused operation.
    #[inline]
    #[track_caller]
    pub(crate) fn expect<'a>(what: &str) -> &'a LocalContext {
        match LocalContext::current() {
            Some(home) => home,
            None => no_home(what),
        }
    }

    /// Starts a heartbeat for the stall watcher, if there is one; dropping the value ends it.
    #[inline]
    pub(crate) fn heartbeat(&self) -> Option<impl Drop> {
        self.heartbeat.as_deref().map(Heartbeat::section)
    }

    /// Runs `f` as if this thread ran no context.
    #[inline]
    pub(crate) fn with_context_hidden<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Shown<'a>(&'a LocalContext);
        impl Drop for Shown<'_> {
            fn drop(&mut self) {
                if in_child() {
                    return;
                }
                set_current(Some(self.0));
                compiler_fence(Ordering::SeqCst);
                SUSPENDED.set(ptr::null());
            }
        }
        // One of the two is set at any moment, so a signal handler always finds the context.
        SUSPENDED.set(self);
        compiler_fence(Ordering::SeqCst);
        set_current(None);
        let _shown = Shown(self);
        f()
    }

    /// Ends the context: drops the users' registrations, unwinds the remaining coroutines in order
    /// of creation (rule C9), and closes the I/O engine. Returns the payload of the first panic. A
    /// panic does not prevent the remaining steps. Does nothing in the child of a fork.
    fn end(&self, reports_unwound: bool) -> Option<Payload> {
        let mut panics = FirstPanic::default();
        // Any step may fork: the remaining steps are the parent's.
        if !in_child() {
            // Under the lock, so that no poll of another thread runs a handler meanwhile.
            let guard = self.context.shared.acquire_at_home();
            let registered = self.context.shared.close();
            drop(guard);
            registered.into_iter().for_each(|value| panics.catch(|| drop(value)));
        }
        if in_child() {
            return panics.into_payload();
        }
        self.scheduler.set_ending();
        if self.scheduler.is_leaking() {
            self.scheduler.leak();
            return panics.into_payload();
        }
        self.scheduler.unwind_all(reports_unwound, &mut panics);
        if let Some(source) = self.source.get().filter(|_| !in_child()) {
            // A destructor may have attached it since. The source may keep the context alive.
            *self.context.shared.source.lock() = None;
            panics.catch(|| source.close(HomeToken::new(self)));
        }
        if !in_child() {
            // A destructor may have attached an engine after the context was closed. An engine
            // keeps its context, so the two would keep each other. This is not the last handle:
            // `source` has another.
            *self.context.shared.source.lock() = None;
        }
        panics.into_payload()
    }
}

/// Sets this thread's context, until dropped: no exit from [`LocalContext::run`] leaves a pointer
/// to it behind.
struct Current<'a>(&'a LocalContext);

impl<'a> Current<'a> {
    fn set(home: &'a LocalContext) -> Current<'a> {
        set_current(Some(home));
        Current(home)
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if in_child() {
            // The child's context was disabled at the fork, and its coroutines are leaked.
            return;
        }
        let scheduler = &self.0.scheduler;
        if !scheduler.is_leaking() && scheduler.live_in_any_order().next().is_some() {
            abort(format_args!("context ended without unwinding all of its coroutines, whose stacks would be freed"));
        }
        // First, so that other threads learn that the home is going before they inspect it.
        self.0.context.shared.thread.leave();
        set_current(None);
    }
}

/// `home` must stay valid until the next call. The callers: `Current`; `with_context_hidden`, while
/// its `Current` exists; and with `None`, the child of a fork.
fn set_current(home: Option<&LocalContext>) {
    CURRENT.set(home.map_or(ptr::null(), ptr::from_ref));
    // SAFETY: *home outlives its stacks*: the scheduler is part of the context, which `Current`
    // borrows until it has reset both.
    unsafe { Scheduler::set_current(home.map(|home| &home.scheduler)) };
}

/// Makes this thread, the only one of a fork's child, run no context.
pub(super) fn disable() {
    SUSPENDED.set(ptr::null());
    set_current(None);
}
