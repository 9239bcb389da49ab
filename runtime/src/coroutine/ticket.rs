//! The word by which handles tell a coroutine from its successors, and which lets it be scheduled once at a time.
//!
//! ```text
//!   any thread                               home
//!   ----------                               ----
//!   what it waits for is there               takes the coroutine off the list
//!   bit clear: set it, put it on the list    clears the bit
//!   bit set:   nothing, it is to run yet     resumes it: it looks for what it waits for
//! ```
//!
//! Both sides write the bit, also the waker that finds it set: so one of the two comes first, and if it is the waker,
//! the coroutine sees what the waker did before. `tests/loom_ticket.rs` checks this same source on loom's atomics.

use crate::atomic::{AtomicU64, Ordering};

/// It is scheduled from elsewhere, and has not run yet (rule W2).
const SCHEDULED: u64 = 1;
/// It is to end soon: what can fail in it fails.
const CANCELLED: u64 = 2;
/// The generation lies above the two bits.
const SHIFT: u32 = 2;

/// Generation, and what any thread may ask of it: that it runs, that it ends soon.
pub(crate) struct Ticket(AtomicU64);

/// What came of [`Ticket::claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The caller puts it on the list.
    Mine,
    /// It was scheduled before, and has not run.
    Taken,
    /// This generation has ended.
    Ended,
}

impl Ticket {
    pub(crate) fn new() -> Ticket {
        Ticket(AtomicU64::new(1 << SHIFT))
    }

    /// The generation that lives, or is the next to live.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        // Relaxed: at home this is its own store. From elsewhere it is a hint, checked again at home.
        self.0.load(Ordering::Relaxed) >> SHIFT
    }

    /// Marks this generation as scheduled, once. Any thread.
    pub(crate) fn claim(&self, generation: u64) -> Claim {
        match self.mark(generation, SCHEDULED) {
            None => Claim::Ended,
            Some(before) if before & SCHEDULED != 0 => Claim::Taken,
            Some(_) => Claim::Mine,
        }
    }

    /// Marks this generation as cancelled, for good. Any thread. Returns whether it lives.
    pub(crate) fn cancel(&self, generation: u64) -> bool {
        self.mark(generation, CANCELLED).is_some()
    }

    /// Sets a bit, if the generation lives. It writes even if the bit is set: see the module.
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

    /// Whether it is scheduled from elsewhere.
    #[inline]
    pub(crate) fn is_scheduled(&self) -> bool {
        self.0.load(Ordering::Relaxed) & SCHEDULED != 0
    }

    /// Whether it was cancelled.
    #[inline]
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) & CANCELLED != 0
    }

    /// It runs now: what was scheduled before has come true. Home thread.
    #[inline]
    pub(crate) fn clear_scheduled(&self) {
        if self.is_scheduled() {
            // Acquire pairs with the release in `mark`.
            self.0.fetch_and(!SCHEDULED, Ordering::Acquire);
        }
    }

    /// Ends this generation: every handle to it finds out from now on. A scheduling of it is forgotten (rule W4).
    /// Home thread.
    pub(crate) fn retire(&self) {
        self.0.store((self.generation() + 1) << SHIFT, Ordering::Relaxed);
    }
}
