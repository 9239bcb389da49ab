//! Detection of coroutines that can never run again (rule S6).
//!
//! The check runs when the loop has been idle for a while, with no I/O, timer, fd handler or bottom
//! half left that could end that. A coroutine is stuck if only other stuck coroutines can end its
//! wait. This is certain if the waker is known, or if nothing else can wake it: no other thread
//! runs, or no handle exists by which one could reach it. A deadlock is reported once. It is not an
//! error: the loop continues to sleep, and a debugger finds everything unchanged.

use std::cell::{Cell, LazyCell, OnceCell};
use std::fmt::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io, ptr};

use crate::context::shared::NOTIFY_TOKEN;
use crate::coroutine::control_block::{ControlBlock, State};
use crate::coroutine::wait_reason::WakeSource;
use crate::scheduler::Home;
use crate::sys::descriptors::TimerFd;
use crate::sys::report::report;

/// When to check. The kernel's timer is not set for each sleep, which would make each sleep more
/// expensive: a loop that sleeps and wakes a hundred thousand times a second sets it once a second.
#[derive(Default)]
pub(crate) struct IdleTimer {
    after: Cell<Option<Duration>>,
    clock: OnceCell<TimerFd>,
    /// The time of the loop's clock at which the timer expires, and the progress counter when it
    /// was set.
    set: Cell<Option<(u32, u64)>>,
    /// The progress counter at the last check.
    looked: Cell<Option<u64>>,
}

impl IdleTimer {
    /// Sets the idle time before a check.
    pub(crate) fn set_limit(&self, after: Option<Duration>) {
        self.after.set(after);
    }
}

impl Home {
    /// Returns whether to set the timer, when the loop is about to sleep and no event can come.
    pub(crate) fn should_arm(&self) -> bool {
        let patience = &self.patience;
        patience.after.get().is_some()
            && patience.set.get().is_none()
            && patience.looked.get() != Some(self.progress.get())
            && self.live_count.get() > 0
    }

    /// Sets the timer; or checks immediately with a virtual clock, where idle time does not pass.
    pub(crate) fn arm(&self) {
        if self.shared.clock.is_virtual() {
            return self.report_deadlock();
        }
        let patience = &self.patience;
        let Some(after) = patience.after.get() else { return };
        let clock = || -> io::Result<TimerFd> {
            let clock = TimerFd::new()?;
            self.shared.epoll.add(clock.as_fd().as_raw_fd(), (libc::EPOLLIN | libc::EPOLLET) as u32, NOTIFY_TOKEN)?;
            Ok(clock)
        };
        // Without a descriptor there is no report; nothing else is affected.
        if patience.clock.get().is_none() {
            let Ok(clock) = clock() else { return patience.after.set(None) };
            let _ = patience.clock.set(clock);
        }
        self.look_at_clock();
        let after_ms = u32::try_from(after.as_millis()).unwrap_or(u32::MAX / 4);
        if patience.clock.get().is_some_and(|clock| clock.arm(after).is_ok()) {
            patience.set.set(Some((self.clock.get().wrapping_add(after_ms), self.progress.get())));
        }
    }

    /// Returns, after a sleep, whether the time has expired without progress.
    pub(crate) fn has_expired(&self) -> bool {
        let Some((until, progress)) = self.patience.set.get() else { return false };
        if self.clock.get().wrapping_sub(until) as i32 >= 0 {
            self.patience.set.set(None);
            return progress == self.progress.get();
        }
        false
    }
}

/// The context's own handles: the home's two, and the one of the caller of `run`.
const OWN_HANDLES: usize = 3;

impl Home {
    /// Returns the coroutines that nothing can wake any more.
    fn stuck(&self) -> Vec<&'static ControlBlock> {
        let suspended = |block: &&'static ControlBlock| self.local(block).state.get() == State::Suspended;
        let mut stuck: Vec<_> = self.live().filter(suspended).collect();
        let suspended = stuck.len();
        let with_waker = stuck.iter().filter(|block| self.local(block).wait_reason.get().keeps_waker()).count();
        let known = OWN_HANDLES + usize::from(self.source.get().is_some()) + with_waker;
        let handles_out = Arc::strong_count(&self.shared) > known;
        let threads = LazyCell::new(is_threaded);
        loop {
            let others = stuck.len() < suspended;
            let may_run = |block: &&'static ControlBlock| match self.local(block).wait_reason.get().wake_source(self) {
                WakeSource::Event => true,
                WakeSource::Handle => handles_out || others,
                WakeSource::Coroutine(wake_source) => !stuck.iter().any(|&other| ptr::eq(other, wake_source)),
                WakeSource::Nobody => false,
                WakeSource::Others => others,
                WakeSource::Anyone => others || *threads,
            };
            let still: Vec<_> = stuck.iter().copied().filter(|block| !may_run(block)).collect();
            if still.len() == stuck.len() {
                return still;
            }
            stuck = still;
        }
    }

    /// Reports the stuck coroutines, unless the same ones were reported before.
    pub(crate) fn report_deadlock(&self) {
        self.patience.looked.set(Some(self.progress.get()));
        let stuck = self.stuck();
        let news = stuck.iter().map(|block| self.local(block).serial.get()).max().unwrap_or(0);
        if stuck.is_empty() || self.last_reported_serial.replace(news) == news {
            return;
        }
        let mut text = format!(
            "coralio: deadlock: nothing can wake these {} coroutines; the loop has no I/O in flight, no timer and no \
             watch\n",
            stuck.len()
        );
        const MAX: usize = 32;
        for block in stuck.iter().take(MAX) {
            // Writing to a string does not fail.
            let _ = writeln!(text, "  {}", self.describe(block));
        }
        if stuck.len() > MAX {
            let _ = writeln!(text, "  and {} more", stuck.len() - MAX);
        }
        report(format_args!("{text}"));
    }
}

/// Returns whether this process has other threads; true if that cannot be determined.
fn is_threaded() -> bool {
    let threads = || -> io::Result<usize> { Ok(fs::read_dir("/proc/self/task")?.count()) };
    threads().map_or(true, |threads| threads > 1)
}
