//! *Edges are counted*: a descriptor is registered once, edge-triggered. Epoll reports each change
//! once, not a lasting condition, so no edge may be lost. A reader that finds nothing waits until
//! the count differs from the value noted before its system call, so an edge in between ends the
//! wait. A superfluous wake-up costs one call that would block.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::net::sockopt::Timeout;

use crate::context::Readiness;
use crate::sync::wait_queue::WaitQueue;

/// The edges that epoll has reported for one direction, and the coroutines that wait for the next.
#[derive(Default)]
pub(super) struct Edges {
    pub(super) waiters: WaitQueue,
    count: AtomicU64,
    /// Whether a short read does not show that the stream is drained: the peer has closed one or
    /// both directions, so that the last edge may have been reported already; or the peer has sent
    /// urgent data, at which a read stops.
    short_reads_show_nothing: AtomicBool,
}

/// The edges of both directions. Shared with the handler, which another thread's poll may call.
#[derive(Default)]
pub(super) struct BothEdges {
    pub(super) read: Edges,
    pub(super) write: Edges,
}

impl BothEdges {
    pub(super) fn report(&self, events: u32) {
        let readiness = Readiness::of(events);
        let is_urgent = events & libc::EPOLLPRI as u32 != 0;
        let closing = events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0;
        if readiness.readable || is_urgent {
            self.read.report(closing || is_urgent);
        }
        if readiness.writable {
            self.write.report(false);
        }
    }
}

impl Edges {
    fn report(&self, short_reads_show_nothing: bool) {
        if short_reads_show_nothing {
            // Relaxed: the store of the count, below, publishes the flag.
            self.short_reads_show_nothing.store(true, Ordering::Relaxed);
        }
        // Release pairs with the acquire in `count`. The context's lock is held during a report, so
        // no other thread changes the count.
        self.count.store(self.count.load(Ordering::Relaxed) + 1, Ordering::Release);
        // A waiter compares the count under the queue's lock: it sees this edge, or is woken here.
        self.waiters.grant_all(self.waiters.lock(), |queue| queue.grant_first());
    }

    /// Returns the number of edges so far.
    pub(super) fn count(&self) -> u64 {
        // Acquire pairs with the release in `report`.
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn short_reads_show_nothing(&self) -> bool {
        // Relaxed: if a later edge sets the flag, the count differs from the one noted by the
        // reader.
        self.short_reads_show_nothing.load(Ordering::Relaxed)
    }
}

/// One direction, as seen by the coroutines.
pub(super) struct Direction<'a> {
    pub(super) edges: &'a Edges,
    pub(super) exhausted_at: &'a Cell<u64>,
    /// The socket option that limits the waits of this direction.
    pub(super) option: Timeout,
}

/// Not equal to any number of edges.
pub(super) const NOT_KNOWN: u64 = u64::MAX;

impl Direction<'_> {
    pub(super) fn is_exhausted(&self) -> bool {
        self.edges.count() == self.exhausted_at.get()
    }

    /// Makes the call, and records if it exhausts the direction until the next edge.
    pub(super) fn attempt<R>(
        &self,
        call: impl FnOnce() -> io::Result<R>,
        exhausts: impl Fn(&R, &Edges) -> bool,
    ) -> io::Result<R> {
        // Before the call: *edges are counted*.
        let before = self.edges.count();
        let result = call();
        let is_exhausted = match &result {
            Ok(done) => exhausts(done, self.edges),
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        if is_exhausted {
            self.exhausted_at.set(before);
        }
        result
    }
}
