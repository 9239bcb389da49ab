//! The public side of timers.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Action, TimerKind};
use crate::context::registration::{Callback, Handle};
use crate::context::{AioContext, ContextEnded, SharedContext};

impl AioContext {
    /// Creates a timer. The loop runs `callback` once for each time the timer is armed, when its
    /// deadline has passed.
    ///
    /// The callback is `Send`, since another thread's poll may run it.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use std::time::Duration;
    ///
    /// AioContext::run(|ctx| {
    ///     let rang = Arc::new(AtomicBool::new(false));
    ///     let timer = ctx.new_timer({
    ///         let rang = Arc::clone(&rang);
    ///         move || rang.store(true, Ordering::Relaxed)
    ///     })?;
    ///     timer.arm_after(Duration::from_millis(1));
    ///     while !rang.load(Ordering::Relaxed) {
    ///         ctx.poll(true);
    ///     }
    ///     Ok::<_, coralio::context::ContextEnded>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if the context has ended. `callback` is dropped.
    #[doc(alias = "aio_timer_new")]
    #[track_caller]
    pub fn new_timer(&self, mut callback: impl FnMut() + Send + 'static) -> Result<Timer, ContextEnded> {
        Timer::with_callback(self, Box::new(move |(), _, _| callback()))
    }

    /// As [`new_timer`](Self::new_timer), for a callback that arms, disarms or
    /// [deletes](Timer::delete) its own timer: the callback receives its own handle.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use std::time::Duration;
    ///
    /// AioContext::run(|ctx| {
    ///     let heartbeat = ctx.new_timer_with(|own| own.arm_after(Duration::from_secs(1)))?;
    ///     heartbeat.arm_after(Duration::ZERO);
    ///     assert!(ctx.poll(false));
    ///     assert!(heartbeat.deadline().is_some());
    ///     Ok::<_, coralio::context::ContextEnded>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`new_timer`](Self::new_timer).
    #[track_caller]
    pub fn new_timer_with(&self, mut callback: impl FnMut(&Timer) + Send + 'static) -> Result<Timer, ContextEnded> {
        let callback = move |(), shared: &_, key| callback(&Timer(Handle::within(shared, key)));
        Timer::with_callback(self, Box::new(callback))
    }

    /// Returns the timers of this context, including those of sleeps and timeouts. From any thread,
    /// even while the loop hangs.
    pub fn timers(&self) -> Vec<TimerInfo> {
        self.shared.timers.list(|entry| TimerInfo {
            created_at: entry.created_at,
            deadline: (entry.ticket != 0).then_some(entry.kind.deadline),
            has_callback: entry.kind.action == Action::Callback,
            is_running: entry.is_running,
        })
    }
}

/// The state of a timer, returned by [`AioContext::timers`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TimerInfo {
    /// Where the timer was created.
    pub created_at: &'static Location<'static>,
    /// The deadline, by [the context's clock](AioContext::now), if the timer is armed.
    pub deadline: Option<Instant>,
    /// Runs a callback; otherwise the timer ends a sleep or a timeout.
    pub has_callback: bool,
    /// The callback is running.
    pub is_running: bool,
}

/// A callback that the loop runs at a deadline. Armed for at most one deadline at a time. Dropping
/// the handle, even within the callback, deletes the timer. All methods may be called from any
/// thread. After the context has ended, a handle does nothing.
#[doc(alias = "QEMUTimer")]
#[must_use = "dropping it deletes the timer"]
pub struct Timer(pub(in crate::context) Handle<TimerKind>);

impl Timer {
    #[track_caller]
    fn with_callback(context: &AioContext, callback: Callback<()>) -> Result<Timer, ContextEnded> {
        let kind = TimerKind { action: Action::Callback, deadline: context.now() };
        Ok(Timer(Handle::new(&context.shared, kind, Some(callback))?))
    }

    /// Creates a timer that fires at `deadline` unless the handle is dropped before. For actions
    /// without user code, which work even while the context ends and coroutines that it unwinds
    /// sleep on the thread's own stack.
    #[track_caller]
    pub(crate) fn start(deadline: Instant, action: Action, shared: &Arc<SharedContext>) -> Timer {
        debug_assert!(action != Action::Callback);
        let timer = Timer(Handle::without_callback(shared, TimerKind { action, deadline }));
        timer.arm_at(deadline);
        timer
    }

    /// Arms the timer to fire at `deadline`, not earlier. Replaces an earlier arming. If `deadline`
    /// has passed, the timer fires in the next iteration.
    ///
    /// ```
    /// use coralio::context::{AioContext, VirtualClock};
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use std::time::Duration;
    ///
    /// let clock = VirtualClock::new();
    /// AioContext::builder()
    ///     .virtual_clock(clock.clone())
    ///     .run(|ctx| {
    ///         let fired = Arc::new(AtomicU32::new(0));
    ///         let timer = ctx.new_timer({
    ///             let fired = Arc::clone(&fired);
    ///             move || _ = fired.fetch_add(1, Ordering::Relaxed)
    ///         });
    ///         let (timer, noon) = (timer.unwrap(), ctx.now() + Duration::from_secs(3600));
    ///         timer.arm_at(noon);
    ///         assert_eq!(ctx.timers()[0].deadline, Some(noon));
    ///         clock.advance_to(noon);
    ///         ctx.poll(true);
    ///         timer.arm_at(noon); // passed: would fire in the next iteration
    ///         timer.disarm();
    ///         ctx.poll(false);
    ///         assert_eq!(fired.load(Ordering::Relaxed), 1);
    ///     })
    ///     .unwrap();
    /// ```
    #[doc(alias = "timer_mod")]
    pub fn arm_at(&self, deadline: Instant) {
        let mut state = self.0.table().lock();
        let before = state.first();
        state.arm(self.0.key, deadline);
        drop(state);
        // A loop that sleeps until an earlier deadline checks again by itself.
        if before.is_none_or(|before| deadline < before) {
            self.0.shared.scheduler.wake_loop();
        }
    }

    /// Arms the timer to fire after `delay`. A delay beyond the clock's range never fires.
    pub fn arm_after(&self, delay: Duration) {
        match self.0.shared.scheduler.clock.now().checked_add(delay) {
            Some(deadline) => self.arm_at(deadline),
            None => self.disarm(),
        }
    }

    /// Disarms the timer. A callback that is running already is not affected.
    #[doc(alias = "timer_del")]
    pub fn disarm(&self) {
        drop(self.0.cancel());
    }

    /// Returns the deadline, if the timer is armed.
    pub fn deadline(&self) -> Option<Instant> {
        let mut state = self.0.table().lock();
        state.get(self.0.key).filter(|(entry, _)| entry.ticket != 0).map(|(entry, _)| entry.kind.deadline)
    }

    /// Deletes the timer, as dropping its handle does. A running callback finishes first.
    #[doc(alias = "timer_free")]
    pub fn delete(&self) {
        self.0.delete();
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("deadline", &self.deadline()).finish_non_exhaustive()
    }
}
