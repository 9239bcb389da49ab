//! The event loop: the steps of an iteration, and when the loop sleeps.
//!
//! ```text
//! poll(blocking)
//!   under the context's lock:
//!     iteration:  source.dispatch      reaps completions, enters coroutines
//!                 bottom halves        in the order in which they were scheduled
//!                 fd handlers          for reported events; then poll handlers, from memory
//!                 timers               in order of deadline
//!                 ready coroutines     spawned, rescheduled, woken remotely (home thread only)
//!                 source.flush         submits the batch gathered meanwhile, in one system call
//!   if there was no progress and the poll may block:
//!     source.flush                     submits what it has held back, or leaves that to its sleep
//!     busy-poll sources in memory for a while, if configured
//!     announce the sleep, check once more, release the lock fully, sleep, iterate once more
//! ```
//!
//! Polls nest (rule X2): work in progress lives in queues of the context, so a nested iteration
//! continues where the outer one stopped.

use std::hint;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::coroutine::CoroutineId;
use crate::sys::fork;
use crate::trace::{Span, Tracer};

mod atfork;
pub(crate) mod attach;
pub(crate) mod bottom_half;
pub(crate) mod event_notifier;
pub(crate) mod fd_handler;
pub(crate) mod heartbeat;
pub(crate) mod home_thread;
pub(crate) mod idle;
pub(crate) mod local;
pub(crate) mod lock;
pub(crate) mod poll_handler;
mod poll_while;
pub(crate) mod registration;
pub(crate) mod shared;
pub(crate) mod source;
pub(crate) mod timer;

pub(crate) use attach::Attached;
pub(crate) use bottom_half::BottomHalves;
pub(crate) use fd_handler::{EdgeListener, FdHandler, Interest, Readiness, Watches};
pub(crate) use heartbeat::Heartbeat;
pub(crate) use home_thread::{HomeThread, context_ended};
pub(crate) use idle::{IdleHook, IdleTimer};
pub(crate) use local::{LocalContext, Settings};
pub(crate) use lock::{ContextGuard, ContextLock, HomeLockGuard};
pub(crate) use poll_handler::{PollWindow, Pollers};
pub(crate) use poll_while::ContextWaiters;
pub(crate) use registration::ContextEnded;
pub(crate) use shared::{NOTIFY_TOKEN, SharedContext};
pub(crate) use source::{EventSource, Flush, HomeRef, HomeToken, LoopToken, SourceState};
pub(crate) use timer::{Action, Timer, Timers};

/// How many iterations of a busy loop share one poll of the descriptors.
pub(crate) const ROUNDS_PER_POLL: u32 = 8;

/// A handle to a context, usable from any thread. A context is an event loop and its coroutines.
///
/// A context exists during [`AioContext::run`], on the calling thread, its *home thread*. Other
/// threads may wake its coroutines, schedule bottom halves, [`notify`](Self::notify) it, and poll
/// it without blocking.
#[derive(Clone)]
pub struct AioContext {
    pub(crate) shared: Arc<SharedContext>,
}

impl AioContext {
    /// Returns the context whose home is this thread, if there is one.
    pub fn current() -> Option<AioContext> {
        LocalContext::current().map(|home| home.context.clone())
    }

    /// Returns whether both handles refer to the same context.
    pub fn is_same(&self, other: &AioContext) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Returns whether this thread is the context's home thread.
    #[inline]
    pub fn is_home(&self) -> bool {
        self.shared.home().is_some()
    }

    /// Runs one iteration of the loop: completions, bottom halves, fd handlers, timers and
    /// coroutines that are due. Returns whether anything was done. If nothing is due and `blocking`
    /// is set, sleeps until something is.
    ///
    /// May be called within an iteration, by any code that the loop runs. Another thread may poll
    /// too, without blocking: it runs handlers and reaps, and leaves coroutines to the home thread.
    ///
    /// To wait for a condition, alternate between the check and the poll:
    /// `while !done() { ctx.poll(true); }`. A thread that makes the condition true must call
    /// [`notify`](Self::notify) afterwards.
    ///
    /// A blocking poll releases the context's lock while it sleeps, even if the caller holds a
    /// guard from [`acquire`](Self::acquire), and reacquires it before it returns. The protected
    /// state may have changed meanwhile.
    ///
    /// # Panics
    ///
    /// Panics if a thread other than home polls with `blocking` set. Propagates panics of the code
    /// that it runs.
    ///
    /// # Control
    ///
    /// May enter coroutines. A blocking poll blocks the thread, not only the coroutine.
    #[doc(alias = "aio_poll")]
    pub fn poll(&self, blocking: bool) -> bool {
        match self.shared.home() {
            Some(home) if blocking => self.poll_or_sleep(home, Flush::Iteration),
            Some(home) => {
                let _guard = self.shared.acquire_at_home();
                home.scheduler.round(|| self.round(home, false, Flush::Iteration))
            }
            None => self.foreign_poll(blocking),
        }
    }

    /// Polls until `done` returns true, on the home thread. The I/O source may hold requests back
    /// from one poll to the next.
    pub(crate) fn poll_until(&self, mut done: impl FnMut() -> bool) {
        while !done() {
            match self.shared.home() {
                Some(home) => self.poll_or_sleep(home, Flush::MayHold),
                // Panics: this is the child of a fork.
                None => self.foreign_poll(true),
            };
        }
        if let Some(home) = self.shared.home() {
            let _guard = self.shared.acquire_at_home();
            self.flush(home, Flush::Release);
        }
    }

    /// Polls as a blocking [`poll`](Self::poll). `flush` is for the end of each iteration.
    fn poll_or_sleep(&self, home: &LocalContext, flush: Flush) -> bool {
        let _guard = self.shared.acquire_at_home();
        let quiet = self.quiet_source(home);
        if quiet.is_none() && home.scheduler.round(|| self.round(home, true, flush)) {
            return true;
        }
        let polls = self.shared.busy_poll_max.load(Ordering::Relaxed) > 0 && !self.shared.scheduler.clock.is_virtual();
        // A quiet source has nothing to submit, unless it holds requests back.
        let before_sleep = if polls { Flush::BeforeBusyPoll } else { Flush::BeforeSleep };
        if !(quiet.is_none_or(|state| state == SourceState::Held) && self.flush(home, before_sleep)) {
            self.wait(home, polls);
        }
        let progress = home.scheduler.round(|| self.round(home, false, flush));
        // Last: the caller checks its condition before its next poll, and so observes the notified
        // change.
        self.shared.scheduler.sleep.take_notified();
        progress
    }

    /// Runs one iteration. With `may_sleep`, the loop will sleep if there is no progress.
    fn round(&self, home: &LocalContext, may_sleep: bool, flush: Flush) -> bool {
        let shared = &*self.shared;
        let token = LoopToken::at_home_of(home);
        let _heartbeat = home.heartbeat();
        let _span = shared.scheduler.span(Span::Round);
        home.scheduler.clock.count_round();
        let mut progress = home.source.get().is_some_and(|source| source.dispatch(token));
        progress |= shared.bottom_halves.run_due(&self.shared);
        progress |= self.serve_watches(progress, may_sleep);
        progress |= shared.pollers.run_ready(&self.shared);
        progress |= shared.timers.run_due(&self.shared);
        progress |= home.scheduler.run_ready();
        // Read again: the source may have been detached.
        progress |= home.source.get().is_some_and(|source| source.flush(token, flush));
        home.progress.set(home.progress.get() + u64::from(progress));
        progress
    }

    /// Runs an iteration on another thread; leaves coroutines to the home thread.
    #[cold]
    fn foreign_poll(&self, blocking: bool) -> bool {
        fork::refuse_in_child("polling a context");
        assert!(
            !blocking,
            "poll(true) called off the context's home thread; call poll(false), or poll from the home thread"
        );
        let guard = self.acquire();
        let _span = self.shared.scheduler.span(Span::Round);
        let source = self.shared.source.lock().clone();
        let token = LoopToken::elsewhere(&guard);
        let mut progress = source.as_ref().is_some_and(|source| source.dispatch(token));
        progress |= self.shared.bottom_halves.run_due(&self.shared);
        progress |= self.serve_watches(progress, false);
        progress |= self.shared.pollers.run_ready(&self.shared);
        progress |= self.shared.timers.run_due(&self.shared);
        progress | source.is_some_and(|source| source.flush(token, Flush::Iteration))
    }

    /// Polls epoll, and runs the handlers of the reported events. While other work keeps the loop
    /// busy, or if a later sleep would poll, polls only every eighth iteration. That is enough to
    /// starve no fd handler, even if later work of the iteration prevents the sleep. Skips the poll
    /// if the previous sleep has polled already.
    fn serve_watches(&self, busy: bool, may_sleep: bool) -> bool {
        let shared = &*self.shared;
        let asked = shared.sleep_asked.load(Ordering::Relaxed) && shared.sleep_asked.swap(false, Ordering::Relaxed);
        if shared.watches.is_empty() {
            return false;
        }
        if asked {
            // Relaxed: a count that is only a hint.
            shared.busy_rounds.store(0, Ordering::Relaxed);
        }
        let is_eighth = || shared.busy_rounds.fetch_add(1, Ordering::Relaxed) % ROUNDS_PER_POLL == ROUNDS_PER_POLL - 1;
        let sleep_asks = may_sleep && shared.watches.sleep_asks() && shared.busy_poll_max.load(Ordering::Relaxed) == 0;
        let ask = !(busy || sleep_asks) || is_eighth();
        if ask && !asked {
            let asked = shared.watches.poll(&shared.epoll, || shared.scheduler.forward_notify());
            asked.unwrap_or_else(|error| panic!("cannot poll the loop's descriptors: {error}"));
        }
        shared.watches.run_ready(&self.shared)
    }

    /// Returns the state of the I/O source.
    fn source_state(&self, home: &LocalContext) -> SourceState {
        home.source.get().map_or(SourceState::Idle, |source| source.state())
    }

    /// Lets the I/O source submit its batched requests, outside an iteration. Returns whether any
    /// request completed.
    fn flush(&self, home: &LocalContext, when: Flush) -> bool {
        let source = home.source.get();
        source.is_some_and(|source| home.scheduler.round(|| source.flush(LoopToken::at_home_of(home), when)))
    }

    /// Waits until something is due. With `polls`, busy-polls first.
    fn wait(&self, home: &LocalContext, polls: bool) {
        let shared = &*self.shared;
        if !polls || shared.pollers.is_empty() && self.source_state(home) == SourceState::Idle {
            return self.sleep(home);
        }
        let began = Instant::now();
        if !self.busy_poll(home, began) {
            self.sleep(home);
            let waited = began.elapsed().as_nanos() as u64;
            let limit = shared.busy_poll_max.load(Ordering::Relaxed);
            shared.pollers.adjust(waited, limit);
            home.source_window.adjust(waited, self.source_state(home) == SourceState::Ready, limit);
        }
    }

    /// Busy-polls the sources visible in memory for the length of the window. Returns whether one
    /// became ready.
    fn busy_poll(&self, home: &LocalContext, began: Instant) -> bool {
        let shared = &*self.shared;
        let window = home.source_window.ns().max(shared.pollers.longest());
        if window == 0 {
            return false;
        }
        let until_timer =
            self.next_due().map_or(u64::MAX, |due| due.saturating_duration_since(began).as_nanos() as u64);
        let look = || {
            loop {
                let looked = began.elapsed().as_nanos() as u64;
                let became_ready = self.is_due(home)
                    || home.source_window.ns() >= looked && self.source_state(home) == SourceState::Ready
                    || shared.pollers.is_ready(looked);
                if became_ready || looked >= window || looked >= until_timer {
                    return became_ready;
                }
                hint::spin_loop();
            }
        };
        // As an iteration, in which no coroutine can be suspended: `is_ready` is foreign code, and
        // a coroutine suspended by it would leave its enterers without the lock that they hold.
        home.scheduler.round(|| shared.unlocked(home, look))
    }

    /// Returns the state of the I/O source, if an iteration would only check the timers, which a
    /// sleep does as well. Returns `None` in a nested poll: there, an iteration runs the coroutines
    /// that the coroutines below it have woken.
    fn quiet_source(&self, home: &LocalContext) -> Option<SourceState> {
        let nothing_due =
            home.scheduler.on_stack().next().is_none() && !self.is_due(home) && self.shared.watches.sleep_asks();
        nothing_due.then(|| self.source_state(home)).filter(|&state| state != SourceState::Ready)
    }

    /// Returns whether there is work that is visible without a system call.
    fn is_due(&self, home: &LocalContext) -> bool {
        let shared = &*self.shared;
        home.scheduler.has_ready()
            || shared.scheduler.remote_queue.is_pending()
            || shared.scheduler.sleep.is_notified()
            || shared.bottom_halves.is_due()
            || shared.watches.has_ready()
    }

    /// Returns when the next timer or idle bottom half is due, if there is one.
    fn next_due(&self) -> Option<Instant> {
        self.shared.bottom_halves.next_idle().into_iter().chain(self.shared.timers.next_due()).min()
    }

    /// Returns whether no event can arrive: no I/O is in flight, and no descriptor or poll handler
    /// is registered.
    fn is_alone(&self, home: &LocalContext) -> bool {
        self.shared.watches.is_empty() && self.shared.pollers.is_empty() && self.source_state(home) == SourceState::Idle
    }

    /// Sleeps, unless something is due.
    fn sleep(&self, home: &LocalContext) {
        let shared = &*self.shared;
        let _paused = home.heartbeat.as_deref().map(Heartbeat::pause);
        if home.scheduler.is_in_round() {
            shared.watches.mask_running(&shared.epoll);
        }
        // Foreign code, which may have detached the source, queued work, or polled: so before the
        // announcement, which a nested sleep would end.
        let ready = !shared.pollers.is_empty() && shared.pollers.is_ready(0);
        shared.scheduler.sleep.going_to_sleep();
        // After the announcement: a thread that adds a completion later kicks the loop.
        let state = self.source_state(home);
        let ready = ready || state <= SourceState::Held || shared.scheduler.sleep.is_awake() || self.is_due(home);
        if !ready {
            self.sleep_undisturbed(home, state);
        }
        home.scheduler.clock.tick();
        if home.idle_timer.has_expired(home) && !self.is_due(home) && self.is_alone(home) {
            home.idle_timer.call(home);
        }
        shared.scheduler.sleep.awake();
    }

    /// Sleeps until something is due. `state` is the state of the I/O source.
    fn sleep_undisturbed(&self, home: &LocalContext, state: SourceState) {
        let shared = &*self.shared;
        let until = self.next_due();
        if state == SourceState::Idle
            && until.is_none()
            && home.idle_timer.should_arm(home)
            && shared.watches.is_empty()
            && shared.pollers.is_empty()
        {
            home.idle_timer.arm(home);
        }
        // Level-triggered events are discarded: they may be stale by the time the lock is
        // reacquired. The next iteration polls again.
        let ask = |timeout| {
            let asked = shared.watches.sleep(&shared.epoll, timeout);
            shared.sleep_asked.store(shared.watches.sleep_asks(), Ordering::Relaxed);
            asked
        };
        let source = home.source.get();
        let in_source = |source: &Arc<dyn EventSource>| {
            let sleep = |timeout| source.sleep(HomeToken::new(home), shared.epoll.as_fd(), timeout);
            shared.scheduler.clock.sleep_in_source(until, sleep)
        };
        let _span = shared.scheduler.span(Span::Sleep);
        let slept = shared.asleep(home, || match source.as_deref().and_then(in_source) {
            None => shared.scheduler.clock.sleep_until(until, ask).map(|()| true),
            Some(slept) => slept,
        });
        let slept = match slept {
            // Without a completion. epoll reports a kick until it is polled; without this poll the
            // next sleep would return immediately.
            Ok(false) => ask(Some(Duration::ZERO)).map(drop),
            slept => slept.map(drop),
        };
        slept.unwrap_or_else(|error| panic!("cannot put the loop to sleep: {error}"));
    }

    /// Returns the context's current time: that of its virtual clock, if it has one, else the
    /// system's. Timers and timeouts use this clock. From any thread.
    #[doc(alias = "qemu_clock_get_ns")]
    pub fn now(&self) -> Instant {
        self.shared.scheduler.clock.now()
    }

    /// Makes a sleeping loop run an iteration, from any thread: for an engine that has added work
    /// that the loop checks before it sleeps. Unlike [`notify`](Self::notify) this is not sticky.
    #[doc(hidden)]
    pub fn wake_loop(&self) {
        self.shared.scheduler.wake_loop();
    }

    /// Returns whether this thread's context is `self`, and is ending: a coroutine that is woken now
    /// does not run.
    #[doc(hidden)]
    pub fn is_ending(&self) -> bool {
        self.shared.home().is_some_and(|home| home.scheduler.is_ending())
    }

    /// Returns the tracer of the context's event log, if [one was
    /// configured](crate::ContextBuilder::trace). For authors of engines.
    #[inline]
    pub fn tracer(&self) -> Option<&Tracer> {
        self.shared.scheduler.tracer.as_ref()
    }

    /// Returns the context's I/O engine, if it has one. From any thread: the engine's concrete
    /// type, reached by a downcast, may offer counters that any thread can read. For authors of
    /// engines.
    pub fn source(&self) -> Option<Arc<dyn EventSource>> {
        match self.shared.home() {
            Some(home) => home.source.get().map(|source| Arc::clone(&source)),
            None => self.shared.source.lock().clone(),
        }
    }

    /// Calls `f` with the engine operations of the context's home thread. Returns `None` on any
    /// other thread. For authors of engines.
    ///
    /// # Control
    ///
    /// As `f` does.
    #[inline(always)]
    pub fn at_home<R>(&self, f: impl for<'h> FnOnce(HomeRef<'h>) -> R) -> Option<R> {
        let Some(home) = self.shared.home() else {
            fork::refuse_in_child("using a context");
            return None;
        };
        Some(f(HomeRef::new(home)))
    }

    /// Schedules the coroutine behind `token`, which belongs to this context, for the next
    /// iteration. From any thread. Scheduling it twice runs it once; if it has ended, nothing
    /// happens. For authors of engines.
    #[track_caller]
    pub fn schedule(&self, token: CoroutineId) {
        if token.lives_in(self.shared.scheduler.id()) {
            // An error means it is on the list already: one wake serves both calls.
            let _ = self.shared.scheduler.schedule(token);
        }
    }
}

impl std::fmt::Debug for AioContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AioContext").field("is_home", &self.is_home()).finish_non_exhaustive()
    }
}
