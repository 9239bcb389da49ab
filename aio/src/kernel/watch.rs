//! The poll request that ends a sleep on a kernel's own ring when another descriptor is readable:
//! the loop's epoll or eventfd.
//!
//! Its completion, the *call*, is on the ring like any other, but is nobody's: `peek` swallows it.
//! The home thread peeks, and so does whoever polls from another thread; who swallows the call
//! behind the sleeper's back would leave it asleep.
//!
//! ```text
//!   the home thread                       any thread that finds the call at the cursor
//!   ---------------                       --------------------------------------------
//!   ASLEEP                                ASLEEP? leaves it on the ring, which looks empty to it
//!   ARMED? the request or its call is     takes note of the word; is the call still there?
//!     there; if not, submits one          swaps that same word for SWALLOWING: no longer ARMED
//!   sleeps, until something is on         moves the cursor
//!     the ring                            no longer SWALLOWING
//!   no longer ASLEEP
//! ```
//!
//! *Who arms, owns*: the poll request's memory is written by the one who moves the watch from
//! unarmed to armed. It becomes unarmed only after the call was seen, which the kernel posts after
//! its last look at that memory.
//!
//! The word counts how often it was armed. Who found a call, slept on it, and comes back when that
//! one is swallowed and another request is out, would otherwise take the watch for unarmed while it
//! is not, and two requests would be out.
//!
//! This file is what `tests/loom_watch.rs` checks: the same source, on loom's atomics.

use super::Completion;
use super::atomic::{AtomicU64, Ordering::*};

/// The key by which the call is told from the completions of requests.
pub(crate) const POLL_KEY: u64 = u64::MAX;

/// A poll request is out, or its call is on the ring. The low 32 bits say for which descriptor.
const ARMED: u64 = 1 << 32;
/// The home thread sleeps, or is about to: the call is to wake it.
const ASLEEP: u64 = 1 << 33;
/// The call is being taken off the ring.
const SWALLOWING: u64 = 1 << 34;
/// From here on up: how often it was armed.
const TIMES: u64 = 1 << 35;

/// The kernel's ring of completions, as we read it.
pub(crate) trait Ring {
    /// The completion at the cursor, whoever's it is.
    fn at_cursor(&self) -> Option<Completion>;

    /// Moves the cursor on by one.
    fn move_on(&self);
}

/// What to do about a descriptor that is to be watched.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arm {
    /// Nothing: the poll request is out, or its call is there.
    Watched,
    /// Cancel the poll request, which watches another descriptor. Its call ends this sleep; the
    /// next one comes here again.
    Elsewhere,
    /// Submit the poll request, which is the caller's now; or, if that fails, say so by
    /// [`Watch::unarmed`].
    Submit,
}

/// The word that all agree by. All changes of it are read-modify-writes, so that they have one
/// order.
#[derive(Default)]
pub(crate) struct Watch(AtomicU64);

impl Watch {
    /// The home thread is about to sleep.
    ///
    /// # Panics
    ///
    /// If one sleeps already.
    #[inline]
    pub(crate) fn fall_asleep(&self) -> Asleep<'_> {
        // Relaxed: it comes before a `swallow`, which then leaves the call on the ring, or after
        // it, and `arm` sees that nothing is armed.
        let before = self.0.fetch_or(ASLEEP, Relaxed);
        assert!(before & ASLEEP == 0, "two threads wait for the same kernel: only its home thread may");
        Asleep(self)
    }

    #[inline]
    pub(crate) fn is_asleep(&self) -> bool {
        self.0.load(Relaxed) & ASLEEP != 0
    }

    /// Whether a poll request is out, or its call is on the ring.
    pub(crate) fn is_armed(&self) -> bool {
        self.0.load(Relaxed) & ARMED != 0
    }

    /// Whether it is armed, and for another descriptor.
    pub(crate) fn is_elsewhere(&self, fd: i32) -> bool {
        let word = self.0.load(Relaxed);
        word & ARMED != 0 && word as u32 != fd as u32
    }

    /// The home thread wants to be called when `fd` is readable.
    #[inline]
    pub(crate) fn arm(&self, fd: i32) -> Arm {
        let mut word = self.0.load(Relaxed);
        loop {
            if word & ARMED != 0 {
                return if word as u32 == fd as u32 { Arm::Watched } else { Arm::Elsewhere };
            }
            // Before it is submitted: another thread may have swallowed the call by the time that
            // returns. Acquire pairs with the Release in `swallow`: the memory is ours after the
            // last call was seen.
            let armed = (word & !u64::from(u32::MAX)).wrapping_add(TIMES) | ARMED | u64::from(fd as u32);
            match self.0.compare_exchange(word, armed, Acquire, Relaxed) {
                Ok(_) => return Arm::Submit,
                Err(now) => word = now,
            }
        }
    }

    /// The poll request was not submitted, or its call is off the ring by another way.
    #[cold]
    pub(crate) fn unarmed(&self) {
        // Release as in `swallow`.
        self.0.fetch_and(!ARMED, Release);
    }

    /// The completion at the ring's cursor. A call is swallowed on the way, or, if it is not ours
    /// to take, hides what is behind it.
    #[inline(always)]
    pub(crate) fn peek(&self, ring: &impl Ring) -> Option<Completion> {
        loop {
            let found = ring.at_cursor()?;
            if found.key != POLL_KEY {
                return Some(found);
            }
            if !self.swallow(ring) {
                return None;
            }
        }
    }

    /// The call was at the cursor: takes it off the ring, if it still is. False: the ring is to
    /// look empty, since the home thread sleeps, or another one is at it.
    #[cold]
    fn swallow(&self, ring: &impl Ring) -> bool {
        // Acquire pairs with the Release of who swallowed before: if the word is newer than the
        // look at the ring, so will the next look be.
        let word = self.0.load(Acquire);
        if word & (ARMED | ASLEEP | SWALLOWING) != ARMED {
            return false;
        }
        if ring.at_cursor().is_none_or(|found| found.key != POLL_KEY) {
            return true;
        }
        // Unarmed before the cursor moves: a home thread that still sees "armed" must find the
        // call, or have left word that it sleeps. Release pairs with the Acquire in `arm`: who owns
        // the poll request next comes after the call.
        let swallowing = word & !(ARMED | u64::from(u32::MAX)) | SWALLOWING;
        if self.0.compare_exchange(word, swallowing, Release, Relaxed).is_err() {
            return false;
        }
        ring.move_on();
        // Release pairs with the Acquire of the next to swallow: it finds the cursor moved.
        self.0.fetch_and(!SWALLOWING, Release);
        true
    }
}

/// The home thread sleeps, as long as this lives.
#[must_use]
pub(crate) struct Asleep<'w>(&'w Watch);

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

    /// A ring that does as a test likes.
    struct Scripted<C, M> {
        is_call: C,
        move_on: M,
    }

    impl<C: Fn() -> bool, M: Fn()> Ring for Scripted<C, M> {
        fn at_cursor(&self) -> Option<Completion> {
            (self.is_call)().then_some(Completion { key: POLL_KEY, result: 0 })
        }

        fn move_on(&self) {
            (self.move_on)();
        }
    }

    fn swallow(watch: &Watch, is_call: impl Fn() -> bool, move_on: impl Fn()) -> bool {
        watch.swallow(&Scripted { is_call, move_on })
    }

    #[test]
    fn the_call_is_left_to_the_sleeper() {
        // W3: who peeks while the home thread sleeps, or while another one swallows, finds an empty
        // ring
        let watch = Watch::default();
        assert_eq!(watch.arm(7), Arm::Submit);
        for bit in [ASLEEP, SWALLOWING] {
            watch.0.fetch_or(bit, Relaxed);
            assert!(!swallow(&watch, || true, || panic!("it is not the peeker's to take")));
            watch.0.fetch_and(!bit, Relaxed);
        }
        let taken = Cell::new(false);
        assert!(swallow(&watch, || true, || taken.set(true)));
        assert!(taken.get() && !watch.is_armed());
    }

    #[test]
    fn it_watches_one_at_a_time() {
        // E12: another descriptor is to be watched
        let watch = Watch::default();
        assert_eq!((watch.arm(7), watch.arm(7), watch.arm(8)), (Arm::Submit, Arm::Watched, Arm::Elsewhere));
        assert!(watch.is_elsewhere(8) && !watch.is_elsewhere(7));
        assert!(swallow(&watch, || true, || ()));
        assert_eq!(watch.arm(8), Arm::Submit);
        watch.unarmed();
        assert!(!watch.is_armed() && !watch.is_elsewhere(8));
    }

    #[test]
    fn a_look_that_is_out_of_date_takes_nothing() {
        // W3: between the look at the ring and the swap, the call was swallowed and the watch armed
        // again
        let watch = Watch::default();
        assert_eq!(watch.arm(7), Arm::Submit);
        let meanwhile = || {
            assert!(swallow(&watch, || true, || ()));
            assert_eq!(watch.arm(7), Arm::Submit);
            true
        };
        assert!(!swallow(&watch, meanwhile, || panic!("there is no call")));
        assert!(watch.is_armed());
    }

    #[test]
    #[should_panic(expected = "only its home thread may")]
    fn two_do_not_sleep() {
        // E9: one home thread
        let watch = Watch::default();
        let _first = watch.fall_asleep();
        let _second = watch.fall_asleep();
    }
}
