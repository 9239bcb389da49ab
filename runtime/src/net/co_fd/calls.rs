//! System calls that suspend the coroutine where they would block.
//!
//! ```text
//!   read                            the loop
//!   ----                            --------
//!   known to be drained? wait
//!   note the number of edges
//!   the system call                 epoll reports an edge: increments the count, wakes the waiters
//!   "would block": drained as of the noted number
//! ```
//!
//! Writability is monitored only while a coroutine waits for it: a local socket would otherwise
//! report an edge for each read of its peer.

use std::io::{self, Read};
use std::sync::Arc;

use super::CoFd;
use super::edges::{Direction, Edges};
use super::time_limit::TimeLimit;
use crate::context::{Interest, LocalContext};
use crate::coroutine::{Cancelled, WaitReason};
use crate::scheduler::Scheduler;

impl<S> CoFd<S> {
    /// Waits until a read is worth trying: there may be data, end of file, or an error.
    ///
    /// Unlike [`wait_readable`](crate::wait_readable) this uses the edges reported so far: it
    /// returns immediately unless the last read would have blocked and no edge has come since. So a
    /// read that follows may still find nothing.
    ///
    /// # Errors
    ///
    /// [`Cancelled`], as an I/O error, if the coroutine was cancelled, a timeout around this call
    /// has expired, or the coroutine cannot be suspended because its stack unwinds. `TimedOut`: the
    /// socket's read timeout has expired. `NotConnected`: the `CoFd` was created in another
    /// context.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn wait_readable(&self) -> io::Result<()> {
        let reason = WaitReason::Readable(self.raw);
        self.wait(&self.reading(), reason)
    }

    /// Waits until a write is worth trying: there may be space, or an error.
    ///
    /// # Errors
    ///
    /// As [`wait_readable`](Self::wait_readable), with the socket's write timeout; and errors of
    /// the kernel.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn wait_writable(&self) -> io::Result<()> {
        /// Stops monitoring writability after the last waiter.
        struct Writer<'a, S>(&'a CoFd<S>);
        impl<S> Drop for Writer<'_, S> {
            fn drop(&mut self) {
                let left = self.0.writers.get() - 1;
                self.0.writers.set(left);
                if left == 0 {
                    // On failure, edges are reported that have no waiter.
                    let _ = self.0.watch.set_interest(Interest::Read);
                }
            }
        }
        let direction = self.writing();
        if !direction.is_exhausted() {
            self.let_others_run();
            return Ok(());
        }
        self.writers.set(self.writers.get() + 1);
        let _writer = Writer(self);
        if self.writers.get() == 1 {
            // If there is space by now, this causes an edge.
            self.watch.set_interest(Interest::ReadWrite)?;
        }
        self.wait(&direction, WaitReason::Writable(self.raw))
    }

    /// Reads once, without waiting, for callers that allocate a buffer only when there is data: see
    /// [`wait_readable`](Self::wait_readable).
    ///
    /// # Errors
    ///
    /// The descriptor's own; `WouldBlock` if there is no data.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize>
    where
        for<'a> &'a S: Read,
    {
        let wanted = buf.len();
        self.reading().attempt(|| (&self.inner).read(buf), |&done, edges| self.has_drained(done, wanted, edges))
    }

    /// Calls `read`, waiting and calling it again for as long as it would block. For operations
    /// that [`Read`] lacks, such as a listener's `accept`.
    ///
    /// # Errors
    ///
    /// The errors of `read`, except `WouldBlock`; and as [`wait_readable`](Self::wait_readable).
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn read_with<R>(&self, mut read: impl FnMut(&S) -> io::Result<R>) -> io::Result<R> {
        self.time_limits.share();
        self.read_calling(&mut read)
    }

    /// As [`read_with`](Self::read_with), for a `read` that leaves the timeouts as they are and
    /// creates no handle to the socket.
    #[track_caller]
    pub(in crate::net) fn read_calling<R>(&self, mut read: impl FnMut(&S) -> io::Result<R>) -> io::Result<R> {
        self.read_until(&mut read, |_, _| false)
    }

    /// Calls `write`, waiting for space and calling it again for as long as it would block. For
    /// operations that [`Write`](io::Write) lacks, such as `sendmsg`. Unlike
    /// [`read_with`](Self::read_with), which waits for data, this waits until the descriptor is
    /// writable.
    ///
    /// ```
    /// use coralio::spawn;
    /// use coralio::net::CoFd;
    /// use std::net::UdpSocket;
    ///
    /// coralio::run(|| {
    ///     let receiver = UdpSocket::bind("127.0.0.1:0")?;
    ///     let to = receiver.local_addr()?;
    ///     let sender = CoFd::new(UdpSocket::bind("127.0.0.1:0")?)?;
    ///     let sent = spawn(move || sender.write_with(|socket| socket.send_to(b"hello", to)));
    ///     assert_eq!(sent.join().unwrap()?, 5);
    ///     assert_eq!(receiver.recv(&mut [0; 16])?, 5);
    ///     Ok::<_, std::io::Error>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of `write`, except `WouldBlock`; and as [`wait_writable`](Self::wait_writable).
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn write_with<R>(&self, mut write: impl FnMut(&S) -> io::Result<R>) -> io::Result<R> {
        self.time_limits.share();
        self.write_calling(&mut write)
    }

    /// As [`write_with`](Self::write_with), for a `write` that leaves the timeouts as they are and
    /// creates no handle to the socket.
    #[track_caller]
    pub(in crate::net) fn write_calling<R>(&self, mut write: impl FnMut(&S) -> io::Result<R>) -> io::Result<R> {
        self.write_until(&mut write, |_, _| false)
    }

    #[track_caller]
    fn wait(&self, direction: &Direction<'_>, reason: WaitReason) -> io::Result<()> {
        if !direction.is_exhausted() {
            self.let_others_run();
            return Ok(());
        }
        self.unsuspended.set(0);
        let home = LocalContext::expect("waiting for a descriptor");
        if !Arc::ptr_eq(&home.context.shared, &self.watch.0.shared) {
            let why = "the descriptor belongs to another context; take it out with `into_inner` and create a CoFd from \
                 it here";
            return Err(io::Error::new(io::ErrorKind::NotConnected, why));
        }
        if home.scheduler.running().is_some() && !home.scheduler.can_suspend() {
            return Err(Cancelled.into());
        }
        let limit = match self.socket_type {
            Some(_) => self.time_limits.limit(self.raw, direction.option, home)?,
            None => None,
        };
        match limit {
            None => direction.wait(home, reason, None),
            Some(limit) => wait_until(direction, home, reason, &limit),
        }
    }

    /// Yields after many operations without a suspension, so that a fast peer does not keep the
    /// context busy with itself.
    fn let_others_run(&self) {
        const OPERATIONS: u32 = 64;
        let unsuspended = self.unsuspended.get() + 1;
        self.unsuspended.set(unsuspended % OPERATIONS);
        if unsuspended < OPERATIONS {
            return;
        }
        if let Some(scheduler) = Scheduler::current().filter(|scheduler| scheduler.can_suspend()) {
            scheduler.reschedule();
        }
    }

    #[track_caller]
    fn read_until<R>(
        &self,
        read: &mut impl FnMut(&S) -> io::Result<R>,
        drains: impl Fn(&R, &Edges) -> bool,
    ) -> io::Result<R> {
        loop {
            self.wait_readable()?;
            match self.reading().attempt(|| read(&self.inner), &drains) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Returns whether a read has drained the stream: it returned fewer bytes than requested, so
    /// later data causes an edge. In a Unix socket, a read also stops behind a message with
    /// descriptors.
    fn has_drained(&self, done: usize, wanted: usize, edges: &Edges) -> bool {
        self.short_reads_drain.get() && 0 < done && done < wanted && !edges.short_reads_show_nothing()
    }

    #[track_caller]
    pub(super) fn read_some(&self, wanted: usize, mut read: impl FnMut(&S) -> io::Result<usize>) -> io::Result<usize> {
        self.read_until(&mut read, |&done, edges| self.has_drained(done, wanted, edges))
    }

    #[track_caller]
    fn write_until<R>(
        &self,
        write: &mut impl FnMut(&S) -> io::Result<R>,
        fills: impl Fn(&R, &Edges) -> bool,
    ) -> io::Result<R> {
        loop {
            self.wait_writable()?;
            match self.writing().attempt(|| write(&self.inner), &fills) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    #[track_caller]
    pub(super) fn write_some(
        &self,
        wanted: usize,
        mut write: impl FnMut(&S) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.write_until(&mut write, |&done, _| self.is_stream() && done < wanted)
    }
}

/// Waits for an edge, or the end of a time limit.
///
/// # Control
///
/// May yield.
// Out of line: usually there is no limit, and the wait is compiled into its caller.
#[cold]
#[track_caller]
fn wait_until(direction: &Direction<'_>, home: &LocalContext, reason: WaitReason, limit: &TimeLimit) -> io::Result<()> {
    direction.wait(home, reason, Some(limit))
}
