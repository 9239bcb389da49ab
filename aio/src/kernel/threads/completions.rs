//! What became of requests: a ring that threads fill and the engine reads in memory; and whether
//! its reader sleeps.
//!
//! Each slot has a *turn*: the position that it was published for, plus one. A thread reserves a
//! position, fills the slot, and publishes it by its turn. The reader looks whether the slot at its
//! head has the turn of the head. A slot is free when it is reserved, since no more requests are in
//! flight than there are slots, and one is in flight until it was committed.
//!
//! Nobody has to tell the reader of a completion unless it sleeps (the protocol of the runtime's
//! `notify.rs`): each side writes first, and then looks at what the other one wrote.
//!
//! ```text
//!   the reader                          a thread
//!   ----------                          --------
//!   state = ASLEEP                      a completion is published
//!   fence ---------- pairs with ------- fence
//!   is the head published?              state ASLEEP?
//!     yes: state = AWAKE, no sleep        yes: state = KICKED, and it kicks
//!     no:  sleep                          no:  nothing, the reader looks before it sleeps
//! ```
//!
//! One that is published behind an unpublished head is not seen yet; who publishes the head then
//! kicks. This file is what `tests/loom_completions.rs` checks: the same source, on loom's atomics.

use super::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

/// The reader looks at the ring before it sleeps.
const AWAKE: u32 = 0;
/// The reader sleeps or is about to: whoever publishes kicks it.
const ASLEEP: u32 = 1;
/// Someone has undertaken to kick it; nobody else needs to.
const KICKED: u32 = 2;

#[derive(Default)]
struct Slot {
    turn: AtomicU64,
    key: AtomicU64,
    result: AtomicI64,
}

/// On a cache line of its own: what threads write does not slow the reader down.
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
    /// For up to `depth` requests in flight.
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

    /// A thread's side: the request with this key is done. Returns whether the caller has to kick
    /// the reader.
    #[inline]
    pub(crate) fn push(&self, key: u64, result: i64) -> bool {
        // Relaxed: a position is told from all others by the add itself. That the slot's last
        // reader is done with it, the way of the request has told: committed, submitted under the
        // context's lock, taken under the pool's.
        let position = self.tail.0.fetch_add(1, Ordering::Relaxed);
        let slot = self.slot(position);
        slot.key.store(key, Ordering::Relaxed);
        slot.result.store(result, Ordering::Relaxed);
        // Release pairs with the acquire in `is_published`: with the turn goes what the request did
        // to memory.
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

    /// The reader's side: key and result at the head.
    #[inline]
    pub(crate) fn peek(&self) -> Option<(u64, i64)> {
        // Relaxed: readers are one at a time, under the context's lock.
        let head = self.head.0.load(Ordering::Relaxed);
        let slot = self.slot(head);
        self.is_published(head).then(|| (slot.key.load(Ordering::Relaxed), slot.result.load(Ordering::Relaxed)))
    }

    /// The reader's side: moves the head past what was peeked last.
    #[inline]
    pub(crate) fn commit(&self) {
        // Relaxed: as in `peek`, and as in `push` for those who use the slot next.
        self.head.0.store(self.head.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Whether the next `count` are there.
    pub(crate) fn has(&self, count: u32) -> bool {
        let head = self.head.0.load(Ordering::Relaxed);
        (head..head + u64::from(count)).all(|position| self.is_published(position))
    }

    /// The reader's side, before it sleeps. When this has returned, and only then, it looks once
    /// more. Returns whether nobody else sleeps here.
    pub(crate) fn going_to_sleep(&self) -> bool {
        let before = self.state.0.swap(ASLEEP, Ordering::Relaxed);
        // Pairs with the fence in `push`.
        fence(Ordering::SeqCst);
        before != ASLEEP
    }

    /// The reader's side, after it slept or decided not to.
    ///
    /// Relaxed: what was published is handed over by its turn.
    pub(crate) fn awake(&self) {
        self.state.0.store(AWAKE, Ordering::Relaxed);
    }

    /// Whether the reader has announced that it sleeps.
    #[cfg(test)]
    pub(crate) fn is_asleep(&self) -> bool {
        self.state.0.load(Ordering::Relaxed) == ASLEEP
    }
}
