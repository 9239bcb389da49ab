//! Unix stream sockets.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{self, SocketAddr};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::context::LocalContext;
use crate::net::{CoFd, Incoming};
use crate::task::sleep;

/// A connection between processes of one machine. Methods have the names of
/// [`std::os::unix::net::UnixStream`].
///
/// ```
/// use coralio::net::UnixStream;
/// use coralio::spawn;
/// use std::io::{Read, Write};
///
/// coralio::run(|| {
///     let (mut near, mut far) = UnixStream::pair()?;
///     let reader = spawn(move || {
///         let mut word = [0; 5];
///         far.read_exact(&mut word).map(|()| word)
///     });
///     spawn(move || near.write_all(b"hello")).join().unwrap()?;
///     assert_eq!(&reader.join().unwrap()?, b"hello");
///     Ok::<_, std::io::Error>(())
/// })
/// # .unwrap();
/// ```
pub type UnixStream = CoFd<net::UnixStream>;

/// A socket in the file system that accepts connections. Methods have the names of
/// [`std::os::unix::net::UnixListener`].
///
/// ```
/// use coralio::net::{UnixListener, UnixStream};
/// use coralio::spawn;
///
/// let path = std::env::temp_dir().join(format!("coralio-unix-doc-{}", std::process::id()));
/// coralio::run(|| {
///     let listener = UnixListener::bind(&path)?;
///     let server = spawn(move || listener.accept().map(drop));
///     let client = UnixStream::connect(&path)?;
///     assert_eq!(client.peer_addr()?.as_pathname(), Some(&*path));
///     server.join().unwrap()
/// })
/// # .unwrap();
/// # std::fs::remove_file(path)?;
/// # Ok::<_, std::io::Error>(())
/// ```
pub type UnixListener = CoFd<net::UnixListener>;

/// The interval of attempts to connect to a listener whose queue is full.
const RETRY: Duration = Duration::from_millis(10);

impl CoFd<net::UnixStream> {
    /// Connects to the listener at `path`. While the listener's queue is full, tries again every 10
    /// ms, since the kernel does not report that there is space.
    ///
    /// # Errors
    ///
    /// `NotFound`, `ConnectionRefused` and others of the kernel. [`Cancelled`](crate::Cancelled),
    /// as an I/O error, if the coroutine was cancelled or a timeout around this call has expired.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn connect(path: impl AsRef<Path>) -> io::Result<UnixStream> {
        let _ = LocalContext::expect("connecting a socket");
        let address = SocketAddrUnix::new(path.as_ref())?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        loop {
            match connect(&socket, &address) {
                Ok(()) => return CoFd::register(socket.into(), Some(SocketType::STREAM)),
                Err(Errno::AGAIN) => sleep(RETRY)?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Creates two sockets that are connected with each other.
    ///
    /// # Errors
    ///
    /// The kernel's.
    ///
    /// # Panics
    ///
    /// Outside a context.
    #[doc(alias = "socketpair")]
    #[track_caller]
    pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
        let (one, other) = net::UnixStream::pair()?;
        Ok((CoFd::from_sole_handle(one)?, CoFd::from_sole_handle(other)?))
    }

    forward! {
        /// Returns the address of the peer.
        ///
        /// # Errors
        ///
        /// The kernel's.
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
        /// The kernel's.
        fn shutdown(&self, how: Shutdown) -> ();
    }
}

impl CoFd<net::UnixListener> {
    /// Listens at `path`, where no file may be. The file remains when the listener is dropped.
    ///
    /// # Errors
    ///
    /// `AddrInUse`: there is a file. Other errors of the kernel.
    ///
    /// # Panics
    ///
    /// Outside a context.
    #[track_caller]
    pub fn bind(path: impl AsRef<Path>) -> io::Result<UnixListener> {
        let _ = LocalContext::expect("creating a listener");
        CoFd::from_sole_handle(net::UnixListener::bind(path)?)
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
    pub fn accept(&self) -> io::Result<(UnixStream, SocketAddr)> {
        let (stream, address) = self.read_calling(net::UnixListener::accept)?;
        Ok((CoFd::from_sole_handle(stream)?, address))
    }

    /// Returns an iterator over the connections, which waits for each. It ends when the coroutine
    /// is cancelled, or a timeout around it expires; other errors do not end it.
    pub fn incoming(&self) -> Incoming<'_, net::UnixListener> {
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

socket_methods!(net::UnixStream);
conversions!(net::UnixListener);
