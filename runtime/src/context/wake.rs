//! What comes to a context from other threads and contexts: coroutines to wake (rule W1), and work to begin (rule X10).
//!
//! A lock and a vector, taken over whole by the loop: the two vectors change places, so nothing is allocated in the
//! steady state. The flag spares the loop the lock while nobody brings anything. This file is what `tests/loom_notify.rs`
//! checks, together with `notify.rs`: the same source, on loom's atomics.

use crate::atomic::{AtomicBool, Mutex, Ordering};
use crate::coroutine::control::CoroutineId;

/// What comes.
pub(crate) enum Arrival {
    /// A coroutine of this context is to run.
    Wake(CoroutineId),
    /// This is to be called at home. It makes a coroutine.
    Begin(Box<dyn FnOnce() + Send>),
}

pub(crate) struct Arrivals {
    list: Mutex<List>,
    pending: AtomicBool,
}

struct List {
    arrivals: Vec<Arrival>,
    /// The context has ended: nothing is put on any more.
    closed: bool,
}

impl Arrivals {
    pub(crate) fn new() -> Arrivals {
        let list = List { arrivals: Vec::new(), closed: false };
        Arrivals { list: Mutex::new(list), pending: AtomicBool::new(false) }
    }

    /// Puts one on, or hands it back because the context has ended. The caller then notifies the loop.
    pub(crate) fn push(&self, arrival: Arrival) -> Result<(), Arrival> {
        let mut list = self.list.lock();
        if list.closed {
            return Err(arrival);
        }
        list.arrivals.push(arrival);
        // Relaxed: the fences of `SleepState` order it before the loop's last look; an earlier look may miss it.
        self.pending.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether there may be something. A look at memory.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Moves all of them into `into`, which is empty.
    pub(crate) fn take_all(&self, into: &mut Vec<Arrival>) {
        debug_assert!(into.is_empty());
        let mut list = self.list.lock();
        std::mem::swap(&mut list.arrivals, into);
        self.pending.store(false, Ordering::Relaxed);
    }

    /// Makes the loop's next round look, nested or not: what was taken over before has not all been looked at. Home thread.
    pub(crate) fn keep_pending(&self) {
        self.pending.store(true, Ordering::Relaxed);
    }

    /// Takes no more, and hands out what is left, to be dropped.
    pub(crate) fn close(&self) -> Vec<Arrival> {
        let mut list = self.list.lock();
        list.closed = true;
        std::mem::take(&mut list.arrivals)
    }
}
