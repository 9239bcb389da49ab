//! The public side of timers.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Action, Callback, Entry};
use crate::context::{AioContext, ContextEnded, Key, SharedContext};

impl AioContext {
    /// Creates a timer. The loop runs `callback` once for each time the timer is armed, when its
    /// deadline has passed.
    ///
    /// The callback is `Send`, since another thread's poll may run it.
    ///
    /// ```
    /// use coralio_runtime::AioContext;
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
    ///     Ok::<_, coralio_runtime::ContextEnded>(())
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
        self.insert_timer(Box::new(move |_, _| callback()))
    }

    /// As [`new_timer`](Self::new_timer), for a callback that arms, disarms or
    /// [deletes](Timer::delete) its own timer: the callback receives its own handle.
    ///
    /// ```
    /// use coralio_runtime::AioContext;
    /// use std::time::Duration;
    ///
    /// AioContext::run(|ctx| {
    ///     let heartbeat = ctx.new_timer_with(|own| own.arm_after(Duration::from_secs(1)))?;
    ///     heartbeat.arm_after(Duration::ZERO);
    ///     assert!(ctx.poll(false));
    ///     assert!(heartbeat.deadline().is_some());
    ///     Ok::<_, coralio_runtime::ContextEnded>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`new_timer`](Self::new_timer).
    #[track_caller]
    pub fn new_timer_with(&self, mut callback: impl FnMut(&Timer) + Send + 'static) -> Result<Timer, ContextEnded> {
        self.insert_timer(Box::new(move |shared, key| {
            callback(&Timer { shared: Arc::clone(shared), key, owns: false });
        }))
    }

    #[track_caller]
    fn insert_timer(&self, callback: Callback) -> Result<Timer, ContextEnded> {
        let entry = Entry::new(Action::Callback(callback), self.now(), Location::caller());
        // In a statement of its own, so that a rejected callback is dropped without the lock.
        let inserted = self.shared.timers.table.lock().entries.insert(entry);
        match inserted {
            Ok(key) => Ok(Timer { shared: Arc::clone(&self.shared), key, owns: true }),
            Err(_rejected) => Err(ContextEnded { operation: "create a timer" }),
        }
    }

    /// Returns the timers of this context, including those of sleeps and timeouts. From any thread,
    /// even while the loop hangs.
    pub fn timers(&self) -> Vec<TimerInfo> {
        let table = self.shared.timers.table.lock();
        let info = |(_, entry): (Key, &Entry)| TimerInfo {
            created_at: entry.created_at,
            deadline: (entry.ticket != 0).then_some(entry.deadline),
            has_callback: matches!(entry.action, Action::Callback(_) | Action::Running),
            is_running: matches!(entry.action, Action::Running),
        };
        table.entries.iter().map(info).collect()
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
pub struct Timer {
    pub(super) shared: Arc<SharedContext>,
    pub(super) key: Key,
    /// False for the handle passed to the callback; dropping that one deletes nothing.
    pub(super) owns: bool,
}

impl Timer {
    /// Arms the timer to fire at `deadline`, not earlier. Replaces an earlier arming. If `deadline`
    /// has passed, the timer fires in the next iteration.
    #[doc(alias = "timer_mod")]
    pub fn arm_at(&self, deadline: Instant) {
        let timers = &self.shared.timers;
        let mut table = timers.table.lock();
        let before = table.first();
        table.arm(self.key, deadline);
        timers.armed.store(table.armed, Ordering::Relaxed);
        drop(table);
        // A loop that sleeps until an earlier deadline checks again by itself.
        if before.is_none_or(|before| deadline < before) {
            self.shared.scheduler.wake_loop();
        }
    }

    /// Arms the timer to fire after `delay`. A delay beyond the clock's range never fires.
    pub fn arm_after(&self, delay: Duration) {
        match self.shared.scheduler.clock.now().checked_add(delay) {
            Some(deadline) => self.arm_at(deadline),
            None => self.disarm(),
        }
    }

    /// Disarms the timer. A callback that is running already is not affected.
    #[doc(alias = "timer_del")]
    pub fn disarm(&self) {
        let timers = &self.shared.timers;
        let mut table = timers.table.lock();
        table.disarm(self.key);
        timers.armed.store(table.armed, Ordering::Relaxed);
    }

    /// Returns the deadline, if the timer is armed.
    pub fn deadline(&self) -> Option<Instant> {
        let table = self.shared.timers.table.lock();
        table.entries.get(self.key).filter(|entry| entry.ticket != 0).map(|entry| entry.deadline)
    }

    /// Deletes the timer, as dropping its handle does. A running callback finishes first.
    #[doc(alias = "timer_free")]
    pub fn delete(&self) {
        let timers = &self.shared.timers;
        let mut table = timers.table.lock();
        let Some(entry) = table.entries.get_mut(self.key) else { return };
        let was_armed = std::mem::take(&mut entry.ticket) != 0;
        entry.deleted = matches!(entry.action, Action::Running);
        let is_running = entry.deleted;
        table.armed -= usize::from(was_armed);
        timers.armed.store(table.armed, Ordering::Relaxed);
        if is_running {
            return;
        }
        let entry = table.entries.remove(self.key);
        drop(table);
        drop(entry);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if self.owns {
            self.delete();
        }
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("deadline", &self.deadline()).finish_non_exhaustive()
    }
}
