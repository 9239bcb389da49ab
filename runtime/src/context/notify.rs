//! How another thread wakes a sleeping loop, and why no wake-up is lost (rule X6).
//!
//! Two sides, each of which writes first and then looks at what the other one wrote:
//!
//! ```text
//!   the loop                            any thread
//!   --------                            ----------
//!   state = ASLEEP                      work is put on a queue
//!   fence ---------- pairs with ------- fence
//!   any work on the queues?             state ASLEEP?
//!     yes: state = AWAKE, no sleep        yes: state = KICKED, one eventfd write
//!     no:  sleep                          no:  nothing, the loop will look before it sleeps
//! ```
//!
//! With a sequentially consistent fence between the write and the look on both sides, at least one side sees the
//! other's write: so either the loop does not sleep, or it is kicked. `KICKED` makes one write do for many notifiers.
//! This file is what `tests/loom_notify.rs` checks: the same source, on loom's atomics.

use crate::atomic::{AtomicBool, AtomicU32, Ordering, fence};

/// The loop runs, and looks at its queues before it sleeps.
const AWAKE: u32 = 0;
/// The loop sleeps or is about to: whoever brings work kicks it.
const ASLEEP: u32 = 1;
/// Someone has undertaken to kick it; nobody else needs to.
const KICKED: u32 = 2;

/// Whether the loop needs to be kicked.
pub(crate) struct SleepState {
    state: AtomicU32,
    /// Somebody wants the loop to look again at what it polls for: that is not on any queue.
    look_again: AtomicBool,
}

impl SleepState {
    pub(crate) fn new() -> SleepState {
        SleepState { state: AtomicU32::new(AWAKE), look_again: AtomicBool::new(false) }
    }

    /// The loop's side, before it sleeps. When this has returned, and only then, it looks at its queues once more.
    pub(crate) fn going_to_sleep(&self) {
        self.state.store(ASLEEP, Ordering::Relaxed);
        // Pairs with the fence in `needs_kick`.
        fence(Ordering::SeqCst);
    }

    /// Whether the loop has been kicked out of a sleep that it has not ended yet. For whoever took the kick off the set that it
    /// sleeps in, and is not meant.
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

    /// The other side: what the loop polls for may have come true. The caller then kicks the loop, if it has to.
    pub(crate) fn look_again(&self) {
        // Release pairs with the acquire in `take_look_again`: whoever polls sees what came true.
        self.look_again.store(true, Ordering::Release);
    }

    /// The loop's side: whether it has to look again.
    pub(crate) fn has_to_look_again(&self) -> bool {
        self.look_again.load(Ordering::Relaxed)
    }

    /// The loop's side, before it goes back to whoever polls.
    pub(crate) fn take_look_again(&self) {
        if self.has_to_look_again() {
            self.look_again.swap(false, Ordering::Acquire);
        }
    }
}
