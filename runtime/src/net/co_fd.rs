//! Sockets and pipes with blocking semantics that suspend the coroutine instead of the thread.
//!
//! Waiting around a system call is in `calls.rs`, the counting of edges in `edges.rs`, timeouts of
//! sockets in `time_limit.rs`.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use rustix::net::sockopt::{Timeout, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use crate::context::{FdHandler, Interest, LocalContext};
use crate::sys::set_nonblocking;

mod calls;
mod edges;
mod stream;
mod time_limit;
mod transfer;

use edges::{BothEdges, Direction, NOT_KNOWN};
use time_limit::TimeLimits;
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
}
