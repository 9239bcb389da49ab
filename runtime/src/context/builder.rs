//! Setting a context up, and running it: from here on a thread is its home.

#![allow(unsafe_code)]

use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use crate::coroutine::Coroutine;
use crate::coroutine::stack::{DEFAULT_STACK_SIZE, StackPool};
use crate::home::{Home, fork};
use crate::trace::Trace;

use super::AioContext;
use super::clock::Clock;
use super::shared::Shared;
use super::signal::Counted;
use super::stall::Watcher;

/// Sets a context up.
#[derive(Clone, Debug)]
#[must_use]
pub struct ContextBuilder {
    stack_size: usize,
    poll_limit: Duration,
    deadlock_report: Option<Duration>,
    stall_report: Option<Duration>,
    unwind_report: bool,
    measure_stack: bool,
    trace: Option<Trace>,
    pub(super) clock: Clock,
}

impl ContextBuilder {
    /// Stack size of its coroutines in bytes, guard page included, where none is asked for.
    pub fn stack_size(mut self, bytes: usize) -> ContextBuilder {
        self.stack_size = bytes;
        self
    }

    /// For how long the loop may keep looking at sources in memory, the I/O engine's ring first of all, before it sleeps.
    /// Without it, not at all. How long it does look, it learns for each source: longer while that pays, less and less
    /// while it does not.
    ///
    /// It buys latency with CPU time: what comes while the loop looks is not woken for. A limit twice the latency of the
    /// device is a good one.
    pub fn poll_limit(mut self, limit: Duration) -> ContextBuilder {
        self.poll_limit = limit;
        self
    }

    /// After what time in which the loop had nothing to do it looks whether coroutines wait for each other for ever, and says
    /// so on standard error, with what each waits for, where, and who has it. One second without this; `None`: never.
    ///
    /// Only what is certain is reported: nothing of the kernel's is awaited, and whoever could end a wait is known to wait
    /// as well. If other threads run, those that wait for a semaphore, a channel or a queue are taken to be theirs to wake.
    /// With a [virtual clock](Self::virtual_clock) it looks at once, for no time passes in which nothing happens.
    pub fn deadlock_report(mut self, after: Option<Duration>) -> ContextBuilder {
        self.deadlock_report = after;
        self
    }

    /// Whether to say on standard error, when the context ends, how many of its coroutines had not ended and were unwound. It
    /// does without this.
    pub fn unwind_report(mut self, report: bool) -> ContextBuilder {
        self.unwind_report = report;
        self
    }

    /// Reports on standard error each round of the loop, or enter outside of one, that takes longer than `limit`: which
    /// coroutine runs, and a backtrace of where. Off without this. It takes a thread, which stops the loop's for a moment, by
    /// `SIGURG`, to see where it is.
    pub fn stall_report(mut self, limit: Duration) -> ContextBuilder {
        self.stall_report = Some(limit);
        self
    }

    /// Whether its coroutines' stacks are measured where nothing else is asked for. Costs memory and time for each
    /// coroutine: see [`Builder::measure_stack`](crate::Builder::measure_stack).
    pub fn measure_stack(mut self, measure: bool) -> ContextBuilder {
        self.measure_stack = measure;
        self
    }

    /// Has what happens in the context told to an event log.
    pub fn trace(mut self, trace: &Trace) -> ContextBuilder {
        self.trace = Some(trace.clone());
        self
    }

    /// As [`AioContext::run`].
    ///
    /// # Errors
    ///
    /// The system has no descriptors left for the loop.
    ///
    /// # Panics
    ///
    /// As [`AioContext::run`].
    #[track_caller]
    pub fn run<R>(self, f: impl FnOnce(&AioContext) -> R) -> io::Result<R> {
        fork::refuse_in_child("running a context");
        let context = AioContext { shared: Shared::new(self.clock, self.trace.as_ref().map(Trace::tracer))? };
        context.set_poll_limit(self.poll_limit);
        let _counted = Counted::new(&context);
        let _watcher = self.stall_report.map(|limit| Watcher::start(&context, limit)).transpose()?;
        let stacks = StackPool::new(self.stack_size, self.measure_stack);
        Ok(Home::run(Arc::clone(&context.shared), stacks, |home| {
            home.watched.set(self.stall_report.is_some());
            home.patience.set_limit(self.deadlock_report);
            home.reports_unwound.set(self.unwind_report);
            f(&context)
        }))
    }

    /// Makes this thread home to a new context, runs `f` in it as the first coroutine, and the loop until that one ends.
    /// `f` may borrow. Coroutines that are left then are unwound.
    ///
    /// # Errors
    ///
    /// The system has no descriptors left for the loop, or no memory for a stack.
    ///
    /// # Panics
    ///
    /// If `f` panics, with its panic. If this thread runs a context already.
    #[track_caller]
    pub fn run_coroutine<R>(self, f: impl FnOnce(&AioContext) -> R) -> io::Result<R> {
        // Here: what is made in the closure is not made by the caller.
        let main = Coroutine::builder().name("main");
        self.run(|context| {
            let first = || f(context);
            // SAFETY: what `first` borrows outlives `run`, and with it the context: leaving this closure early, by a
            // panic in the loop, ends in `Home::run`, which unwinds all coroutines before it returns.
            let main = unsafe { main.spawn_borrowing(first) }?;
            Ok(main.join().unwrap_or_else(|payload| resume_unwind(payload)))
        })?
    }
}

impl AioContext {
    /// Makes this thread home to a new context while `f` runs, on the thread's own stack. Coroutines that are left when
    /// it returns are unwound then, and what `f` returned is handed on.
    ///
    /// Nothing runs by itself: `f` enters coroutines, and calls [`poll`](Self::poll).
    ///
    /// ```
    /// use coralio_runtime::{AioContext, spawn};
    ///
    /// let answer = AioContext::run(|ctx| {
    ///     let task = spawn(|| 6 * 7);
    ///     while !task.is_finished() {
    ///         ctx.poll(true);
    ///     }
    ///     task.join().unwrap()
    /// });
    /// assert_eq!(answer, 42);
    /// ```
    ///
    /// # Panics
    ///
    /// If `f` panics, with its panic, after its coroutines were unwound. If this thread runs a context already, or the
    /// system has no descriptors left.
    #[track_caller]
    pub fn run<R>(f: impl FnOnce(&AioContext) -> R) -> R {
        match AioContext::builder().run(f) {
            Ok(value) => value,
            Err(error) => panic!("cannot make a context: {error}"),
        }
    }

    /// For a stack size of one's own, or errors instead of panics.
    pub fn builder() -> ContextBuilder {
        ContextBuilder {
            stack_size: DEFAULT_STACK_SIZE,
            measure_stack: false,
            clock: Clock::Real,
            poll_limit: Duration::ZERO,
            deadlock_report: Some(Duration::from_secs(1)),
            stall_report: None,
            unwind_report: true,
            trace: None,
        }
    }
}
