//! The state word: distinguishes a coroutine from later ones in the same block, and ensures that it
//! is scheduled once at a time.
//!
//! ```text
//!   any thread                               home
//!   ----------                               ----
//!   makes the awaited condition true         takes the coroutine off the list
//!   bit clear: sets it, pushes it on a list  clears the bit
//!   bit set:   nothing, it has yet to run    resumes it: it checks the condition
//! ```
//!
//! Both sides write the bit, even a waker that finds it set: so one of the two writes comes first,
//! and if it is the waker's, the coroutine sees everything the waker did before.
//! `tests/loom_state_word.rs` checks this source on loom's atomics.

use crate::atomic::{AtomicU64, Ordering};

/// Scheduled by `schedule` or from another thread, and has not run yet (rule W2).
const SCHEDULED: u64 = 1;
/// Cancelled: operations of the coroutine that can fail do fail.
const CANCELLED: u64 = 2;
/// The generation occupies the bits above the two flags.
const SHIFT: u32 = 2;

/// The generation, and two requests that any thread may make: run, and end soon.
pub(crate) struct StateWord(AtomicU64);

/// The result of [`StateWord::claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScheduleOutcome {
    /// The caller must put the coroutine on the list.
    Claimed,
    /// Already scheduled, and has not run since.
    AlreadyScheduled,
    /// This generation has ended.
    Stale,
}

impl StateWord {
    pub(crate) fn new() -> StateWord {
        StateWord(AtomicU64::new(1 << SHIFT))
    }

    /// Returns the live generation, or the next one to live.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        // Relaxed: at home this reads its own store. Elsewhere it is a hint, checked again at home.
        self.0.load(Ordering::Relaxed) >> SHIFT
    }

    /// Marks this generation as scheduled, at most once. Callable from any thread.
    pub(crate) fn claim(&self, generation: u64) -> ScheduleOutcome {
        match self.mark(generation, SCHEDULED) {
            None => ScheduleOutcome::Stale,
            Some(before) if before & SCHEDULED != 0 => ScheduleOutcome::AlreadyScheduled,
            Some(_) => ScheduleOutcome::Claimed,
        }
    }

    /// Marks this generation as cancelled, permanently. Callable from any thread. Returns whether
    /// the generation is live.
    pub(crate) fn cancel(&self, generation: u64) -> bool {
        self.mark(generation, CANCELLED).is_some()
    }

    /// Sets a bit, if the generation is live. Writes even if the bit is set: see the module docs.
    fn mark(&self, generation: u64, bit: u64) -> Option<u64> {
        let mut now = self.0.load(Ordering::Relaxed);
        while now >> SHIFT == generation {
            // Release pairs with the acquire in `clear_scheduled`.
            match self.0.compare_exchange(now, now | bit, Ordering::Release, Ordering::Relaxed) {
                Ok(before) => return Some(before),
                Err(changed) => now = changed,
            }
        }
        None
    }

    /// Returns whether it is scheduled.
    #[inline]
    pub(crate) fn is_scheduled(&self) -> bool {
        self.0.load(Ordering::Relaxed) & SCHEDULED != 0
    }

    /// Returns whether it was cancelled.
    #[inline]
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) & CANCELLED != 0
    }

    /// Clears the flag when the coroutine is resumed: earlier scheduling is thereby served. Home
    /// thread only.
    #[inline]
    pub(crate) fn clear_scheduled(&self) {
        if self.is_scheduled() {
            // Acquire pairs with the release in `mark`.
            self.0.fetch_and(!SCHEDULED, Ordering::Acquire);
        }
    }

    /// Ends this generation: all handles to it become stale. A pending schedule is dropped (rule
    /// W4). Home thread only.
    pub(crate) fn retire(&self) {
        self.0.store((self.generation() + 1) << SHIFT, Ordering::Relaxed);
    }
}
