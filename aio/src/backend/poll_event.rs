//! The poll request that ends a sleep on a backend's ring when another descriptor is readable: the
//! loop's epoll or eventfd.
//!
//! Its completion, the *call*, is on the ring like any other, but belongs to no request:
//! `peek_completion` consumes it. The home thread peeks, and so do other threads that poll the
//! context. If another thread consumed the call during the home thread's sleep, the sleep would not
//! end.
//!
//! ```text
//!   the home thread                       any thread that finds the call at the cursor
//!   ---------------                       --------------------------------------------
//!   sets ASLEEP                           ASLEEP? leaves it on the ring, treats that as empty
//!   ARMED? the request or its call is     reads the word; is the call still there?
//!     there; if not, submits one          swaps that same word for SWALLOWING, clearing ARMED
//!   sleeps, until something is on         advances the cursor
//!     the ring                            clears SWALLOWING
//!   clears ASLEEP
//! ```
//!
//! *Who arms, owns*: the thread that changes the watch from unarmed to armed may write the poll
//! request's memory. The watch becomes unarmed only after the call was seen, which the kernel posts
//! after its last access to that memory.
//!
//! The word counts how often the watch was armed. Suppose that a thread finds a call, and is
//! delayed until another thread has consumed the call and a new request is in flight. Without the
//! count it would then mark the watch as unarmed, and a second request would be submitted.
//!
//! `tests/loom_watch.rs` model-checks this source file, with loom's atomics.

use super::Completion;
use super::atomic::{AtomicU64, Ordering::*};

/// The key that distinguishes the call from the completions of requests.
pub(crate) const POLL_KEY: u64 = u64::MAX;

/// A poll request is in flight, or its call is on the ring. The low 32 bits are its descriptor.
const ARMED: u64 = 1 << 32;
/// The home thread sleeps or is about to: the call must wake it.
const ASLEEP: u64 = 1 << 33;
/// The call is being taken off the ring.
const SWALLOWING: u64 = 1 << 34;
/// The remaining high bits count how often the watch was armed.
const TIMES: u64 = 1 << 35;

/// A backend's completion ring.
pub(crate) trait CompletionRing {
    /// Returns the completion at the cursor, of whatever kind.
    fn peek(&self) -> Option<Completion>;

    /// Advances the cursor by one.
    fn advance(&self);
}

/// The action needed to watch a descriptor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arm {
    /// No action is needed: the poll request is in flight, or its completion is on the ring.
    Watched,
    /// Cancel the poll request, which watches another descriptor. Its call ends this sleep; the
    /// next sleep arms again.
    Elsewhere,
    /// Submit the poll request, which the caller now owns; if that fails, call
    /// [`PollEvent::unarmed`].
    Submit,
}

/// The state shared by all threads. All changes are read-modify-writes, so they have a total order.
#[derive(Default)]
pub(crate) struct PollEvent(AtomicU64);

impl PollEvent {
    /// Announces that the home thread is about to sleep.
    ///
    /// # Panics
    ///
    /// If a thread sleeps already.
    #[inline]
    pub(crate) fn fall_asleep(&self) -> Asleep<'_> {
        // Relaxed: either this change precedes a `consume`, which then leaves the call on the ring;
        // or it follows the `consume`, and `arm` sees that nothing is armed.
        let before = self.0.fetch_or(ASLEEP, Relaxed);
        assert!(before & ASLEEP == 0, "two threads wait for the same backend: only its home thread may wait");
        Asleep(self)
    }

    /// Whether a poll request is in flight, or its call is on the ring.
    pub(crate) fn is_armed(&self) -> bool {
        self.0.load(Relaxed) & ARMED != 0
    }

    /// Arms the watch, so that the home thread wakes when `fd` is readable.
    #[inline]
    pub(crate) fn arm(&self, fd: i32) -> Arm {
        let mut word = self.0.load(Relaxed);
        loop {
            if word & ARMED != 0 {
                return if word as u32 == fd as u32 { Arm::Watched } else { Arm::Elsewhere };
            }
            // Armed before submission: another thread may have consumed the call by the time the
            // submit returns. Acquire pairs with the Release in `consume`: this thread owns the
            // memory once the last call was seen.
            let armed = (word & !u64::from(u32::MAX)).wrapping_add(TIMES) | ARMED | u64::from(fd as u32);
            match self.0.compare_exchange(word, armed, Acquire, Relaxed) {
                Ok(_) => return Arm::Submit,
                Err(now) => word = now,
            }
        }
    }

    /// Marks the watch as unarmed: the poll request was not submitted.
    #[cold]
    pub(crate) fn unarmed(&self) {
        // Release as in `consume`.
        self.0.fetch_and(!ARMED, Release);
    }

    /// Returns the completion at the ring's cursor. Consumes a call at the cursor; one that must
    /// not be consumed hides the completions behind it.
    #[inline(always)]
    pub(crate) fn peek(&self, ring: &impl CompletionRing) -> Option<Completion> {
        loop {
            let found = ring.peek()?;
            if found.key != POLL_KEY {
                return Some(found);
            }
            if !self.consume(ring) {
                return None;
            }
        }
    }

    /// Takes the call at the cursor off the ring, if it is still there. Returns false if the ring
    /// must be treated as empty, because the home thread sleeps or another thread is consuming the
    /// call.
    #[cold]
    fn consume(&self, ring: &impl CompletionRing) -> bool {
        // Acquire pairs with the Release of the previous `consume`: if the word is newer than the
        // last look at the ring, so is the next look.
        let word = self.0.load(Acquire);
        if word & (ARMED | ASLEEP | SWALLOWING) != ARMED {
            return false;
        }
        if ring.peek().is_none_or(|found| found.key != POLL_KEY) {
            return true;
        }
        // Unarmed before the cursor moves: a home thread that still sees ARMED must find the call,
        // or must already have set ASLEEP. Release pairs with the Acquire in `arm`: the next owner
        // of the poll request comes after the call.
        let swallowing = word & !(ARMED | u64::from(u32::MAX)) | SWALLOWING;
        if self.0.compare_exchange(word, swallowing, Release, Relaxed).is_err() {
            return false;
        }
        ring.advance();
        // Release pairs with the Acquire of the next `consume`, which then finds the cursor moved.
        self.0.fetch_and(!SWALLOWING, Release);
        true
    }
}

/// Marks the home thread as asleep while it exists.
#[must_use]
pub(crate) struct Asleep<'w>(&'w PollEvent);

impl Drop for Asleep<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.0.fetch_and(!ASLEEP, Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A ring with scripted behaviour.
    struct ScriptedBackend<C, M> {
        is_call: C,
        advance: M,
    }

    impl<C: Fn() -> bool, M: Fn()> CompletionRing for ScriptedBackend<C, M> {
        fn peek(&self) -> Option<Completion> {
            (self.is_call)().then_some(Completion { key: POLL_KEY, result: 0 })
        }

        fn advance(&self) {
            (self.advance)();
        }
    }

    fn consume(watch: &PollEvent, is_call: impl Fn() -> bool, advance: impl Fn()) -> bool {
        watch.consume(&ScriptedBackend { is_call, advance })
    }

    #[test]
    fn poll_completion_is_left_to_the_sleeper() {
        // W3: a peek while the home thread sleeps, or while another thread consumes the call, finds
        // an empty ring
        let watch = PollEvent::default();
        assert_eq!(watch.arm(7), Arm::Submit);
        for bit in [ASLEEP, SWALLOWING] {
            watch.0.fetch_or(bit, Relaxed);
            assert!(!consume(&watch, || true, || panic!("the peeking thread must not take the event")));
            watch.0.fetch_and(!bit, Relaxed);
        }
        let taken = Cell::new(false);
        assert!(consume(&watch, || true, || taken.set(true)));
        assert!(taken.get() && !watch.is_armed());
    }

    #[test]
    fn one_descriptor_is_watched_at_a_time() {
        // E12: a different descriptor is to be watched
        let watch = PollEvent::default();
        assert_eq!((watch.arm(7), watch.arm(7), watch.arm(8)), (Arm::Submit, Arm::Watched, Arm::Elsewhere));
        assert!(consume(&watch, || true, || ()));
        assert_eq!(watch.arm(8), Arm::Submit);
        watch.unarmed();
        assert!(!watch.is_armed());
    }

    #[test]
    fn stale_peek_consumes_nothing() {
        // W3: between the look at the ring and the swap, the call was consumed and the watch armed
        // again
        let watch = PollEvent::default();
        assert_eq!(watch.arm(7), Arm::Submit);
        let meanwhile = || {
            assert!(consume(&watch, || true, || ()));
            assert_eq!(watch.arm(7), Arm::Submit);
            true
        };
        assert!(!consume(&watch, meanwhile, || panic!("there is no call to consume")));
        assert!(watch.is_armed());
    }

    #[test]
    #[should_panic(expected = "only its home thread may")]
    fn second_sleeper_is_rejected() {
        // E9: only one thread sleeps
        let watch = PollEvent::default();
        let _first = watch.fall_asleep();
        let _second = watch.fall_asleep();
    }
}
