//! The identity of a coroutine: a control block and the coroutine's generation.

use std::ptr;

use crate::coroutine::ControlBlock;
use crate::sys::opaque_debug;
use crate::trace;

/// A coroutine as plain data, usable on any thread: an I/O engine stores it with a request. Its
/// context acts on it: [`HomeRef`](crate::HomeRef) and
/// [`AioContext::schedule`](crate::AioContext::schedule).
// Only the home thread may use more of the block than `is_live`.
#[derive(Clone, Copy)]
pub struct CoroutineId {
    pub(crate) block: &'static ControlBlock,
    pub(crate) generation: u64,
}

impl CoroutineId {
    /// Returns whether the coroutine has not ended, or has ended with a result that was not fetched
    /// yet.
    #[inline]
    pub(crate) fn is_live(self) -> bool {
        self.block.word.generation() == self.generation
    }

    /// Returns whether the coroutine belongs to this context and has not ended.
    #[inline]
    pub(crate) fn lives_in(self, context: usize) -> bool {
        self.block.context() == context && self.is_live()
    }

    /// Returns a number that no other coroutine has at the same time. A coroutine created later may
    /// have it.
    #[inline]
    pub fn number(self) -> usize {
        ptr::from_ref(self.block).addr()
    }

    /// Returns the identity as the event log stores it.
    pub(crate) fn traced(self) -> trace::Id {
        (self.number() as u64, self.generation)
    }
}

impl PartialEq for CoroutineId {
    fn eq(&self, other: &CoroutineId) -> bool {
        ptr::eq(self.block, other.block) && self.generation == other.generation
    }
}

impl Eq for CoroutineId {}

opaque_debug!(CoroutineId);
