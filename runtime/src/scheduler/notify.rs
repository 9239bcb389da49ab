//! Waking a sleeping loop from another thread, and why no wake-up is lost (rule X6).
//!
//! Each side writes first, and then reads the other side's write:
//!
//! ```text
//!   the loop                            any thread
//!   --------                            ----------
//!   state = ASLEEP                      queues work, or sets `notified`
//!   fence ---------- pairs with ------- fence
//!   any work in the queues?             state ASLEEP?
//!   notified?
//!     yes: state = AWAKE, no sleep        yes: state = KICKED, one eventfd write
//!     no:  sleep                          no:  nothing, the loop checks before it sleeps
//! ```
//!
//! With a sequentially consistent fence between the write and the read on both sides, at least one
//! side sees the other's write: either the loop does not sleep, or it is kicked. `KICKED` makes one
//! write serve many notifiers.
//!
//! Queued work persists: the loop finds it whenever it checks. The condition of a caller of a
//! blocking poll is not in a queue, so a notification that it changed is *sticky*: `notified` stays
//! set until a blocking poll that found no work returns. That poll does not sleep while the flag is
//! set, and its caller evaluates the condition after the flag was cleared. So a notification
//! between the check and the sleep is not lost, and one to a loop that is awake costs no system
//! call.
//!
//! `tests/loom_notify.rs` checks this file: the same source, on loom's atomics.

use crate::atomic::{AtomicBool, AtomicU32, Ordering, fence};

/// The loop runs, and checks its queues before it sleeps.
const AWAKE: u32 = 0;
/// The loop sleeps or is about to: a thread that queues work kicks it.
const ASLEEP: u32 = 1;
/// A thread has taken on kicking the loop; no other thread needs to.
const KICKED: u32 = 2;

/// Whether the loop needs to be kicked.
pub(crate) struct NotifyState {
    state: AtomicU32,
    /// The sticky notification.
    notified: AtomicBool,
}

impl NotifyState {
    pub(crate) fn new() -> NotifyState {
        NotifyState { state: AtomicU32::new(AWAKE), notified: AtomicBool::new(false) }
    }

    /// Loop side, before a sleep. The loop must check its queues and `is_notified` once more after
    /// this has returned.
    pub(crate) fn going_to_sleep(&self) {
        self.state.store(ASLEEP, Ordering::Relaxed);
        // Pairs with the fence in `needs_kick`.
        fence(Ordering::SeqCst);
    }

    /// Returns whether the loop has been kicked out of a sleep that it has not ended yet. For a
    /// thread that consumed the kick from the loop's epoll set, although it was meant for the loop.
    ///
    /// Relaxed: the kernel passes on the kick, and with it the state that was written before.
    pub(crate) fn is_kicked(&self) -> bool {
        self.state.load(Ordering::Relaxed) == KICKED
    }

    /// Loop side, after it has slept or decided not to.
    ///
    /// Relaxed: queued work is published by the queue's own lock, not by this word.
    pub(crate) fn awake(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }

    /// Loop side: returns whether the loop has not announced a sleep, or has ended it since.
    ///
    /// Relaxed: only this thread stores `AWAKE`.
    pub(crate) fn is_awake(&self) -> bool {
        self.state.load(Ordering::Relaxed) == AWAKE
    }

    /// Other side, after queueing work. Returns whether the caller must kick the loop.
    pub(crate) fn needs_kick(&self) -> bool {
        // Pairs with the fence in `going_to_sleep`.
        fence(Ordering::SeqCst);
        self.state.load(Ordering::Relaxed) == ASLEEP
            && self.state.compare_exchange(ASLEEP, KICKED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Other side: sets the sticky notification, and returns whether the caller must kick the loop.
    pub(crate) fn notify(&self) -> bool {
        // Release pairs with the acquire in `take_notified`. A read-modify-write, not a store: it
        // continues the release sequence of earlier notifiers, so that the loop sees the changes of
        // all of them.
        self.notified.swap(true, Ordering::Release);
        self.needs_kick()
    }

    /// Loop side: returns whether a notification keeps it from sleeping.
    ///
    /// Relaxed: the fence in `going_to_sleep` orders the last check; an earlier check may miss a
    /// notification.
    pub(crate) fn is_notified(&self) -> bool {
        self.notified.load(Ordering::Relaxed)
    }

    /// Loop side, when a blocking poll that found no work is about to return: the caller then sees
    /// the notifiers' changes.
    pub(crate) fn take_notified(&self) {
        if self.is_notified() {
            // Acquire pairs with the release in `notify`.
            self.notified.swap(false, Ordering::Acquire);
        }
    }
}
