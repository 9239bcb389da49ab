//! The counter by which the stall watcher sees that the loop makes progress.
//!
//! It is odd during an iteration, or an enter outside of one, and even otherwise.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counter. Written by the home thread only; relaxed, since it publishes nothing else.
#[derive(Default)]
pub(crate) struct Heartbeat(AtomicU64);

impl Heartbeat {
    /// Returns the counter.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Begins a section that should not take long; dropping the value ends it, and continues the
    /// one around it, if there is one. Beginning a nested one also shows progress of the outer one.
    #[inline]
    pub(crate) fn section(&self) -> impl Drop {
        struct Section<'a>(&'a Heartbeat, u64);
        impl Drop for Section<'_> {
            #[inline]
            fn drop(&mut self) {
                let now = self.0.count();
                self.0.0.store(if self.1 & 1 == 1 { now + 2 } else { now + 1 }, Ordering::Relaxed);
            }
        }
        let before = self.count();
        self.0.store((before | 1) + 2, Ordering::Relaxed);
        Section(self, before)
    }

    /// Pauses for a sleep of the loop, which does not count for any section around it. Dropping the
    /// value resumes.
    pub(crate) fn pause(&self) -> impl Drop {
        struct Paused<'a>(&'a Heartbeat, u64);
        impl Drop for Paused<'_> {
            fn drop(&mut self) {
                self.0.0.store(self.1 + 2, Ordering::Relaxed);
            }
        }
        let before = self.count();
        self.0.store((before + 1) & !1, Ordering::Relaxed);
        Paused(self, before)
    }
}
