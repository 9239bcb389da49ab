//! The owner of a lock, for messages.

#![allow(unsafe_code)]

use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::coroutine::{ControlBlock, CoroutineId};

/// The owner of a lock, and where the lock was taken. For messages, and to detect a coroutine that
/// would wait for itself. Relaxed: a coroutine sees its own writes, and nothing depends on seeing
/// the writes of others.
#[derive(Default)]
pub(crate) struct LockOwner {
    block: AtomicPtr<ControlBlock>,
    /// Needed because a block serves one coroutine after another.
    generation: AtomicU64,
    at: AtomicPtr<Location<'static>>,
}

impl LockOwner {
    pub(crate) const fn new() -> LockOwner {
        LockOwner {
            block: AtomicPtr::new(ptr::null_mut()),
            generation: AtomicU64::new(0),
            at: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Records that `block`, or a thread, took the lock at `at`.
    #[inline]
    pub(crate) fn set(&self, block: Option<&'static ControlBlock>, at: &'static Location<'static>) {
        if let Some(block) = block {
            self.block.store(ptr::from_ref(block).cast_mut(), Ordering::Relaxed);
            self.generation.store(block.word.generation(), Ordering::Relaxed);
        }
        self.at.store(ptr::from_ref(at).cast_mut(), Ordering::Relaxed);
    }

    /// Clears the record; called just before the lock is released.
    #[inline]
    pub(crate) fn clear(&self) {
        self.block.store(ptr::null_mut(), Ordering::Relaxed);
        self.at.store(ptr::null_mut(), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Option<OwnerSnapshot> {
        // SAFETY: both pointers come from &'static references, and control blocks are type-stable.
        unsafe {
            let at = self.at.load(Ordering::Relaxed).as_ref()?;
            let generation = self.generation.load(Ordering::Relaxed);
            let block = self.block.load(Ordering::Relaxed).as_ref();
            Some(OwnerSnapshot { holder: block.map(|block| CoroutineId { block, generation }), at })
        }
    }
}

/// An owner as it was when the record was read.
pub(crate) struct OwnerSnapshot {
    /// `None`: taken on a thread's own stack, in the loop, or for an owned guard.
    pub(crate) holder: Option<CoroutineId>,
    pub(crate) at: &'static Location<'static>,
}
