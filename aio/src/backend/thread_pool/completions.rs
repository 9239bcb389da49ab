//! Completions: a ring that pool threads fill and the engine reads in memory, and the sleep state
//! of its reader.
//!
//! Each slot has a *turn*: the position that it was published for, plus one. A thread reserves a
//! position, fills the slot, and publishes it by storing the turn. The reader checks whether the
//! slot at its head has the head's turn. A reserved slot is always free: there are at least as many
//! slots as requests in flight, and a request counts as in flight until its completion is
//! committed.
//!
//! The reader needs no signal unless it sleeps (the protocol of the runtime's `notify.rs`): each
//! side writes first, and then checks what the other one wrote.
//!
//! ```text
//!   the reader                          a thread
//!   ----------                          --------
//!   state = ASLEEP                      publishes a completion
//!   fence ---------- pairs with ------- fence
//!   is the head published?              state ASLEEP?
//!     yes: state = AWAKE, no sleep        yes: state = KICKED, and signals
//!     no:  sleep                          no:  nothing, the reader checks before it sleeps
//! ```
//!
//! A completion published behind an unpublished head is not visible yet; the thread that publishes
//! the head then signals. `tests/loom_completions.rs` model-checks this source file, with loom's
//! atomics.

use super::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

/// The reader checks the ring before it sleeps.
const AWAKE: u32 = 0;
/// The reader sleeps or is about to: a publishing thread must signal it.
const ASLEEP: u32 = 1;
/// A thread is about to signal the reader; others need not.
const KICKED: u32 = 2;

#[derive(Default)]
struct Slot {
    turn: AtomicU64,
    key: AtomicU64,
    result: AtomicI64,
}

/// Separate cache lines, so that the threads' writes do not slow down the reader.
#[repr(align(128))]
struct Apart<T>(T);

pub(crate) struct Completions {
    slots: Box<[Slot]>,
    /// The next position to be reserved.
    tail: Apart<AtomicU64>,
    /// The reader's cursor.
    head: Apart<AtomicU64>,
    state: Apart<AtomicU32>,
}

impl Completions {
    /// Creates a ring for up to `depth` requests in flight.
    pub(crate) fn new(depth: u32) -> Completions {
        Completions {
            slots: (0..depth.next_power_of_two()).map(|_| Slot::default()).collect(),
            tail: Apart(AtomicU64::new(0)),
            head: Apart(AtomicU64::new(0)),
            state: Apart(AtomicU32::new(AWAKE)),
        }
    }

    #[inline]
    fn slot(&self, position: u64) -> &Slot {
        &self.slots[position as usize & (self.slots.len() - 1)]
    }

    /// Publishes the completion of the request with this key. Called by a pool thread. Returns
    /// whether the caller must signal the reader.
    #[inline]
    pub(crate) fn push(&self, key: u64, result: i64) -> bool {
        // Relaxed: the add itself makes positions unique. The request's path orders this after the
        // slot's previous use: committed, submitted under the context's lock, taken under the
        // pool's.
        let position = self.tail.0.fetch_add(1, Ordering::Relaxed);
        let slot = self.slot(position);
        slot.key.store(key, Ordering::Relaxed);
        slot.result.store(result, Ordering::Relaxed);
        // Release pairs with the acquire in `is_published`: the turn publishes the request's
        // effects on memory.
        slot.turn.store(position + 1, Ordering::Release);
        // Pairs with the fence in `going_to_sleep`.
        fence(Ordering::SeqCst);
        let state = &self.state.0;
        state.load(Ordering::Relaxed) == ASLEEP
            && state.compare_exchange(ASLEEP, KICKED, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    #[inline]
    fn is_published(&self, position: u64) -> bool {
        // Acquire pairs with the release in `push`.
        self.slot(position).turn.load(Ordering::Acquire) == position + 1
    }

    /// Returns key and result at the head. Called by the reader.
    #[inline]
    pub(crate) fn peek(&self) -> Option<(u64, i64)> {
        // Relaxed: there is one reader at a time, under the context's lock.
        let head = self.head.0.load(Ordering::Relaxed);
        let slot = self.slot(head);
        self.is_published(head).then(|| (slot.key.load(Ordering::Relaxed), slot.result.load(Ordering::Relaxed)))
    }

    /// Moves the head past the completion peeked last. Called by the reader.
    #[inline]
    pub(crate) fn commit(&self) {
        // Relaxed: as in `peek_completion`; and as in `push`, for the slot's next use.
        self.head.0.store(self.head.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Whether the next `count` completions are published.
    pub(crate) fn has(&self, count: u32) -> bool {
        let head = self.head.0.load(Ordering::Relaxed);
        (head..head + u64::from(count)).all(|position| self.is_published(position))
    }

    /// Announces that the reader is about to sleep. The reader must check the ring once more after
    /// this. Returns false if another thread already sleeps here.
    pub(crate) fn going_to_sleep(&self) -> bool {
        let before = self.state.0.swap(ASLEEP, Ordering::Relaxed);
        // Pairs with the fence in `push`.
        fence(Ordering::SeqCst);
        before != ASLEEP
    }

    /// Ends the announcement, after the reader slept or decided not to.
    ///
    /// Relaxed: completions are handed over by their turns.
    pub(crate) fn awake(&self) {
        self.state.0.store(AWAKE, Ordering::Relaxed);
    }

    /// Whether the reader has announced that it sleeps.
    #[cfg(test)]
    pub(crate) fn is_asleep(&self) -> bool {
        self.state.0.load(Ordering::Relaxed) == ASLEEP
    }
}
