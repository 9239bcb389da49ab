//! Stack usage of a coroutine: the stack is painted before it starts, and words that lost the paint
//! were used.
//!
//! ```text
//!   limit                                                                   top
//!   | guard | paint paint paint paint | written once | frames of active calls |
//!                                     ^ high water
//! ```

#![allow(unsafe_code)]

use std::ptr;

use crate::coroutine::StackLease;

/// Not an address, not a small number, not text.
const PAINT: u64 = 0xa5c3_96e1_5a3c_691e;

impl StackLease {
    /// Paints a stack on which nothing runs.
    #[cold]
    pub(crate) fn paint(&self) {
        let usable = self.usable();
        let words = usable.len() / size_of::<u64>();
        let lowest = ptr::with_exposed_provenance_mut::<u64>(usable.start);
        // SAFETY: *guarded*: these bytes of the mapping are readable and writable, and belong to
        // the lease's owner; the start is page-aligned. No code runs on them yet.
        unsafe { std::slice::from_raw_parts_mut(lowest, words) }.fill(PAINT);
    }

    /// Returns how many bytes of a painted stack have lost their paint.
    pub(crate) fn high_water(&self) -> usize {
        let usable = self.usable();
        let is_painted = |address: &usize| {
            // SAFETY: as in `paint`, which initialized the words. Volatile, since the caller may
            // itself run on this stack: the compiler must assume nothing about the words' values.
            unsafe { ptr::with_exposed_provenance::<u64>(*address).read_volatile() == PAINT }
        };
        let lost = usable.clone().step_by(size_of::<u64>()).find(|address| !is_painted(address));
        usable.end - lost.unwrap_or(usable.end)
    }
}
