//! *Edges are counted*: a descriptor is registered once, edge-triggered. Epoll reports each change
//! once, not a lasting condition, so no edge may be lost. A reader that finds nothing waits until
//! the count differs from the value noted before its system call, so an edge in between ends the
//! wait. A superfluous wake-up costs one call that would block.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{mem, ptr};

use parking_lot::Mutex;
use rustix::net::sockopt::Timeout;

use super::time_limit::TimeLimit;
use crate::context::{EdgeListener, LocalContext, Readiness};
use crate::coroutine::{CoroutineId, WaitReason};
use crate::sys::prefetch;

/// The edges that epoll has reported for one direction, and the coroutines that wait for the next.
/// One cache line: with thousands of sockets, each edge fetches it from memory.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Edges {
    count: AtomicU64,
    /// Whether a short read does not show that the stream is drained: the peer has closed one or
    /// both directions, so that the last edge may have been reported already; or the peer has sent
    /// urgent data, at which a read stops.
    short_reads_show_nothing: AtomicBool,
    waiters: Mutex<Waiters>,
}

/// The coroutines that wait for an edge, all of the descriptor's context. Usually there is one.
#[derive(Default)]
struct Waiters {
    first: Option<CoroutineId>,
    others: Vec<CoroutineId>,
}

const _: () = assert!(size_of::<Edges>() == 64);

impl Waiters {
    fn insert(&mut self, id: CoroutineId) {
        match self.first {
            None => self.first = Some(id),
            Some(first) if first == id || self.others.contains(&id) => {}
            Some(_) => self.others.push(id),
        }
    }

    fn remove(&mut self, id: CoroutineId) {
        if self.first == Some(id) {
            self.first = None;
        } else {
            self.others.retain(|other| *other != id);
        }
    }
}

/// The edges of both directions. Shared with the loop, which another thread's poll may run.
#[derive(Default)]
pub(super) struct BothEdges {
    pub(super) read: Edges,
    pub(super) write: Edges,
}

impl EdgeListener for BothEdges {
    fn report(&self, events: u32, woken: &mut Vec<CoroutineId>) {
        let readiness = Readiness::of(events);
        let is_urgent = events & libc::EPOLLPRI as u32 != 0;
        let closing = events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0;
        if readiness.readable || is_urgent {
            self.read.report(closing || is_urgent, woken);
        }
        if readiness.writable {
            self.write.report(false, woken);
        }
    }

    fn prefetch(&self) {
        // Most edges are of data to read.
        prefetch(ptr::from_ref(&self.read).cast(), size_of::<Edges>());
    }
}

impl Edges {
    fn report(&self, short_reads_show_nothing: bool, woken: &mut Vec<CoroutineId>) {
        if short_reads_show_nothing {
            // Relaxed: the store of the count, below, publishes the flag.
            self.short_reads_show_nothing.store(true, Ordering::Relaxed);
        }
        // Release pairs with the acquire in `count`. The table of watches is locked during a report,
        // so no other thread changes the count.
        self.count.store(self.count.load(Ordering::Relaxed) + 1, Ordering::Release);
        // A waiter compares the count under the lock: it sees this edge, or is woken by it. An edge
        // wakes all waiters.
        let mut waiters = self.waiters.lock();
        woken.extend(waiters.first.take());
        woken.append(&mut waiters.others);
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

    /// Waits for the next edge, unless there has been one since the direction was exhausted. A
    /// `limit` ends the wait with an error.
    ///
    /// # Control
    ///
    /// May yield.
    #[inline(always)]
    #[track_caller]
    pub(super) fn wait(&self, home: &LocalContext, reason: WaitReason, limit: Option<&TimeLimit>) -> io::Result<()> {
        /// Leaves the waiters when the coroutine unwinds.
        struct Waiter<'a> {
            edges: &'a Edges,
            id: CoroutineId,
        }
        impl Drop for Waiter<'_> {
            #[cold]
            fn drop(&mut self) {
                self.edges.waiters.lock().remove(self.id);
            }
        }
        let scheduler = &home.scheduler;
        let Some(block) = scheduler.running() else { would_block() };
        let waiter = Waiter { edges: self.edges, id: block.id() };
        let mut timer = None;
        let mut refused = false;
        loop {
            let mut waiters = self.edges.waiters.lock();
            // Under the lock: an edge after this comparison finds the waiter.
            if !self.is_exhausted() {
                waiters.remove(waiter.id);
                mem::forget(waiter);
                return Ok(());
            }
            let is_over = limit.is_some_and(|limit| limit.is_over(home));
            if refused || is_over || scheduler.is_cancelled(block) {
                waiters.remove(waiter.id);
                drop(waiters);
                mem::forget(waiter);
                // The commit point: no edge will wake this coroutine. Only now may a timeout be
                // marked as hit.
                let cancelled = scheduler.cut_short(block).into();
                return Err(limit.filter(|_| is_over).map_or(cancelled, TimeLimit::error));
            }
            waiters.insert(waiter.id);
            drop(waiters);
            if let (Some(limit), None) = (limit, &timer) {
                timer = Some(limit.arm(home, waiter.id));
            }
            refused = scheduler.try_suspend_for(reason).is_err();
        }
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

#[cold]
#[track_caller]
fn would_block() -> ! {
    panic!("would block outside a coroutine: spawn one, or use the `try_` variant")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use crate::net::CoFd;
    use crate::{AioContext, spawn};

    #[test]
    fn ended_wait_leaves_the_list_of_waiters() {
        // C9, S4: a wait that is cancelled, or unwound because the context ends, is forgotten
        let edges = AioContext::run(|ctx| {
            let (near, far) = UnixStream::pair().unwrap();
            let near = CoFd::new(near).unwrap();
            near.try_read(&mut [0]).unwrap_err();
            let edges = Arc::clone(&near.edges);
            let is_waited_for = || edges.read.waiters.lock().first.is_some();
            let waiting = spawn(move || (near.wait_readable().is_err(), near));
            ctx.poll(false);
            assert!(is_waited_for());
            waiting.cancel();
            let (is_cancelled, near) = waiting.join().unwrap();
            assert!(is_cancelled && !is_waited_for());
            drop(spawn(move || (near.wait_readable(), far)));
            ctx.poll(false);
            assert!(is_waited_for());
            edges
        });
        assert!(edges.read.waiters.lock().first.is_none());
    }
}
