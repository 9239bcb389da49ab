//! Exclusive access to the mappings of clusters: of two writers to the same unallocated cluster,
//! one allocates and the other waits.

use std::cell::RefCell;
use std::ops::Range;

use coralio::{CoMutex, CoQueue};

#[derive(Default)]
pub(crate) struct Ranges {
    held: RefCell<Vec<Range<u64>>>,
    /// Guards only the wait: `held` is checked and changed without a switch in between.
    door: CoMutex<()>,
    released: CoQueue,
}

/// Exclusive access to the mappings of a range of clusters.
#[must_use]
pub(crate) struct Held<'a> {
    ranges: &'a Ranges,
    range: Range<u64>,
}

impl Ranges {
    /// Waits until none of these clusters is held.
    pub(crate) fn take(&self, range: Range<u64>) -> Held<'_> {
        let mut door = None;
        while self.is_held(&range) {
            let guard = door.take().unwrap_or_else(|| self.door.lock());
            if self.is_held(&range) {
                door = Some(self.released.wait(guard));
            }
        }
        self.held.borrow_mut().push(range.clone());
        Held { ranges: self, range }
    }

    fn is_held(&self, range: &Range<u64>) -> bool {
        self.held.borrow().iter().any(|held| held.start < range.end && range.start < held.end)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.ranges.held.borrow_mut();
        let at = held.iter().position(|range| *range == self.range).expect("the range is held until drop");
        held.swap_remove(at);
        drop(held);
        self.ranges.released.wake_all();
    }
}
