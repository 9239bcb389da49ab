//! Work that arrives from other threads and contexts: coroutines to wake (rule W1), and coroutines
//! to create (rule X10).
//!
//! A lock and a vector, which the loop takes as a whole: it swaps two vectors, so the steady state
//! allocates nothing. The flag saves the loop from taking the lock while nothing has arrived.
//! `tests/loom_notify.rs` checks this file together with `notify.rs`: the same source, on loom's
//! atomics.

use crate::atomic::{AtomicBool, Mutex, Ordering};
use crate::coroutine::CoroutineId;

/// An item of work.
pub(crate) enum RemoteEvent {
    /// Schedules a coroutine of this context.
    Wake(CoroutineId),
    /// Calls this on the home thread, to create a coroutine.
    Run(Box<dyn FnOnce() + Send>),
}

pub(crate) struct RemoteQueue {
    list: Mutex<List>,
    pending: AtomicBool,
}

struct List {
    events: Vec<RemoteEvent>,
    /// The context has ended: nothing is accepted any more.
    closed: bool,
}

impl RemoteQueue {
    pub(crate) fn new() -> RemoteQueue {
        let list = List { events: Vec::new(), closed: false };
        RemoteQueue { list: Mutex::new(list), pending: AtomicBool::new(false) }
    }

    /// Adds an item, or returns it because the context has ended. The caller must then notify the
    /// loop.
    pub(crate) fn push(&self, event: RemoteEvent) -> Result<(), RemoteEvent> {
        let mut list = self.list.lock();
        if list.closed {
            return Err(event);
        }
        list.events.push(event);
        // Relaxed: the fences of `NotifyState` order the store before the loop's last check; an
        // earlier check may miss the item.
        self.pending.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Returns whether there may be an item. Reads memory only.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Moves all items into `into`, which must be empty.
    pub(crate) fn take_all(&self, into: &mut Vec<RemoteEvent>) {
        debug_assert!(into.is_empty());
        let mut list = self.list.lock();
        std::mem::swap(&mut list.events, into);
        self.pending.store(false, Ordering::Relaxed);
    }

    /// Makes the loop's next iteration, nested or not, check again, since some of the items taken
    /// are not processed yet. Home thread only.
    pub(crate) fn keep_pending(&self) {
        self.pending.store(true, Ordering::Relaxed);
    }

    /// Rejects further items, and returns the remaining ones, to be dropped.
    pub(crate) fn close(&self) -> Vec<RemoteEvent> {
        let mut list = self.list.lock();
        list.closed = true;
        std::mem::take(&mut list.events)
    }
}
