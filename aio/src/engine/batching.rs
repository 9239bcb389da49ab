//! Whether a request is likely to share a submit with others.
//!
//! A request waits for the end of the loop's iteration, so that one submit serves all coroutines that
//! run in that iteration. To a coroutine that reads alone, the wait would only add the cost of an
//! iteration: a quarter of a request's CPU time on a fast device. Nothing announces that other requests
//! will follow: a coroutine that is about to run, or to be spawned, may make one or not. So the next
//! batch is expected to be like the last ones.
//!
//! Several coroutines that make one request each in the same iteration would never form a batch if each
//! submitted its own, and so would never be seen to share one. So only a single coroutine's batches count.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use coralio_runtime::{CoroutineId, HomeRef};

/// Number of consecutive batches of one request after which the next is expected to be such a batch.
const LONE_BATCHES: u32 = 8;

/// The recent batches. Accessed under the context's lock.
#[derive(Default)]
pub(super) struct Batching {
    /// Number of consecutive batches of one request, all of `coroutine`.
    lone: AtomicU32,
    /// The number of the coroutine that made the last request that was the first of its batch.
    coroutine: AtomicUsize,
}

impl Batching {
    /// Returns whether the next batch, which the running coroutine has begun, is likely to be of one
    /// request.
    #[inline]
    pub(super) fn expects_lone(&self, here: HomeRef<'_>) -> bool {
        let coroutine = here.current().map_or(0, CoroutineId::number);
        if self.coroutine.load(Relaxed) != coroutine {
            self.coroutine.store(coroutine, Relaxed);
            self.lone.store(0, Relaxed);
        }
        self.lone.load(Relaxed) >= LONE_BATCHES
    }

    /// Records the number of requests in a batch.
    #[inline]
    pub(super) fn submitted(&self, count: usize) {
        self.lone.store(if count == 1 { self.lone.load(Relaxed).saturating_add(1) } else { 0 }, Relaxed);
    }
}
