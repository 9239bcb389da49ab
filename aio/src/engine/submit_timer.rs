//! Submit times: measured only if the user has set a limit.
//!
//! The whole loop waits during a submit. The kernel blocks a submit while the device's queue is
//! full, and during work that it carries out within submit: see
//! [`RuntimeBuilder::slow_submit_threshold`](crate::RuntimeBuilder::slow_submit_threshold).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::stats::add;

/// No limit: the clock is not read.
const OFF: u64 = u64::MAX;

/// Submit times in nanoseconds. Written under the context's lock.
pub(crate) struct SubmitTimer {
    limit: AtomicU64,
    over_threshold: AtomicU64,
    longest: AtomicU64,
}

impl SubmitTimer {
    pub(crate) fn new() -> SubmitTimer {
        SubmitTimer { limit: AtomicU64::new(OFF), over_threshold: AtomicU64::new(0), longest: AtomicU64::new(0) }
    }

    pub(crate) fn set_limit(&self, limit: Duration) {
        self.limit.store(u64::try_from(limit.as_nanos()).unwrap_or(OFF), Ordering::Relaxed);
    }

    /// Runs one submit, timed if there is a limit.
    #[inline]
    pub(crate) fn time<R>(&self, submit: impl FnOnce() -> R) -> R {
        if self.limit.load(Ordering::Relaxed) == OFF { submit() } else { self.timed(submit) }
    }

    #[cold]
    fn timed<R>(&self, submit: impl FnOnce() -> R) -> R {
        let began = Instant::now();
        let submitted = submit();
        let took = began.elapsed().as_nanos() as u64;
        if took > self.limit.load(Ordering::Relaxed) {
            add(&self.over_threshold, 1);
        }
        self.longest.store(self.longest.load(Ordering::Relaxed).max(took), Ordering::Relaxed);
        submitted
    }

    /// Returns the number of submits that exceeded the limit.
    pub(crate) fn over_threshold(&self) -> u64 {
        self.over_threshold.load(Ordering::Relaxed)
    }

    pub(crate) fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest.load(Ordering::Relaxed))
    }
}
