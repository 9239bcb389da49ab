//! Deferral: the system call in which the loop sleeps also submits, if the backend can do that.
//!
//! ```text
//!   a request that completes within submit      one that does not
//!   --------------------------------------      -----------------
//!   submit                                      (held at the end of the iteration)
//!   reap                                        submit and sleep: one system call
//!                                               reap
//! ```
//!
//! Only the device determines which of the two a request will be. So the next request is expected
//! to behave like the last ones: a submit that completes nothing leads to deferral, and every
//! sixty-fourth deferred batch is submitted directly, to check.
//!
//! A request is held for at most one iteration of the loop, and only if the loop promises to
//! continue ([`Flush::MayHold`](coralio_runtime::Flush::MayHold)).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// Number of batches that are deferred before one is submitted directly.
const BATCHES: u32 = 63;

/// What the engine expects of its next submit. Accessed by the home thread only, except for
/// `is_holding`.
#[derive(Default)]
pub(super) struct Deferral {
    /// Number of batches still to be deferred.
    left: AtomicU32,
    holds: AtomicBool,
}

impl Deferral {
    /// Returns whether the next batch is to be deferred, because it will hardly complete within
    /// submit.
    #[inline]
    pub(super) fn is_expected(&self) -> bool {
        self.left.load(Relaxed) > 0
    }

    /// Records whether requests completed within a submit, or right after it.
    #[inline]
    pub(super) fn submitted(&self, completed: bool) {
        self.left.store(if completed { 0 } else { BATCHES }, Relaxed);
        self.holds.store(false, Relaxed);
    }

    /// Records that a batch was deferred.
    pub(super) fn deferred(&self) {
        self.left.store(self.left.load(Relaxed).saturating_sub(1), Relaxed);
        self.holds.store(false, Relaxed);
    }

    /// Returns whether to hold the pending requests back until the next flush: not twice.
    pub(super) fn hold(&self) -> bool {
        let holds = !self.holds.load(Relaxed);
        self.holds.store(holds, Relaxed);
        holds
    }

    /// Returns whether requests are held back. From any thread, as a hint.
    #[inline]
    pub(super) fn is_holding(&self) -> bool {
        self.holds.load(Relaxed)
    }
}
