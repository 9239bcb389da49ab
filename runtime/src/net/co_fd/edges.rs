//! *Edges are counted*: a descriptor is registered once, edge-triggered: epoll reports a change, not a
//! lasting condition, so no edge may be lost. A reader that finds nothing waits until the count
//! differs from the value noted before its system call, so an edge in between ends the wait. A
//! superfluous wake-up costs one call that would block.

use std::cell::Cell;
use std::io;

use rustix::net::sockopt::Timeout;

use crate::context::Readiness;
use crate::sync::wait_queue::WaitQueue;

/// The edges that epoll has reported for one direction.
#[derive(Default)]
pub(super) struct EdgeCount {
    pub(super) count: u64,
    /// A short read does not show that the stream is drained: the peer has closed one or both
    /// directions, so that the last edge may have come already; or it has sent urgent data, at which
    /// a read stops.
    pub(super) short_reads_show_nothing: bool,
}

/// The waiters, and the edges they wait for. Shared with the handler, which another thread's poll
/// may call.
pub(super) struct Waiters {
    pub(super) read: WaitQueue<(), EdgeCount>,
    pub(super) write: WaitQueue<(), EdgeCount>,
}

impl Waiters {
    pub(super) fn report(&self, events: u32) {
        let readiness = Readiness::of(events);
        let is_urgent = events & libc::EPOLLPRI as u32 != 0;
        let closing = events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0;
        for (queue, ready) in [(&self.read, readiness.readable || is_urgent), (&self.write, readiness.writable)] {
            if ready {
                let mut locked = queue.lock();
                let edges = locked.state();
                edges.count += 1;
                edges.short_reads_show_nothing |= closing || is_urgent;
                queue.grant_all(locked, |queue| queue.grant_first());
            }
        }
    }
}

/// One direction, as seen by the coroutines.
pub(super) struct Direction<'a> {
    pub(super) queue: &'a WaitQueue<(), EdgeCount>,
    pub(super) exhausted_at: &'a Cell<u64>,
    /// The socket option that limits its waits.
    pub(super) option: Timeout,
}

/// Not equal to any number of edges.
pub(super) const NOT_KNOWN: u64 = u64::MAX;

impl Direction<'_> {
    pub(super) fn is_exhausted(&self) -> bool {
        self.edges() == self.exhausted_at.get()
    }

    /// Returns the number of edges so far.
    pub(super) fn edges(&self) -> u64 {
        self.queue.lock().state().count
    }

    /// Makes the call, and records if it exhausts the direction until the next edge.
    pub(super) fn attempt<R>(
        &self,
        call: impl FnOnce() -> io::Result<R>,
        exhausts: impl Fn(&R, &EdgeCount) -> bool,
    ) -> io::Result<R> {
        // Before the call: *edges are counted*.
        let before = self.edges();
        let result = call();
        let is_exhausted = match &result {
            Ok(done) => exhausts(done, self.queue.lock().state()),
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        if is_exhausted {
            self.exhausted_at.set(before);
        }
        result
    }
}
