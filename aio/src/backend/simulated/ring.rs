//! The completion ring: slots in memory, and two wrapping counters.

use crate::backend::Completion;

pub(crate) struct Ring {
    slots: Vec<Option<(Completion, u64)>>,
    head: u32,
    tail: u32,
    /// Set for a ring that cannot be read in memory: looking at a completion takes it off the ring,
    /// by a system call.
    taken: Option<Option<(Completion, u64)>>,
}

impl Ring {
    /// Creates a ring for `depth` completions. The counters wrap soon.
    pub(crate) fn new(depth: u32, bad: bool) -> Ring {
        let start = u32::MAX - 2;
        Ring {
            slots: vec![None; depth.next_power_of_two() as usize],
            head: start,
            tail: start,
            taken: bad.then_some(None),
        }
    }

    fn slot(&mut self, counter: u32) -> &mut Option<(Completion, u64)> {
        let mask = self.slots.len() - 1;
        &mut self.slots[counter as usize & mask]
    }

    pub(crate) fn len(&self) -> u32 {
        self.tail.wrapping_sub(self.head)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0 && !matches!(self.taken, Some(Some(_)))
    }

    pub(crate) fn push(&mut self, completion: Completion, number: u64) {
        let overwritten = self.slot(self.tail).replace((completion, number));
        assert!(overwritten.is_none(), "the ring has room for each request in flight");
        self.tail = self.tail.wrapping_add(1);
    }

    /// Returns the completion at the cursor, and its request's number.
    pub(crate) fn front(&mut self) -> Option<(Completion, u64)> {
        if matches!(self.taken, Some(None)) {
            let next = self.take();
            self.taken = Some(next);
        }
        match self.taken {
            Some(taken) => taken,
            None => *self.slot(self.head),
        }
    }

    /// Advances the cursor.
    pub(crate) fn pop(&mut self) -> Option<(Completion, u64)> {
        match &mut self.taken {
            Some(taken) => taken.take(),
            None => self.take(),
        }
    }

    fn take(&mut self) -> Option<(Completion, u64)> {
        let taken = self.slot(self.head).take()?;
        self.head = self.head.wrapping_add(1);
        Some(taken)
    }
}
