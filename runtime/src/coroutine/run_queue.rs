//! A list of control blocks.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr;

use crate::coroutine::ControlBlock;

/// A first-in, first-out list of blocks, linked through the blocks themselves: it allocates
/// nothing, and a block is on at most one list. Used by the home thread only.
pub(crate) struct RunQueue {
    head: Cell<Option<&'static ControlBlock>>,
    tail: Cell<Option<&'static ControlBlock>>,
}

impl RunQueue {
    pub(crate) const fn new() -> RunQueue {
        RunQueue { head: Cell::new(None), tail: Cell::new(None) }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.get().is_none()
    }

    /// Returns the coroutine that `pop` would.
    #[inline]
    pub(crate) fn first(&self) -> Option<&'static ControlBlock> {
        self.head.get()
    }

    #[inline]
    pub(crate) fn push(&self, block: &'static ControlBlock) {
        // SAFETY: *home's own*: lists belong to the home thread, which pushes only its own blocks.
        let local = unsafe { block.local() };
        debug_assert!(local.next.get().is_none());
        match self.tail.replace(Some(block)) {
            // SAFETY: as above.
            Some(last) => unsafe { last.local() }.next.set(Some(block)),
            None => self.head.set(Some(block)),
        }
    }

    #[inline]
    pub(crate) fn pop(&self) -> Option<&'static ControlBlock> {
        let block = self.head.get()?;
        // SAFETY: *home's own*, as in `push`.
        let next = unsafe { block.local() }.next.take();
        self.head.set(next);
        if next.is_none() {
            self.tail.set(None);
        }
        Some(block)
    }

    /// Removes `block` from any position. Returns whether it was on this list.
    pub(crate) fn remove(&self, block: &'static ControlBlock) -> bool {
        let mut before: Option<&'static ControlBlock> = None;
        let mut next = self.head.get();
        while let Some(here) = next {
            // SAFETY: *home's own*, as in `push`.
            let local = unsafe { here.local() };
            next = local.next.get();
            if ptr::eq(here, block) {
                local.next.set(None);
                match before {
                    // SAFETY: as above.
                    Some(before) => unsafe { before.local() }.next.set(next),
                    None => self.head.set(next),
                }
                if next.is_none() {
                    self.tail.set(before);
                }
                return true;
            }
            before = Some(here);
        }
        false
    }

    /// Moves all blocks of `other` to the end of this list.
    #[inline]
    pub(crate) fn append(&self, other: &RunQueue) {
        let Some(first) = other.head.take() else { return };
        let last = other.tail.take();
        match self.tail.replace(last) {
            // SAFETY: *home's own*, as in `push`.
            Some(before) => unsafe { before.local() }.next.set(Some(first)),
            None => self.head.set(Some(first)),
        }
    }
}
