//! The last so many records, written by any thread without a lock.
//!
//! Each writer claims the next number by one addition, and writes into the slot of that number. The slot's sequence word is 0
//! while it is being written, and the record's number plus one when it is whole: a reader that finds the same word before and
//! after has read one record. A writer that the others have overtaken by a whole ring may leave a slot mixed of two: so each
//! word means something valid by itself, whatever the others say.

use super::atomic::{AtomicU64, Ordering, fence};

/// Words of one record.
pub(crate) const WORDS: usize = 4;

pub(crate) struct Ring {
    next: AtomicU64,
    slots: Box<[Slot]>,
}

struct Slot {
    sequence: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl Ring {
    pub(crate) fn new(capacity: usize) -> Ring {
        let slot = |_| Slot { sequence: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) };
        Ring { next: AtomicU64::new(0), slots: (0..capacity.max(1)).map(slot).collect() }
    }

    fn slot(&self, number: u64) -> &Slot {
        &self.slots[(number % self.slots.len() as u64) as usize]
    }

    /// Writes the next record.
    pub(crate) fn push(&self, words: [u64; WORDS]) {
        // Relaxed: a number is told from all others by the addition itself.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = self.slot(number);
        slot.sequence.store(0, Ordering::Relaxed);
        // Pairs with the reader's fence: whoever reads one of the words below finds the 0, or something later, at its second look.
        fence(Ordering::Release);
        for (word, value) in std::iter::zip(&slot.words, words) {
            word.store(value, Ordering::Relaxed);
        }
        // Pairs with the reader's first look.
        slot.sequence.store(number + 1, Ordering::Release);
    }

    /// How many have been written, and those of them that are still there, oldest first, with their numbers.
    pub(crate) fn read(&self) -> (u64, Vec<(u64, [u64; WORDS])>) {
        let end = self.next.load(Ordering::Relaxed);
        let start = end.saturating_sub(self.slots.len() as u64);
        let there = (start..end).filter_map(|number| {
            let slot = self.slot(number);
            if slot.sequence.load(Ordering::Acquire) != number + 1 {
                return None;
            }
            let words = std::array::from_fn(|i| slot.words[i].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            (slot.sequence.load(Ordering::Relaxed) == number + 1).then_some((number, words))
        });
        (end, there.collect())
    }
}
