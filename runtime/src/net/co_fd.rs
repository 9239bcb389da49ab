//! Sockets and pipes with blocking semantics that suspend the coroutine instead of the thread.
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
//! The counting is in `edges.rs`, timeouts of sockets in `time_limit.rs`.
//!
//! Writability is monitored only while a coroutine waits for it: a local socket would otherwise
//! report an edge for each read of its peer.

use std::cell::Cell;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use rustix::net::sockopt::{Timeout, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::context::{FdHandler, Interest, LocalContext};
use crate::coroutine::{Cancelled, WaitReason};
use crate::scheduler::Scheduler;
use crate::sys::set_nonblocking;

mod edges;
mod stream;
mod time_limit;
mod transfer;

use edges::{BothEdges, Direction, Edges, NOT_KNOWN};
use time_limit::{TimeLimit, TimeLimits};
pub use transfer::splice;

/// A socket or pipe of this thread's context. [`Read`] and [`Write`](io::Write) suspend the
/// coroutine where the descriptor would block the thread.
///
/// The descriptor is registered with the loop once, not for each wait. Several coroutines may use
/// it at the same time, as `&CoFd`: for example a reader and a writer.
///
/// ```
/// use coralio::spawn;
/// use coralio::net::CoFd;
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// coralio::run(|| {
///     let (near, far) = UnixStream::pair().unwrap();
///     let echo = spawn(move || {
///         let far = CoFd::new(far)?;
///         std::io::copy(&mut &far, &mut &far) // until end of file
///     });
///     let client = spawn(move || {
///         let near = CoFd::new(near)?;
///         let mut answer = [0; 5];
///         (&near).write_all(b"hello")?;
///         (&near).read_exact(&mut answer)?;
///         Ok::<_, std::io::Error>(answer)
///     });
///     assert_eq!(&client.join().unwrap().unwrap(), b"hello");
///     assert_eq!(echo.join().unwrap().unwrap(), 5);
/// });
/// ```
///
/// The types of `std::net` and `std::os::unix::net` in a `CoFd` have their own names and methods:
/// [`TcpStream`](crate::net::TcpStream) and those beside it.
///
/// A read or write timeout of the socket (`SO_RCVTIMEO`, `SO_SNDTIMEO`) limits each wait, whenever
/// and by whichever handle it was set: the operation then fails with `TimedOut`. This costs a
/// system call per wait if other handles to the socket may exist: after [`new`](CoFd::new),
/// [`get_ref`](CoFd::get_ref), `as_fd`, `try_clone`, [`read_with`](CoFd::read_with) and
/// [`write_with`](CoFd::write_with), all of which give access to the socket. Without such a call,
/// it costs no system call for sockets created by `connect`, `bind`, `accept` or
/// [`from_sole_handle`](CoFd::from_sole_handle).
///
/// A coroutine whose descriptor is always ready does not wait, but lets other coroutines run after
/// every 64 operations.
pub struct CoFd<S> {
    /// Before `inner`: the watch ends before the descriptor is closed.
    watch: FdHandler,
    edges: Arc<BothEdges>,
    /// The number of edges at which there was nothing to read (`read_exhausted_at`), and no space
    /// to write (`write_exhausted_at`).
    read_exhausted_at: Cell<u64>,
    write_exhausted_at: Cell<u64>,
    /// Number of coroutines waiting to write.
    writers: Cell<u32>,
    /// The descriptor's number, for descriptions of waits.
    raw: i32,
    /// `None`: not a socket. In a stream socket, a short write means that there is no more space.
    socket_type: Option<SocketType>,
    /// A short read means that there is no more data: in a TCP socket, and in a Unix socket if the
    /// peer [sends bytes only](Self::assume_bytes_only).
    short_reads_drain: Cell<bool>,
    /// Operations since the last suspension, see [`let_others_run`](Self::let_others_run).
    unsuspended: Cell<u32>,
    time_limits: TimeLimits,
    inner: S,
    /// Only coroutines of its context's home thread can wait for it.
    _home: PhantomData<*const ()>,
}

impl<S: AsFd> CoFd<S> {
    /// Takes a socket or pipe, and makes it non-blocking. This affects everything that shares the
    /// open file, duplicates included. A connection can be accepted in one context and served in
    /// another one, whose thread makes the `CoFd`.
    ///
    /// # Errors
    ///
    /// `PermissionDenied`: epoll does not support the descriptor, for example a regular file.
    /// `AlreadyExists`: the loop watches the descriptor already. Other errors of the kernel.
    ///
    /// # Panics
    ///
    /// Outside a context.
    #[doc(alias("from_std", "from_fd"))]
    #[track_caller]
    pub fn new(inner: S) -> io::Result<CoFd<S>> {
        let socket = CoFd::from_sole_handle(inner)?;
        socket.time_limits.share();
        Ok(socket)
    }

    /// As [`new`](Self::new), for a socket to which no other handle exists, such as one that
    /// another context has accepted and handed over by [`into_inner`](Self::into_inner). This saves
    /// a system call per wait, but a timeout that another handle sets later is not noticed.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use coralio::net::CoFd;
    /// use std::io::Read;
    /// use std::net::{TcpListener, TcpStream};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let client = TcpStream::connect(listener.local_addr()?)?;
    /// let (accepted, _address) = listener.accept()?;
    /// drop(client);
    /// let end = AioContext::run(|ctx| {
    ///     let serve = move || CoFd::from_sole_handle(accepted)?.read(&mut [0; 16]);
    ///     ctx.spawn(serve).join().unwrap()
    /// })?;
    /// assert_eq!(end, 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    ///
    /// # Panics
    ///
    /// Outside a context.
    #[track_caller]
    pub fn from_sole_handle(inner: S) -> io::Result<CoFd<S>> {
        let _ = LocalContext::expect("creating a CoFd");
        set_nonblocking(inner.as_fd())?;
        let socket_type = socket_type(inner.as_fd()).ok();
        CoFd::register(inner, socket_type)
    }

    /// Declares that the peer of this Unix stream socket sends bytes only: no descriptors, nor, if the
    /// socket has `SO_PASSCRED`, data of several processes. A read that returns less than its buffer
    /// holds then shows that the socket is drained, as it does for TCP, which saves a system call per
    /// wait. No effect on other descriptors.
    ///
    /// If the peer sends a descriptor after all, a later read may wait until the peer has sent more
    /// data, although there is some.
    ///
    /// ```
    /// use coralio::net::UnixStream;
    /// use coralio::spawn;
    /// use std::io::{Read, Write};
    ///
    /// coralio::run(|| {
    ///     let (mut near, mut far) = UnixStream::pair()?;
    ///     far.assume_bytes_only();
    ///     let reader = spawn(move || far.read(&mut [0; 4096]));
    ///     near.write_all(b"hello")?;
    ///     assert_eq!(reader.join().unwrap()?, 5);
    ///     Ok::<_, std::io::Error>(())
    /// })
    /// # .unwrap();
    /// ```
    pub fn assume_bytes_only(&self) {
        let is_unix = || matches!(socket_domain(self.inner.as_fd()), Ok(AddressFamily::UNIX));
        if self.is_stream() && is_unix() {
            self.short_reads_drain.set(true);
        }
    }

    /// As `from_sole_handle`, for a descriptor of this type that is non-blocking already.
    #[track_caller]
    pub(super) fn register(inner: S, socket_type: Option<SocketType>) -> io::Result<CoFd<S>> {
        let home = LocalContext::expect("creating a CoFd");
        let fd = inner.as_fd();
        let is_tcp = socket_type == Some(SocketType::STREAM)
            && matches!(socket_domain(fd), Ok(AddressFamily::INET | AddressFamily::INET6));
        let edges = Arc::<BothEdges>::default();
        let watch = home.context.watch_edges(fd.as_raw_fd(), Interest::Read, edges.clone())?;
        Ok(CoFd {
            watch,
            edges,
            read_exhausted_at: Cell::new(NOT_KNOWN),
            write_exhausted_at: Cell::new(NOT_KNOWN),
            writers: Cell::new(0),
            raw: fd.as_raw_fd(),
            socket_type,
            short_reads_drain: Cell::new(is_tcp),
            unsuspended: Cell::new(0),
            time_limits: TimeLimits::new(true),
            inner,
            _home: PhantomData,
        })
    }
}

impl<S> CoFd<S> {
    /// Returns the socket or pipe itself. It is non-blocking.
    pub fn get_ref(&self) -> &S {
        // The caller can set a timeout, or create a duplicate that can, at any time.
        self.time_limits.share();
        &self.inner
    }

    /// Returns the socket or pipe, unregistered from the loop. It stays non-blocking.
    #[doc(alias = "into_std")]
    pub fn into_inner(self) -> S {
        let CoFd { watch, inner, .. } = self;
        drop(watch);
        inner
    }

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
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
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
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
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
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
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
    pub(super) fn read_calling<R>(&self, mut read: impl FnMut(&S) -> io::Result<R>) -> io::Result<R> {
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
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
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
    pub(super) fn write_calling<R>(&self, mut write: impl FnMut(&S) -> io::Result<R>) -> io::Result<R> {
        self.write_until(&mut write, |_, _| false)
    }

    fn reading(&self) -> Direction<'_> {
        let (edges, exhausted_at) = (&self.edges.read, &self.read_exhausted_at);
        Direction { edges, exhausted_at, option: Timeout::Recv }
    }

    fn writing(&self) -> Direction<'_> {
        let (edges, exhausted_at) = (&self.edges.write, &self.write_exhausted_at);
        Direction { edges, exhausted_at, option: Timeout::Send }
    }

    /// Returns the socket or pipe, for calls that leave the timeouts as they are and create no
    /// handle to the socket.
    pub(super) fn inner(&self) -> &S {
        &self.inner
    }

    pub(super) fn time_limits(&self) -> &TimeLimits {
        &self.time_limits
    }

    pub(super) fn socket_type(&self) -> Option<SocketType> {
        self.socket_type
    }

    fn is_stream(&self) -> bool {
        self.socket_type == Some(SocketType::STREAM)
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
    fn read_some(&self, wanted: usize, mut read: impl FnMut(&S) -> io::Result<usize>) -> io::Result<usize> {
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
    fn write_some(&self, wanted: usize, mut write: impl FnMut(&S) -> io::Result<usize>) -> io::Result<usize> {
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
