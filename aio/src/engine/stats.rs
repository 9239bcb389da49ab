//! An engine's counters, and the statistics that users see.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
        self.slow_submits += other.slow_submits;
        self.max_submit_time = self.max_submit_time.max(other.max_submit_time);
        self.bounced += other.bounced;
        self.page_cached += other.page_cached;
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
    /// Submit system calls.
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
    /// Submits that blocked the loop for longer than
    /// [`RuntimeBuilder::slow_submit_threshold`](crate::RuntimeBuilder::slow_submit_threshold); 0
    /// without a limit.
    pub slow_submits: u64,
    /// The longest submit; zero without a limit.
    pub max_submit_time: Duration,
    /// The part of `requests` that did direct I/O through an aligned buffer, because the caller's
    /// memory was unaligned ([`File`](crate::File)).
    pub bounced: u64,
    /// The part of `requests` on files open for direct I/O that went through the page cache,
    /// because their offset or length was unaligned ([`File`](crate::File)).
    pub page_cached: u64,
}
