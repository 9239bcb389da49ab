//! The list of coroutines that other threads and contexts woke (rule W1).
//!
//! A lock and a vector, taken over whole by the loop: the two vectors change places, so nothing is allocated in the
//! steady state. The flag spares the loop the lock while nobody wakes anyone.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::coroutine::control::CoroutineId;

#[derive(Default)]
pub(crate) struct WakeList {
    list: Mutex<Vec<CoroutineId>>,
    pending: AtomicBool,
}

impl WakeList {
    /// Puts one on. The caller then notifies the loop.
    pub(crate) fn push(&self, id: CoroutineId) {
        let mut list = self.list.lock();
        list.push(id);
        // Relaxed: the fences of `SleepState` order it before the loop's last look; an earlier look may miss it.
        self.pending.store(true, Ordering::Relaxed);
    }

    /// Whether there may be something. A look at memory.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Moves all of them into `into`, which is empty.
    pub(crate) fn take_all(&self, into: &mut Vec<CoroutineId>) {
        debug_assert!(into.is_empty());
        let mut list = self.list.lock();
        std::mem::swap(&mut *list, into);
        self.pending.store(false, Ordering::Relaxed);
    }
}
