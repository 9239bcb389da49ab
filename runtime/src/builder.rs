//! Configuring a context, and running it with the calling thread as its home.

#![allow(unsafe_code)]

use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use crate::context::{AioContext, Heartbeat, IdleTimer, LocalContext, Settings, SharedContext};
use crate::coroutine::{DEFAULT_STACK_SIZE, StackPool};
use crate::diagnostics::{AlternateStack, RegistryGuard, Watcher, deadlock};
use crate::sys::{Clock, Pinned, VirtualClock, fork};
use crate::task::Coroutine;
use crate::trace::Trace;

/// Configures a context.
#[derive(Clone, Debug)]
#[must_use]
pub struct ContextBuilder {
    stack_size: usize,
    busy_poll_max: Duration,
    report_deadlocks_after: Option<Duration>,
    report_stalls_after: Option<Duration>,
    report_unwound: bool,
    track_stack_usage: bool,
    trace: Option<Trace>,
    clock: Clock,
    cpus: Option<Vec<usize>>,
}

impl ContextBuilder {
    /// Sets the default stack size of coroutines in bytes, guard page included. At least
    /// [`MIN_STACK_SIZE`](crate::MIN_STACK_SIZE): a smaller size is raised to it.
    pub fn stack_size(mut self, bytes: usize) -> ContextBuilder {
        self.stack_size = bytes;
        self
    }

    /// Sets how long the loop may busy-poll sources in memory, above all the I/O engine's ring,
    /// before it sleeps. Default: zero, no busy-polling. The actual time adapts per source: it
    /// grows while that pays, and shrinks while it does not.
    ///
    /// Busy-polling trades CPU time for latency: an event that arrives meanwhile needs no wake-up.
    /// Twice the latency of the device is a good limit.
    pub fn busy_poll_max(mut self, limit: Duration) -> ContextBuilder {
        self.busy_poll_max = limit;
        self
    }

    /// Sets how long the loop must be idle before it checks for deadlocked coroutines. It reports
    /// them on standard error, with what each waits for, where, and the owner. Default: one second.
    /// `None` disables the check.
    ///
    /// Only certain deadlocks are reported: no event of the kernel is pending, and everything that
    /// could end a wait is known to wait as well. While other threads run, they are assumed able to
    /// wake suspended coroutines and the waiters of semaphores, channels, queues and futures. With a [virtual clock](Self::virtual_clock)
    /// the check is immediate, since idle time does not pass there.
    pub fn report_deadlocks_after(mut self, after: Option<Duration>) -> ContextBuilder {
        self.report_deadlocks_after = after;
        self
    }

    /// Sets whether the end of the context reports, on standard error, the number of coroutines
    /// that had not ended and were unwound. Default: true.
    pub fn report_unwound(mut self, report: bool) -> ContextBuilder {
        self.report_unwound = report;
        self
    }

    /// Reports on standard error each iteration of the loop, or enter outside of an iteration, that
    /// takes longer than `limit`, with the coroutine that runs and a backtrace. Off by default.
    /// Uses a thread, which stops the home thread briefly by `SIGURG` to take the backtrace.
    ///
    /// ```no_run
    /// use coralio::context::AioContext;
    /// use std::time::Duration;
    ///
    /// let builder = AioContext::builder().report_stalls_after(Duration::from_millis(100));
    /// builder.run_coroutine(|_ctx| std::thread::sleep(Duration::from_secs(1))).unwrap(); // is reported
    /// ```
    pub fn report_stalls_after(mut self, limit: Duration) -> ContextBuilder {
        self.report_stalls_after = Some(limit);
        self
    }

    /// Sets whether the stack use of coroutines is measured by default. Costs memory and time for
    /// each coroutine: see
    /// [`CoroutineBuilder::track_stack_usage`](crate::CoroutineBuilder::track_stack_usage).
    pub fn track_stack_usage(mut self, measure: bool) -> ContextBuilder {
        self.track_stack_usage = measure;
        self
    }

    /// Makes the context use `clock` instead of the system's time, for timers,
    /// [`sleep`](crate::sleep), [`timeout`](crate::timeout), idle bottom halves, and the reported
    /// duration of waits. For tests and simulations.
    ///
    /// The clock advances when the loop has nothing else to do: to the next timer, or as a
    /// simulated backend requires. I/O of a real backend is waited for in real time, and a timer
    /// meanwhile fires after its remaining time in real time. With no timer and no I/O, the loop
    /// checks for a deadlock immediately if
    /// [`report_deadlocks_after`](Self::report_deadlocks_after) allows it, and then sleeps until a
    /// descriptor or another thread wakes it. It never busy-polls:
    /// [`busy_poll_max`](Self::busy_poll_max) is a real time.
    pub fn virtual_clock(mut self, clock: VirtualClock) -> ContextBuilder {
        self.clock = Clock::Virtual(clock);
        self
    }

    /// Records the context's events in an event log.
    pub fn trace(mut self, trace: &Trace) -> ContextBuilder {
        self.trace = Some(trace.clone());
        self
    }

    /// Restricts the context's thread to these CPUs (numbered from 0) while the context runs. The
    /// thread pool of `coralio` is not restricted.
    ///
    /// A context whose thread does not move from CPU to CPU keeps its caches warm. Leave the choice
    /// to the system where contexts share the CPUs with other busy threads.
    ///
    /// ```
    /// use coralio::context::AioContext;
    ///
    /// AioContext::builder().cpus([0]).run(|_context| println!("on CPU 0"))?;
    /// # std::io::Result::Ok(())
    /// ```
    pub fn cpus(mut self, cpus: impl IntoIterator<Item = usize>) -> ContextBuilder {
        self.cpus = Some(cpus.into_iter().collect());
        self
    }

    /// As [`AioContext::run`].
    ///
    /// # Errors
    ///
    /// The system has no descriptors left for the loop. `InvalidInput`: the process may use none of
    /// [`cpus`](Self::cpus).
    ///
    /// # Panics
    ///
    /// As [`AioContext::run`].
    #[track_caller]
    pub fn run<R>(self, f: impl FnOnce(&AioContext) -> R) -> io::Result<R> {
        fork::refuse_in_child("running a context");
        let tracer = self.trace.as_ref().map(|trace| trace.tracer(&self.clock));
        let context = AioContext { shared: SharedContext::new(self.clock, tracer)? };
        context.set_busy_poll_max(self.busy_poll_max);
        let _counted = RegistryGuard::new(&context);
        let heartbeat = self.report_stalls_after.map(|_| Arc::<Heartbeat>::default());
        let _watcher = match (self.report_stalls_after, &heartbeat) {
            (Some(limit), Some(heartbeat)) => Some(Watcher::start(&context, Arc::clone(heartbeat), limit)?),
            _ => None,
        };
        // After the watcher, whose thread must not depend on this one's CPU.
        let _pinned = self.cpus.as_deref().map(Pinned::new).transpose()?;
        let _alternate_stack = AlternateStack::install();
        let settings = Settings {
            stacks: StackPool::new(self.stack_size, self.track_stack_usage),
            heartbeat,
            idle_timer: IdleTimer::new(self.report_deadlocks_after, deadlock::reporter()),
            reports_unwound: self.report_unwound,
        };
        Ok(LocalContext::run(&context, settings, || f(&context)))
    }

    /// Creates a context with this thread as its home, runs `f` as its first coroutine, and runs
    /// the loop until that coroutine ends. `f` may borrow. The remaining coroutines are then
    /// unwound.
    ///
    /// # Errors
    ///
    /// The system has no descriptors left for the loop, or no memory for a stack.
    ///
    /// # Panics
    ///
    /// Propagates a panic of `f`. Panics if this thread already runs a context.
    #[track_caller]
    pub fn run_coroutine<R>(self, f: impl FnOnce(&AioContext) -> R) -> io::Result<R> {
        self.run_coroutine_with(|_context| Ok(()), f)
    }

    /// Runs `f` as [`run_coroutine`](Self::run_coroutine) does; first calls `prepare` inside the
    /// context, on the thread's own stack, for example to attach an I/O engine.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use coralio::engine::scripted::ScriptedBackend;
    /// use coralio::engine::Engine;
    ///
    /// let attach = |_: &AioContext| Engine::<_>::attach(ScriptedBackend::new(8), 8).map(drop);
    /// let name = AioContext::builder().run_coroutine_with(attach, |context| {
    ///     context.source().expect("attached by now").describe()
    /// })?;
    /// assert!(name.contains("in_flight 0"), "{name}");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of `prepare`; `f` then does not run. Otherwise as `run_coroutine`.
    ///
    /// # Panics
    ///
    /// As `run_coroutine`.
    #[track_caller]
    pub fn run_coroutine_with<R>(
        self,
        prepare: impl FnOnce(&AioContext) -> io::Result<()>,
        f: impl FnOnce(&AioContext) -> R,
    ) -> io::Result<R> {
        // Here, not in the closure, so that the caller is recorded as the creator.
        let main = Coroutine::builder().name("main");
        self.run(|context| {
            prepare(context)?;
            let first = || f(context);
            // SAFETY: what `first` borrows outlives `run`, and with it the context: leaving this
            // closure early, by a panic in the loop, ends in `LocalContext::run`, which unwinds all
            // coroutines before it returns.
            let main = unsafe { main.spawn_borrowing(first) }?;
            Ok(main.join().unwrap_or_else(|payload| resume_unwind(payload)))
        })?
    }
}

impl AioContext {
    /// Creates a context with this thread as its home while `f` runs, on the thread's own stack.
    /// When `f` returns, the remaining coroutines are unwound; then its result is returned.
    ///
    /// Nothing runs by itself: `f` must enter coroutines, and call [`poll`](Self::poll).
    ///
    /// ```
    /// use coralio::spawn;
    /// use coralio::context::AioContext;
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
    /// Propagates a panic of `f`, after unwinding its coroutines. Panics if this thread already
    /// runs a context, or if the system has no descriptors left.
    #[track_caller]
    pub fn run<R>(f: impl FnOnce(&AioContext) -> R) -> R {
        match AioContext::builder().run(f) {
            Ok(value) => value,
            Err(error) => panic!("cannot create a context: {error}"),
        }
    }

    /// Returns a builder, for a context with other settings, or to get errors instead of panics.
    pub fn builder() -> ContextBuilder {
        ContextBuilder {
            stack_size: DEFAULT_STACK_SIZE,
            track_stack_usage: false,
            clock: Clock::Real,
            busy_poll_max: Duration::ZERO,
            report_deadlocks_after: Some(Duration::from_secs(1)),
            report_stalls_after: None,
            report_unwound: true,
            trace: None,
            cpus: None,
        }
    }
}
