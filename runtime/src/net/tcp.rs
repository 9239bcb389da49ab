//! TCP: connecting without blocking the thread, and listeners that share a port.

use std::io;
use std::net::{self, Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, acceptfrom_with, bind, connect, listen, socket_with, sockopt,
};

use crate::context::LocalContext;
use crate::coroutine::Cancelled;
use crate::net::address::{each_address, no_address};
use crate::net::{CoFd, Incoming, ToSocketAddrs};
use crate::task::timeout;

/// A TCP connection. Methods have the names of [`std::net::TcpStream`].
///
/// ```
/// use coralio::net::TcpStream;
/// use coralio::spawn;
/// use std::io::{Read, Write};
/// use std::net::{Shutdown, TcpListener};
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let address = listener.local_addr()?;
/// let server = std::thread::spawn(move || {
///     let (mut client, _) = listener.accept()?;
///     std::io::copy(&mut client.try_clone()?, &mut client)
/// });
/// coralio::run(|| {
///     let client = spawn(move || {
///         let mut stream = TcpStream::connect(address)?;
///         stream.set_nodelay(true)?;
///         stream.write_all(b"echo")?;
///         stream.shutdown(Shutdown::Write)?;
///         let mut answer = String::new();
///         stream.read_to_string(&mut answer).map(|_| answer)
///     });
///     assert_eq!(client.join().unwrap().unwrap(), "echo");
/// });
/// # server.join().unwrap()?;
/// # Ok::<_, std::io::Error>(())
/// ```
pub type TcpStream = CoFd<net::TcpStream>;

/// A socket that accepts TCP connections. Methods have the names of [`std::net::TcpListener`].
///
/// Several contexts can accept at one port: see [`bind_reuse_port`](TcpListener::bind_reuse_port).
///
/// ```
/// use coralio::net::{TcpListener, TcpStream};
/// use coralio::spawn;
/// use std::io::{Read, Write};
///
/// coralio::run(|| {
///     let listener = TcpListener::bind("127.0.0.1:0")?;
///     let address = listener.local_addr()?;
///     let server = spawn(move || {
///         let (mut client, _from) = listener.accept()?;
///         client.write_all(b"hello")
///     });
///     let mut answer = String::new();
///     TcpStream::connect(address)?.read_to_string(&mut answer)?;
///     assert_eq!(answer, "hello");
///     server.join().unwrap()
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub type TcpListener = CoFd<net::TcpListener>;

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The length of a listener's queue. The kernel reduces it to `net.core.somaxconn`.
const BACKLOG: i32 = i32::MAX;

fn new_socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(socket_with(family, SocketType::STREAM, FLAGS, None)?)
}

impl CoFd<net::TcpStream> {
    /// Connects to the first address that accepts the connection. Waits for the peer's answer
    /// without blocking the thread; names are looked up as described at [`ToSocketAddrs`].
    ///
    /// # Errors
    ///
    /// The kernel's error for the last address, such as `ConnectionRefused` or `TimedOut`.
    /// [`Cancelled`](crate::Cancelled), as an I/O error, if the coroutine was cancelled or a
    /// timeout around this call has expired; the attempt is then abandoned. `InvalidInput`: a name
    /// has no addresses. Errors of the lookup of a name.
    ///
    /// # Panics
    ///
    /// Outside a context; or outside a coroutine, if it has to wait.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn connect(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
        let _ = LocalContext::expect("connecting a socket");
        let mut last = None;
        // Not in a closure, which would hide the caller's location.
        for &address in address.resolve()?.addresses() {
            match connect_to(address) {
                Err(error) if !Cancelled::is_cause_of(&error) => last = Some(error),
                result => return result,
            }
        }
        Err(last.unwrap_or_else(no_address))
    }

    /// Connects to one address, as [`connect`](Self::connect), for at most `limit`.
    ///
    /// ```
    /// use coralio::spawn;
    /// use coralio::context::AioContext;
    /// use coralio::net::{TcpListener, TcpStream};
    /// use std::io::{ErrorKind, Read};
    /// use std::time::Duration;
    ///
    /// AioContext::run(|_ctx| {
    ///     let listener = TcpListener::bind("127.0.0.1:0")?;
    ///     let address = listener.local_addr()?;
    ///     let client = spawn(move || {
    ///         let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    ///         stream.set_nodelay(true)?;
    ///         stream.set_read_timeout(Some(Duration::from_millis(8)))?;
    ///         stream.wait_writable()?; // a new connection has space
    ///         assert!(stream.nodelay()? && stream.read_timeout()?.is_some() && stream.write_timeout()?.is_none());
    ///         assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut); // no data
    ///         std::io::Result::Ok(())
    ///     });
    ///     client.join().unwrap()
    /// })?;
    /// # Ok::<_, std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// `TimedOut`: the limit has expired. As [`connect`](Self::connect).
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn connect_timeout(address: &SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        timeout(limit, || TcpStream::connect(address)).unwrap_or_else(|_| {
            let why = format!("no answer from {address} within {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        })
    }

    /// Receives without removing the bytes from the queue. Waits until there are some, or the end.
    ///
    /// # Errors
    ///
    /// As for a read.
    ///
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_calling(|socket| socket.peek(buf))
    }

    forward! {
        /// Returns the address of the peer.
        ///
        /// # Errors
        ///
        /// `NotConnected`: the connection has ended. Other errors of the kernel.
        fn peer_addr(&self) -> SocketAddr;
        /// Returns the address of this end.
        ///
        /// # Errors
        ///
        /// The kernel's.
        fn local_addr(&self) -> SocketAddr;
        /// Ends one direction or both. Coroutines that wait for it return.
        ///
        /// # Errors
        ///
        /// `NotConnected`: the connection has ended. Other errors of the kernel.
        fn shutdown(&self, how: Shutdown) -> ();
        /// Sets whether small writes are sent immediately (`TCP_NODELAY`) instead of being
        /// collected while earlier ones are not acknowledged.
        ///
        /// # Errors
        ///
        /// The kernel's.
        #[doc(alias = "TCP_NODELAY")]
        fn set_nodelay(&self, nodelay: bool) -> ();
        /// Returns whether small writes are sent immediately.
        ///
        /// # Errors
        ///
        /// The kernel's.
        fn nodelay(&self) -> bool;
    }
}

impl CoFd<net::TcpListener> {
    /// Listens at the first address that is free. Port 0: the system chooses the port.
    ///
    /// # Errors
    ///
    /// The kernel's error for the last address, such as `AddrInUse`. `InvalidInput`: a name has no
    /// addresses. Errors of the lookup of a name.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// May yield, if `address` is a name.
    #[track_caller]
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
        let _ = LocalContext::expect("creating a listener");
        each_address(&address, |address| listen_at(address, false))
    }

    /// As [`bind`](Self::bind), at an address that several listeners share, of one context or of
    /// several: the kernel spreads the connections over them. All of them must be created by this
    /// function, by processes of one user.
    ///
    /// A connection belongs to one listener from the start: if that listener is closed before it
    /// has accepted the connection, the connection is reset.
    ///
    /// ```
    /// use coralio::net::TcpListener;
    /// use coralio::context::AioContext;
    ///
    /// AioContext::run(|_ctx| {
    ///     let first = TcpListener::bind_reuse_port("127.0.0.1:0")?;
    ///     let address = first.local_addr()?; // for the other contexts
    ///     let other = std::thread::spawn(move || {
    ///         AioContext::run(|_ctx| TcpListener::bind_reuse_port(address)?.local_addr())
    ///     });
    ///     assert_eq!(other.join().unwrap()?, address);
    ///     Ok::<_, std::io::Error>(())
    /// })
    /// # .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind).
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// May yield, if `address` is a name.
    #[doc(alias = "SO_REUSEPORT")]
    #[track_caller]
    pub fn bind_reuse_port(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
        let _ = LocalContext::expect("creating a listener");
        each_address(&address, |address| listen_at(address, true))
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// The kernel's; and as [`wait_readable`](CoFd::wait_readable).
    ///
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, from) = self.read_calling(|listener| Ok(acceptfrom_with(listener.as_fd(), FLAGS)?))?;
        let from = from.ok_or(Errno::AFNOSUPPORT)?.try_into()?;
        Ok((CoFd::register(socket.into(), Some(SocketType::STREAM))?, from))
    }

    /// Returns an iterator over the connections, which waits for each. It ends when the coroutine
    /// is cancelled, or a timeout around it expires; other errors do not end it.
    pub fn incoming(&self) -> Incoming<'_, net::TcpListener> {
        Incoming { listener: self }
    }

    forward! {
        /// Returns the address that it listens at.
        ///
        /// # Errors
        ///
        /// The kernel's.
        fn local_addr(&self) -> SocketAddr;
    }
}

#[track_caller]
fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = new_socket(address)?;
    // Before the registration: epoll reports a hang-up for an unconnected socket.
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = CoFd::register(net::TcpStream::from(socket), Some(SocketType::STREAM))?;
    stream.write_calling(|socket| match socket.take_error()? {
        Some(error) => Err(error),
        None => match socket.peer_addr() {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Err(io::ErrorKind::WouldBlock.into()),
            connected => connected.map(drop),
        },
    })?;
    Ok(stream)
}

#[track_caller]
fn listen_at(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = new_socket(address)?;
    // As in `std`: connections of an earlier listener may linger.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    CoFd::register(socket.into(), Some(SocketType::STREAM))
}

socket_methods!(net::TcpStream);
conversions!(net::TcpListener);
