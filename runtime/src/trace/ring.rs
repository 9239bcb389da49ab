//! A lock-free ring of the most recent records, written by any thread.
//!
//! A writer claims the next number by one addition and writes into the slot of that number. The
//! slot's sequence word is 0 during the write, and the record's number plus one afterwards: a
//! reader that finds the same sequence word before and after its read has read one record. A writer
//! that the others have overtaken by a whole ring may leave a slot with words of two records; each
//! word is therefore valid by itself, independent of the others.

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
        // Relaxed: the addition alone makes the number unique.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = self.slot(number);
        slot.sequence.store(0, Ordering::Relaxed);
        // Pairs with the reader's fence: a reader that has read one of the words below sees the 0,
        // or a later value, in its second load of the sequence word.
        fence(Ordering::Release);
        for (word, value) in std::iter::zip(&slot.words, words) {
            word.store(value, Ordering::Relaxed);
        }
        // Pairs with the reader's first load.
        slot.sequence.store(number + 1, Ordering::Release);
    }

    /// Returns the number of records written so far, and the records still in the ring, oldest
    /// first, with their numbers.
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
