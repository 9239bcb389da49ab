//! The event loop: what one round does, and when the loop sleeps.
//!
//! ```text
//! poll(blocking)
//!   under the context's lock:
//!     round:  source.dispatch      completions are reaped, coroutines entered
//!             bottom halves        in the order they were scheduled
//!             watches              what epoll reported; poll handlers, looked at in memory
//!             timers               in order of time
//!             ready coroutines     spawned, rescheduled, woken from elsewhere (home thread only)
//!             source.flush         what gathered meanwhile is submitted, in one system call
//!   if nothing was done and it may block:
//!     for a while, keep looking at what can be looked at in memory
//!     announce the sleep, look once more, give the lock up whole, sleep, one more round
//! ```
//!
//! Polls nest (rule X2): what a round has taken up lies in queues of the context, and a nested round goes on there.

use std::hint;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::coroutine::Token;
use crate::home::{Home, fork};
use crate::trace::{Span, Tracer};

pub(crate) mod bottom_half;
mod builder;
pub(crate) mod clock;
mod co_fd;
pub(crate) mod deadlock;
mod dump;
pub(crate) mod event_notifier;
pub(crate) mod fd;
mod identity;
mod interrupt;
pub(crate) mod lock;
pub(crate) mod notify;
mod poll_while;
pub(crate) mod polling;
mod readiness;
pub(crate) mod registry;
pub(crate) mod shared;
mod signal;
pub(crate) mod source;
mod stall;
pub(crate) mod thread;
pub(crate) mod timer;
pub(crate) mod wake;

pub use builder::ContextBuilder;
pub use co_fd::CoFd;
pub use dump::Dump;
pub use readiness::{wait_readable, wait_writable};
use shared::{KICK_TOKEN, Shared};
pub use source::{AtHome, HomeToken, LoopToken, Source};

/// A context: an event loop and the coroutines that live in it. This is a handle to it, for any thread.
///
/// A context lives during [`AioContext::run`], on the thread that calls it, its *home thread*. Other threads may wake its
/// coroutines, schedule bottom halves, [`notify`](Self::notify) it, and poll it without blocking.
#[derive(Clone)]
pub struct AioContext {
    pub(crate) shared: Arc<Shared>,
}

impl AioContext {
    /// The context that this thread is home to, if it runs one.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn current() -> Option<AioContext> {
        Home::current().map(|home| AioContext { shared: Arc::clone(&home.shared) })
    }

    /// Whether both are handles to one context.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn is_same(&self, other: &AioContext) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Whether this thread is the context's home.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn is_home(&self) -> bool {
        self.shared.home().is_some()
    }

    /// Runs one round of the loop: what is due of completions, bottom halves, watches and coroutines. Says whether
    /// anything was done. If nothing is due, `blocking` says whether it sleeps until something is.
    ///
    /// It may be called within a round, by whatever the loop runs (rule X2). Another thread may poll too, without
    /// blocking: it runs handlers and reaps, and leaves the coroutines to their home.
    ///
    /// To wait for a condition, check the condition and poll in turns: `while !done() { ctx.poll(true); }`. The thread that
    /// makes the condition true calls [`notify`](Self::notify) afterwards.
    ///
    /// A blocking poll releases the context's lock while it sleeps, also where the caller holds a guard of
    /// [`acquire`](Self::acquire), and has acquired the lock again when it returns. What the lock protects may have changed
    /// meanwhile.
    ///
    /// # Panics
    ///
    /// If another thread than home wants to block. With the panic of what it runs.
    ///
    /// # Control
    ///
    /// May enter coroutines. Blocking, it blocks the thread, not the coroutine.
    #[doc(alias = "aio_poll")]
    pub fn poll(&self, blocking: bool) -> bool {
        let Some(home) = self.shared.home() else { return self.foreign_poll(blocking) };
        let _guard = self.shared.acquire_at_home();
        if home.round(|| self.round(home, blocking)) {
            return true;
        }
        blocking && self.wait(home) && {
            let progress = home.round(|| self.round(home, false));
            // Last: the caller evaluates its condition before it polls again, and so sees what it was notified of.
            self.shared.sleep.take_notified();
            progress
        }
    }

    /// With `may_sleep`, the loop goes to sleep if nothing is done here.
    fn round(&self, home: &Home, may_sleep: bool) -> bool {
        let shared = &*self.shared;
        let source = home.source.get();
        let token = LoopToken::at_home_of(home);
        let _beat = home.beat();
        let _told = shared.traced(Span::Round);
        home.count_round();
        let mut progress = source.is_some_and(|source| source.dispatch(token));
        progress |= shared.bottom_halves.run(&self.shared);
        // Coroutines that are ready keep the loop from sleeping, as bottom halves do.
        let busy = progress || home.has_ready() || shared.arrivals.is_pending();
        progress |= self.serve_watches(busy, may_sleep);
        progress |= shared.pollers.run(&self.shared);
        progress |= shared.timers.run(&self.shared);
        progress |= home.run_ready();
        // Asked anew: it may have been detached.
        progress |= home.source.get().is_some_and(|source| source.flush(token, false));
        home.progress.set(home.progress.get() + u64::from(progress));
        progress
    }

    /// A round by another thread: coroutines are left to their home.
    #[cold]
    fn foreign_poll(&self, blocking: bool) -> bool {
        fork::refuse_in_child("polling a context");
        assert!(
            !blocking,
            "a foreign thread may not block in poll; call poll(false), or let the context's own thread do it"
        );
        let _guard = self.acquire();
        let _told = self.shared.traced(Span::Round);
        let source = self.shared.source.lock().clone();
        let token = LoopToken::elsewhere(&self.shared);
        let mut progress = source.as_ref().is_some_and(|source| source.dispatch(token));
        progress |= self.shared.bottom_halves.run(&self.shared);
        progress |= self.serve_watches(progress, false);
        progress |= self.shared.pollers.run(&self.shared);
        progress |= self.shared.timers.run(&self.shared);
        progress | source.is_some_and(|source| source.flush(token, false))
    }

    /// Asks epoll, and serves what it reports. While other work keeps the loop busy it is asked every eighth time: that
    /// is enough for no watch to starve. Where the sleep that ended has asked, or the one that comes will, that will do.
    fn serve_watches(&self, busy: bool, may_sleep: bool) -> bool {
        let shared = &*self.shared;
        let asked = shared.watches.take_asked();
        if shared.watches.is_empty() {
            return false;
        }
        let ask = match busy {
            true => shared.busy_rounds.fetch_add(1, Ordering::Relaxed) % 8 == 7,
            false => !(may_sleep && shared.watches.sleep_asks() && shared.poll_limit.load(Ordering::Relaxed) == 0),
        };
        if ask && !asked {
            let asked = shared.epoll.wait(Some(Duration::ZERO), |ready| match ready.token {
                KICK_TOKEN => shared.hand_kick_on(),
                _ => shared.watches.report(ready),
            });
            asked.unwrap_or_else(|error| panic!("the loop cannot ask for ready descriptors: {error}"));
        }
        shared.watches.run(&self.shared)
    }

    /// Nothing was due. Waits until something is; returns whether it is worth another round.
    fn wait(&self, home: &Home) -> bool {
        let shared = &*self.shared;
        let source = home.source.get();
        if source.is_some_and(|source| home.round(|| source.flush(LoopToken::at_home_of(home), true))) {
            return true;
        }
        let limit = shared.poll_limit.load(Ordering::Relaxed);
        let pollable = limit > 0
            && !shared.clock.is_virtual()
            && (!shared.pollers.is_empty() || source.is_some_and(|source| !source.is_idle()));
        if !pollable {
            self.sleep(home);
            return true;
        }
        let began = Instant::now();
        if !self.keep_looking(home, began) {
            self.sleep(home);
            let waited = began.elapsed().as_nanos() as u64;
            shared.pollers.learn(waited, limit);
            home.source_window.learn(waited, source.is_some_and(|source| source.is_ready(HomeToken::new(home))), limit);
        }
        true
    }

    /// Looks for what can be seen in memory, as long as it is worth it. Returns whether something came.
    fn keep_looking(&self, home: &Home, began: Instant) -> bool {
        let shared = &*self.shared;
        let source = home.source.get();
        let window = home.source_window.ns().max(shared.pollers.longest());
        if window == 0 {
            return false;
        }
        let until_timer =
            self.next_due().map_or(u64::MAX, |due| due.saturating_duration_since(began).as_nanos() as u64);
        let look = || {
            loop {
                let looked = began.elapsed().as_nanos() as u64;
                let came = self.is_due(home)
                    || home.source_window.ns() >= looked
                        && source.is_some_and(|source| source.is_ready(HomeToken::new(home)))
                    || shared.pollers.is_ready(looked);
                if came || looked >= window || looked >= until_timer {
                    return came;
                }
                hint::spin_loop();
            }
        };
        // As a round: the looks are foreign code, and a coroutine that was suspended in there would leave its enterers without
        // the lock that they hold.
        home.round(|| shared.unlocked(home, look))
    }

    /// Whether there is something to do that no system call need tell of.
    fn is_due(&self, home: &Home) -> bool {
        let shared = &*self.shared;
        home.has_ready()
            || shared.arrivals.is_pending()
            || shared.sleep.is_notified()
            || shared.bottom_halves.is_due()
            || shared.watches.has_ready()
    }

    /// When the next timer or idle bottom half is due; `None` without any.
    fn next_due(&self) -> Option<Instant> {
        self.shared.bottom_halves.next_idle().into_iter().chain(self.shared.timers.next_due()).min()
    }

    /// Whether no event can come: no I/O is in flight, and no descriptor or memory is watched.
    fn is_alone(&self, home: &Home) -> bool {
        home.source.get().is_none_or(|source| source.is_idle())
            && self.shared.watches.is_empty()
            && self.shared.pollers.is_empty()
    }

    fn sleep(&self, home: &Home) {
        let shared = &*self.shared;
        let busy = shared.beat.rest();
        shared.watches.mask_running(&shared.epoll);
        shared.sleep.going_to_sleep();
        let due = self.is_due(home) || shared.pollers.is_ready(0);
        // The handlers' looks are foreign code, which may have detached one.
        let source = home.source.get();
        if !due && !source.is_some_and(|source| source.is_ready(HomeToken::new(home))) {
            let until = self.next_due();
            if until.is_none() && home.is_impatient() && self.is_alone(home) {
                home.lose_patience();
            }
            // Levels are not kept: they may be out of date by the time the lock is back. The round asks anew.
            let ask = |timeout| {
                let asked = shared.epoll.wait(timeout, |ready| shared.watches.report_edge(ready));
                shared.watches.note_asked();
                asked
            };
            let in_source = |source: &Arc<dyn Source>| {
                let sleep = |timeout| source.sleep(HomeToken::new(home), shared.epoll.as_fd(), timeout);
                shared.clock.sleep_in_source(until, sleep, || source.is_ready(HomeToken::new(home)))
            };
            let _told = shared.traced(Span::Sleep);
            let slept = shared.asleep(home, || match source.and_then(in_source) {
                None => (shared.clock.sleep_until(until, ask), false),
                Some(slept) => (slept, true),
            });
            let slept = match slept {
                // The set goes on reporting a kick until it is asked, and the next sleep would be none.
                (Ok(()), true) if source.is_some_and(|source| !source.is_ready(HomeToken::new(home))) => {
                    ask(Some(Duration::ZERO)).map(drop)
                }
                (slept, _) => slept,
            };
            slept.unwrap_or_else(|error| panic!("the loop cannot sleep: {error}"));
        }
        home.look_at_clock();
        if home.has_lost_patience() && !self.is_due(home) && self.is_alone(home) {
            home.report_deadlock();
        }
        shared.sleep.awake();
        shared.beat.go_on(busy);
    }

    /// Makes a sleeping loop run a round, from any thread: for an engine that has put work where the loop looks before it
    /// sleeps. Unlike [`notify`](Self::notify) this is not sticky.
    #[doc(hidden)]
    pub fn wake_loop(&self) {
        self.shared.wake_loop();
    }

    /// The way into the context's event log, if it was [set up](ContextBuilder::trace) with one. For authors of engines.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn tracer(&self) -> Option<&Tracer> {
        self.shared.tracer.as_ref()
    }

    /// The context's I/O engine, if it has one. From any thread: the engine's type, to which the value can be downcast, may
    /// offer counters that any thread reads. For authors of engines.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn source(&self) -> Option<Arc<dyn Source>> {
        match self.shared.home() {
            Some(home) => home.source.get().cloned(),
            None => self.shared.source.lock().clone(),
        }
    }

    /// Runs `f` with what an engine may do on the context's home thread; or returns `None`, on another one. For authors of
    /// engines.
    ///
    /// # Control
    ///
    /// As `f` does.
    #[inline(always)]
    pub fn at_home<R>(&self, f: impl for<'h> FnOnce(AtHome<'h>) -> R) -> Option<R> {
        let Some(home) = self.shared.home() else {
            fork::refuse_in_child("using a context");
            return None;
        };
        Some(f(AtHome::new(home)))
    }

    /// Makes the coroutine behind `token`, one of this context's, run in the loop's next round. From any thread. Woken
    /// twice, it runs once; if it has ended, nothing happens. For authors of engines.
    ///
    /// # Control
    ///
    /// Never switches.
    #[track_caller]
    pub fn schedule(&self, token: Token) {
        token.schedule(&self.shared);
    }
}

impl std::fmt::Debug for AioContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AioContext").field("is_home", &self.is_home()).finish_non_exhaustive()
    }
}
