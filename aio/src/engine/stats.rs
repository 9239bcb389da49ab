//! An engine's counters and submit times, and the statistics that users see.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Counters since the engine was created. Written under the context's lock.
#[derive(Default)]
pub(crate) struct Counters {
    /// Requests that ended without a completion: failed at submit, or cancelled while pending.
    pub(crate) refused: AtomicU64,
    pub(crate) completions: AtomicU64,
    pub(crate) submits: AtomicU64,
    pub(crate) sleeps: AtomicU64,
    /// Indexed by [`Detour`]. Written only by the home thread.
    pub(crate) detours: [AtomicU64; 2],
}

/// How a request is carried out that direct I/O does not accept as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Detour {
    /// Direct, through an aligned buffer.
    Bounced,
    PageCached,
}

impl Counters {
    pub(crate) fn detour(&self, detour: Detour) -> &AtomicU64 {
        &self.detours[detour as usize]
    }
}

/// Adds with a plain load and store: there is one writer at a time, and a lost count does no harm.
#[inline]
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}

impl Stats {
    /// Adds the counters and the requests of another engine of the context.
    pub(crate) fn add(&mut self, other: Stats) {
        self.requests += other.requests;
        self.completions += other.completions;
        self.submits += other.submits;
        self.sleeps += other.sleeps;
        self.in_flight += other.in_flight;
        self.pending += other.pending;
        self.in_place += other.in_place;
        self.slow_submits += other.slow_submits;
        self.max_submit_time = self.max_submit_time.max(other.max_submit_time);
        self.bounced += other.bounced;
        self.page_cached += other.page_cached;
    }
}

/// No limit: the clock is not read.
const OFF: u64 = u64::MAX;

/// Submit times in nanoseconds, measured only if the user has set a limit. Written under the
/// context's lock.
///
/// The whole loop waits during a submit. The kernel blocks a submit while the device's queue is
/// full, and during work that it carries out within submit: see
/// [`RuntimeBuilder::slow_submit_threshold`](crate::RuntimeBuilder::slow_submit_threshold).
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

    /// Returns whether there is a limit.
    pub(crate) fn is_on(&self) -> bool {
        self.limit.load(Ordering::Relaxed) != OFF
    }

    /// Runs one submit, timed if there is a limit.
    #[inline]
    pub(crate) fn time<R>(&self, submit: impl FnOnce() -> R) -> R {
        if self.is_on() { self.timed(submit) } else { submit() }
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

/// Counters since the engine was created, and its current state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests made.
    pub requests: u64,
    /// Requests completed by the kernel.
    pub completions: u64,
    /// Submit system calls, without those in which the loop sleeps too (io_uring).
    pub submits: u64,
    /// System calls that slept until a completion.
    pub sleeps: u64,
    /// Requests currently in flight.
    pub in_flight: u32,
    /// Requests waiting to be submitted.
    pub pending: u32,
    /// The part of `requests` that went to a thread because they would have blocked the loop in
    /// submit ([`BackendKind::Auto`](crate::driver::BackendKind::Auto)).
    pub offloaded: u64,
    /// The part of `requests` that the loop's thread performed itself, because they did not wait for a
    /// device ([`BackendKind::Auto`](crate::driver::BackendKind::Auto)).
    pub in_place: u64,
    /// Submits, and requests in place, that blocked the loop for longer than
    /// [`RuntimeBuilder::slow_submit_threshold`](crate::RuntimeBuilder::slow_submit_threshold); 0
    /// without a limit.
    pub slow_submits: u64,
    /// The longest submit or request in place; zero without a limit.
    pub max_submit_time: Duration,
    /// The part of `requests` that did direct I/O through an aligned buffer, because the caller's
    /// memory was unaligned ([`File`](crate::File)).
    pub bounced: u64,
    /// The part of `requests` on files open for direct I/O that went through the page cache,
    /// because their offset or length was unaligned ([`File`](crate::File)).
    pub page_cached: u64,
}
