//! The timer of a loop that has nothing to wait for: when it expires, the deadlock report is made.
//!
//! The kernel's timer is not set for each sleep, which would make each sleep more expensive: a loop
//! that sleeps and wakes a hundred thousand times a second sets it once a second.

use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use crate::context::{LocalContext, NOTIFY_TOKEN};
use crate::sys::{COARSE_STEP, TimerFd};

/// Called when the loop has been idle for long.
pub(crate) type IdleHook = Box<dyn Fn(&LocalContext)>;

/// When to call the hook.
pub(crate) struct IdleTimer {
    after: Cell<Option<Duration>>,
    hook: IdleHook,
    timer: OnceCell<TimerFd>,
    /// The time of the loop's clock at which the timer expires, and the progress counter when it
    /// was set.
    armed: Cell<Option<(u32, u64)>>,
    /// The progress counter at the last call.
    called: Cell<Option<u64>>,
}

impl IdleTimer {
    /// Creates a timer that calls `hook` when the loop was idle for `after`; `None`: never.
    pub(crate) fn new(after: Option<Duration>, hook: IdleHook) -> IdleTimer {
        IdleTimer {
            after: Cell::new(after),
            hook,
            timer: OnceCell::new(),
            armed: Cell::new(None),
            called: Cell::new(None),
        }
    }

    /// Returns whether to arm, when the loop is about to sleep and no event can come.
    pub(crate) fn should_arm(&self, home: &LocalContext) -> bool {
        self.after.get().is_some()
            && self.armed.get().is_none()
            && self.called.get() != Some(home.progress.get())
            && home.scheduler.live_count() > 0
    }

    /// Arms the timer; or calls the hook immediately with a virtual clock, where idle time does not
    /// pass.
    pub(crate) fn arm(&self, home: &LocalContext) {
        let shared = &home.context.shared;
        if shared.scheduler.clock.is_virtual() {
            return self.call(home);
        }
        let Some(after) = self.after.get() else { return };
        let create = || -> io::Result<TimerFd> {
            let timer = TimerFd::new()?;
            shared.epoll.add(timer.as_fd().as_raw_fd(), (libc::EPOLLIN | libc::EPOLLET) as u32, NOTIFY_TOKEN)?;
            Ok(timer)
        };
        // Without a descriptor there is no report; nothing else is affected.
        if self.timer.get().is_none() {
            let Ok(timer) = create() else { return self.after.set(None) };
            let _ = self.timer.set(timer);
        }
        home.scheduler.clock.tick();
        let after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX / 4);
        // Later by a step of the coarse clock, which then shows at least `after` at the expiry.
        if self.timer.get().is_some_and(|timer| timer.arm(after.saturating_add(COARSE_STEP)).is_ok()) {
            self.armed.set(Some((home.scheduler.clock.ms().wrapping_add(after_ms), home.progress.get())));
        }
    }

    /// Returns, after a sleep, whether the time has expired without progress.
    pub(crate) fn has_expired(&self, home: &LocalContext) -> bool {
        let Some((until, progress)) = self.armed.get() else { return false };
        if home.scheduler.clock.ms().wrapping_sub(until) as i32 >= 0 {
            self.armed.set(None);
            return progress == home.progress.get();
        }
        false
    }

    /// Calls the hook.
    pub(crate) fn call(&self, home: &LocalContext) {
        self.called.set(Some(home.progress.get()));
        (self.hook)(home);
    }
}
