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

/// Generation, times two, plus one while it is scheduled from elsewhere (rule W2).
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
        Ticket(AtomicU64::new(2))
    }

    /// The generation that lives, or is the next to live.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        // Relaxed: at home this is its own store. From elsewhere it is a hint, checked again at home.
        self.0.load(Ordering::Relaxed) >> 1
    }

    /// Marks this generation as scheduled, once. Any thread.
    pub(crate) fn claim(&self, generation: u64) -> Claim {
        let (idle, scheduled) = (generation << 1, generation << 1 | 1);
        loop {
            // Release, in both: pairs with the acquire in `clear_scheduled`.
            match self.0.compare_exchange(idle, scheduled, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return Claim::Mine,
                Err(now) if now == scheduled => {
                    let written = self.0.compare_exchange(scheduled, scheduled, Ordering::Release, Ordering::Relaxed);
                    if written.is_ok() {
                        return Claim::Taken;
                    }
                }
                Err(_) => return Claim::Ended,
            }
        }
    }

    /// Whether it is scheduled from elsewhere.
    #[inline]
    pub(crate) fn is_scheduled(&self) -> bool {
        self.0.load(Ordering::Relaxed) & 1 != 0
    }

    /// It runs now: what was scheduled before has come true. Home thread.
    #[inline]
    pub(crate) fn clear_scheduled(&self) {
        if self.is_scheduled() {
            // Acquire pairs with the releases in `claim`.
            self.0.fetch_and(!1, Ordering::Acquire);
        }
    }

    /// Ends this generation: every handle to it finds out from now on. A scheduling of it is forgotten (rule W4).
    /// Home thread.
    pub(crate) fn retire(&self) {
        self.0.store((self.generation() + 1) << 1, Ordering::Relaxed);
    }
}
