//! The request table: maps a completion's key to its request.
//!
//! States of a slot, in order:
//!
//! | state     | result    | may be accessed by                                                |
//! |-----------|-----------|-------------------------------------------------------------------|
//! | free      | anything  | the home thread, which takes it from the free list                |
//! | waiting   | `PENDING` | nothing, until a completion with its key arrives                  |
//! | done      | the value | the home thread, which reads it and frees the slot                |
//!
//! A key is a slot's index and generation, so stale and repeated completions are detected. Slots
//! never move, and are not freed while the engine exists. Shared state is in atomics with plain
//! loads and stores. Without the context's lock, two completions of one request could be processed
//! concurrently, which is why a [`Guards`](super::guards::Guards) that removes the lock is unsafe
//! to write.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

use coralio_runtime::CoroutineId;

/// The request has not completed. No kernel returns this value.
const PENDING: i64 = i64::MIN;
/// End of the free list.
const NONE: u32 = u32::MAX;
/// Slots in the first chunk; each later chunk is twice as large as the previous one.
const FIRST: u32 = 256;

/// The state of one request. One cache line each, so that a completion on another thread does not
/// slow down its neighbours.
#[repr(align(64))]
pub(crate) struct Slot {
    index: u32,
    generation: AtomicU32,
    next_free: AtomicU32,
    result: AtomicI64,
    /// Set by the completion that claims the waiting request; a second completion fails. Not used
    /// while the context's lock excludes concurrent completions: `result` then gives the same
    /// answer.
    claimed: AtomicBool,
    waiter: UnsafeCell<MaybeUninit<CoroutineId>>,
}

// SAFETY: *claimed once*: `waiter` is written by the home thread while the slot is free, before its
// key is published. It is read by the one completion that claimed the request, before that stores
// the result that lets the home thread free the slot. Everything else is atomic. An engine changes
// its home thread only while all slots are free.
unsafe impl Sync for Slot {}
// SAFETY: `CoroutineId` is `Send`.
unsafe impl Send for Slot {}

pub(crate) struct Requests {
    /// The first chunk, without indirection: most engines need no other.
    first: Box<[Slot; FIRST as usize]>,
    chunks: [OnceLock<Box<[Slot]>>; 24],
    /// First free slot; accessed only by the home thread.
    free: AtomicU32,
    /// Number of slots created; accessed only by the home thread.
    made: AtomicU32,
}

/// Creates `len` free slots starting at index `start`, linked into a free list.
fn fresh(start: u32, len: u32) -> Box<[Slot]> {
    let end = start + len;
    let slot = |index| Slot {
        index,
        generation: AtomicU32::new(0),
        next_free: AtomicU32::new(if index + 1 == end { NONE } else { index + 1 }),
        result: AtomicI64::new(0),
        claimed: AtomicBool::new(true),
        waiter: UnsafeCell::new(MaybeUninit::uninit()),
    };
    (start..end).map(slot).collect()
}

impl Requests {
    pub(crate) fn new() -> Requests {
        Requests {
            first: fresh(0, FIRST).try_into().unwrap_or_else(|_| unreachable!("a chunk has a fixed length")),
            chunks: Default::default(),
            free: AtomicU32::new(0),
            made: AtomicU32::new(FIRST),
        }
    }

    #[inline]
    fn slot(&self, index: u32) -> Option<&Slot> {
        if index < FIRST { Some(&self.first[index as usize]) } else { self.later_slot(index) }
    }

    #[cold]
    fn later_slot(&self, index: u32) -> Option<&Slot> {
        // Chunk k starts at FIRST * (2^k - 1).
        let chunk = (index / FIRST + 1).ilog2();
        let start = FIRST * ((1 << chunk) - 1);
        self.chunks.get(chunk as usize)?.get()?.get((index - start) as usize)
    }

    /// Allocates a slot for a request that `waiter` waits for. Called on the home thread.
    #[inline]
    pub(crate) fn allocate(&self, waiter: CoroutineId) -> &Slot {
        let index = match self.free.load(Ordering::Relaxed) {
            NONE => self.grow(),
            index => index,
        };
        let slot = self.slot(index).expect("a request on the free list exists");
        self.free.store(slot.next_free.load(Ordering::Relaxed), Ordering::Relaxed);
        // SAFETY: *claimed once*: the slot is free, so no completion reads it.
        unsafe { (*slot.waiter.get()).write(waiter) };
        slot.claimed.store(false, Ordering::Relaxed);
        // Relaxed: the key reaches the completing thread through the kernel, under the context's
        // lock.
        slot.result.store(PENDING, Ordering::Relaxed);
        slot
    }

    /// Refills the empty free list with a new chunk. Returns its first slot.
    #[cold]
    fn grow(&self) -> u32 {
        let start = self.made.load(Ordering::Relaxed);
        let chunk = (start / FIRST + 1).ilog2();
        let len = FIRST << chunk;
        let news = self.chunks[chunk as usize].set(fresh(start, len));
        assert!(news.is_ok(), "a chunk is created once");
        self.made.store(start + len, Ordering::Relaxed);
        self.free.store(start, Ordering::Relaxed);
        start
    }

    /// Stores a request's result and returns its waiter; `None` if the completion belongs to no
    /// waiting request. Called on the reaping thread.
    ///
    /// `exclusive`: the caller holds the context's lock, which excludes concurrent completions.
    #[inline]
    pub(crate) fn complete(&self, key: u64, result: i64, exclusive: bool) -> Option<CoroutineId> {
        let (index, generation) = (key as u32, (key >> 32) as u32);
        let slot = self.slot(index)?;
        if slot.generation.load(Ordering::Relaxed) != generation {
            return None;
        }
        let claimed_before = if exclusive {
            slot.result.load(Ordering::Relaxed) != PENDING
        } else {
            slot.claimed.swap(true, Ordering::Relaxed)
        };
        if claimed_before {
            return None;
        }
        // SAFETY: *claimed once*: this completion claimed the request.
        let waiter = unsafe { (*slot.waiter.get()).assume_init() };
        // Release pairs with the acquire in `result`: the home thread sees the buffer's new
        // contents, and the waiter has been read.
        slot.result.store(result, Ordering::Release);
        Some(waiter)
    }

    /// Frees the slot and makes its key stale. Called on the home thread.
    #[inline]
    pub(crate) fn free(&self, slot: &Slot) {
        // 31 bits: a key is never u64::MAX.
        let generation = (slot.generation.load(Ordering::Relaxed) + 1) & 0x7fff_ffff;
        slot.generation.store(generation, Ordering::Relaxed);
        slot.next_free.store(self.free.load(Ordering::Relaxed), Ordering::Relaxed);
        self.free.store(slot.index, Ordering::Relaxed);
    }

    /// Returns whether no coroutine has a request. Called on the home thread. Walks the whole
    /// table.
    #[cold]
    pub(crate) fn are_all_free(&self) -> bool {
        let next_free = |&index: &u32| self.slot(index).map(|slot| slot.next_free.load(Ordering::Relaxed));
        let first = Some(self.free.load(Ordering::Relaxed));
        let free = std::iter::successors(first, next_free).take_while(|&index| index != NONE).count();
        free == self.made.load(Ordering::Relaxed) as usize
    }
}

impl Slot {
    /// Returns the key of the request that currently occupies this slot. The kernel carries it from
    /// submission to completion.
    #[inline]
    pub(crate) fn key(&self) -> u64 {
        u64::from(self.generation.load(Ordering::Relaxed)) << 32 | u64::from(self.index)
    }

    /// Returns the result once it is stored. Called on the home thread.
    #[inline]
    pub(crate) fn result(&self) -> Option<i64> {
        // Acquire pairs with the release in `complete`.
        Some(self.result.load(Ordering::Acquire)).filter(|&result| result != PENDING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coralio_runtime::{AioContext, Coroutine};

    #[test]
    fn stale_and_repeated_completions_are_detected() {
        // E5, E9: a completion that belongs to no waiting request is an error, whatever its key.
        AioContext::run(|_| {
            let waiter = Coroutine::new(|| {}).token();
            let requests = Requests::new();
            let slot = requests.allocate(waiter);
            let key = slot.key();
            assert_eq!(slot.result(), None);
            for exclusive in [true, false] {
                assert!(requests.complete(key | 9 << 32, 1, exclusive).is_none());
                assert!(requests.complete(key | 5000, 1, exclusive).is_none());
                assert!(requests.complete(u64::MAX, 1, exclusive).is_none());
            }
            assert_eq!(requests.complete(key, 512, true).unwrap(), waiter);
            assert!(requests.complete(key, 513, true).is_none());
            let other = requests.allocate(waiter).key();
            assert!(requests.complete(other, 1, false).is_some());
            assert!(requests.complete(other, 2, false).is_none());
            assert_eq!(slot.result(), Some(512));
            requests.free(slot);
            let next = requests.allocate(waiter).key();
            assert_eq!(next as u32, key as u32);
            assert!(requests.complete(key, 515, true).is_none());
        });
    }

    #[test]
    fn slots_do_not_move_when_the_table_grows() {
        // E13: the slot of a request in flight does not move, however many requests are added.
        AioContext::run(|_| {
            let waiter = Coroutine::new(|| {}).token();
            let requests = Requests::new();
            let slots: Vec<_> = (0..10_000).map(|_| requests.allocate(waiter)).collect();
            for (number, slot) in slots.iter().enumerate() {
                requests.complete(slot.key(), number as i64, true).unwrap();
            }
            for (number, slot) in slots.into_iter().enumerate() {
                assert_eq!(slot.result(), Some(number as i64));
                requests.free(slot);
            }
        });
    }
}
