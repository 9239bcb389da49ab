//! How another thread wakes a sleeping loop, and why no wake-up is lost (rule X6).
//!
//! Two sides, each of which writes first and then looks at what the other one wrote:
//!
//! ```text
//!   the loop                            any thread
//!   --------                            ----------
//!   state = ASLEEP                      work is put on a queue, or `notified` is set
//!   fence ---------- pairs with ------- fence
//!   any work on the queues?             state ASLEEP?
//!   notified?
//!     yes: state = AWAKE, no sleep        yes: state = KICKED, one eventfd write
//!     no:  sleep                          no:  nothing, the loop will look before it sleeps
//! ```
//!
//! With a sequentially consistent fence between the write and the look on both sides, at least one side sees the
//! other's write: so either the loop does not sleep, or it is kicked. `KICKED` makes one write do for many notifiers.
//!
//! Work on a queue is its own record: the loop finds the work whenever it looks. A condition that the caller of a blocking
//! poll evaluates is on no queue, so a notification of such a change is *sticky*: `notified` stays set until a blocking
//! poll that found no work returns. That poll does not sleep while the flag is set, and its caller evaluates the condition
//! after the flag was cleared. So a notification between the check and the sleep is not lost, and one that finds the loop awake
//! costs no system call.
//!
//! This file is what `tests/loom_notify.rs` checks: the same source, on loom's atomics.

use crate::atomic::{AtomicBool, AtomicU32, Ordering, fence};

/// The loop runs, and looks at its queues before it sleeps.
const AWAKE: u32 = 0;
/// The loop sleeps or is about to: a thread that brings work kicks it.
const ASLEEP: u32 = 1;
/// A thread has undertaken to kick the loop; no other thread needs to.
const KICKED: u32 = 2;

/// Whether the loop needs to be kicked.
pub(crate) struct SleepState {
    state: AtomicU32,
    /// The sticky notification.
    notified: AtomicBool,
}

impl SleepState {
    pub(crate) fn new() -> SleepState {
        SleepState { state: AtomicU32::new(AWAKE), notified: AtomicBool::new(false) }
    }

    /// The loop's side, before it sleeps. When this has returned, and only then, it looks at its queues and at
    /// `is_notified` once more.
    pub(crate) fn going_to_sleep(&self) {
        self.state.store(ASLEEP, Ordering::Relaxed);
        // Pairs with the fence in `needs_kick`.
        fence(Ordering::SeqCst);
    }

    /// Whether the loop has been kicked out of a sleep that it has not ended yet. For a thread that took the kick off the
    /// set that the loop sleeps in, and for which the kick is not meant.
    ///
    /// Relaxed: the kernel hands the kick on, and with it the state that was written before it.
    pub(crate) fn is_kicked(&self) -> bool {
        self.state.load(Ordering::Relaxed) == KICKED
    }

    /// The loop's side, after it slept or decided not to.
    ///
    /// Relaxed: what was put on a queue is handed over by the queue's own lock, not by this word.
    pub(crate) fn awake(&self) {
        self.state.store(AWAKE, Ordering::Relaxed);
    }

    /// The other side, after the work was put on its queue: whether the caller has to kick the loop.
    pub(crate) fn needs_kick(&self) -> bool {
        // Pairs with the fence in `going_to_sleep`.
        fence(Ordering::SeqCst);
        self.state.load(Ordering::Relaxed) == ASLEEP
            && self.state.compare_exchange(ASLEEP, KICKED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// The other side: sets the sticky notification, and returns whether the caller has to kick the loop.
    pub(crate) fn notify(&self) -> bool {
        // Release pairs with the acquire in `take_notified`. A read-modify-write, not a store: it continues the release
        // sequence of earlier notifiers, so that the loop sees what all of them changed.
        self.notified.swap(true, Ordering::Release);
        self.needs_kick()
    }

    /// The loop's side: whether a notification keeps it from sleeping.
    ///
    /// Relaxed: the fence in `going_to_sleep` orders the last look; an earlier look may miss a notification.
    pub(crate) fn is_notified(&self) -> bool {
        self.notified.load(Ordering::Relaxed)
    }

    /// The loop's side, when a blocking poll that found no work is about to return: the caller sees what the notifiers changed.
    pub(crate) fn take_notified(&self) {
        if self.is_notified() {
            // Acquire pairs with the release in `notify`.
            self.notified.swap(false, Ordering::Acquire);
        }
    }
}
