//! Completions: a queue that pool threads fill and the engine reads, and the sleep state of its
//! reader.
//!
//! The reader needs no signal unless it sleeps. It announces a sleep under the queue's lock, and
//! then checks the queue once more. A thread adds its completion under the same lock: either the
//! reader's check finds it, or the thread finds the announcement, takes it back, and signals.
//!
//! `tests/loom_completions.rs` model-checks this source file, with loom's atomics and mutex.

use std::collections::VecDeque;

use super::atomic::{AtomicU32, Mutex, Ordering};

pub(crate) struct Completions {
    queue: Mutex<Queue>,
    /// The queue's length, so that a look at an empty queue needs no lock.
    len: AtomicU32,
}

struct Queue {
    /// Keys and results.
    completions: VecDeque<(u64, i64)>,
    /// The reader sleeps or is about to, and no thread has signalled it.
    is_asleep: bool,
}

impl Completions {
    /// Creates a queue for up to `depth` requests in flight: adding a completion does not allocate.
    pub(crate) fn new(depth: u32) -> Completions {
        let queue = Queue { completions: VecDeque::with_capacity(depth as usize), is_asleep: false };
        Completions { queue: Mutex::new(queue), len: AtomicU32::new(0) }
    }

    /// Adds the completion of the request with this key. Called by a pool thread. Returns whether
    /// the caller must signal the reader.
    pub(crate) fn push(&self, key: u64, result: i64) -> bool {
        let mut queue = self.queue.lock();
        queue.completions.push_back((key, result));
        // Relaxed, as in `peek`: completions are handed over by the lock. A loop that sleeps
        // elsewhere is woken by the context's own protocol, which has the fences.
        self.len.store(queue.completions.len() as u32, Ordering::Relaxed);
        std::mem::take(&mut queue.is_asleep)
    }

    /// Returns key and result of the first completion. Called by the reader.
    #[inline]
    pub(crate) fn peek(&self) -> Option<(u64, i64)> {
        if self.len.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.queue.lock().completions.front().copied()
    }

    /// Removes the completion peeked last. Called by the reader.
    pub(crate) fn commit(&self) {
        let mut queue = self.queue.lock();
        queue.completions.pop_front();
        self.len.store(queue.completions.len() as u32, Ordering::Relaxed);
    }

    /// Whether there is no completion.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().completions.is_empty()
    }

    /// Announces that the reader is about to sleep. The reader must check the queue once more after
    /// this. Returns false if another thread already sleeps here.
    pub(crate) fn going_to_sleep(&self) -> bool {
        !std::mem::replace(&mut self.queue.lock().is_asleep, true)
    }

    /// Ends the announcement, after the reader slept or decided not to.
    pub(crate) fn awake(&self) {
        self.queue.lock().is_asleep = false;
    }

    /// Whether the reader has announced that it sleeps.
    #[cfg(test)]
    pub(crate) fn is_asleep(&self) -> bool {
        self.queue.lock().is_asleep
    }
}
