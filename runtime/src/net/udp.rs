//! UDP: a receive returns one datagram.

use std::io;
use std::net::{self, SocketAddr};
use std::time::Duration;

use crate::context::LocalContext;
use crate::net::address::{each_address, first_address};
use crate::net::{CoFd, ToSocketAddrs};

/// A UDP socket. Methods have the names of [`std::net::UdpSocket`].
///
/// ```
/// use coralio::net::UdpSocket;
/// use coralio::spawn;
///
/// coralio::run(|| {
///     let receiver = UdpSocket::bind("127.0.0.1:0")?;
///     let to = receiver.local_addr()?;
///     let received = spawn(move || {
///         let mut datagram = [0; 1500];
///         let (len, _from) = receiver.recv_from(&mut datagram)?;
///         Ok::<_, std::io::Error>(datagram[..len].to_vec())
///     });
///     UdpSocket::bind("127.0.0.1:0")?.send_to(b"hello", to)?;
///     assert_eq!(received.join().unwrap()?, b"hello");
///     Ok::<_, std::io::Error>(())
/// })
/// # .unwrap();
/// ```
pub type UdpSocket = CoFd<net::UdpSocket>;

impl CoFd<net::UdpSocket> {
    /// Creates a socket at the first address that is free. Port 0: the system chooses the port.
    ///
    /// # Errors
    ///
    /// That of the last address: `AddrInUse` and others of the kernel. `InvalidInput`: a name
    /// without addresses. Errors of the lookup of a name.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// May yield, if `address` is a name.
    #[track_caller]
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<UdpSocket> {
        let _ = LocalContext::expect("creating a socket");
        each_address(&address, |address| CoFd::from_sole_handle(net::UdpSocket::bind(address)?))
    }

    /// Sets the peer: the destination of [`send`](Self::send), and the only source from which
    /// datagrams are received.
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind).
    ///
    /// # Control
    ///
    /// May yield, if `address` is a name.
    #[track_caller]
    pub fn connect(&self, address: impl ToSocketAddrs) -> io::Result<()> {
        each_address(&address, |address| self.inner().connect(address))
    }

    /// Sends a datagram to the peer. Waits for space in the socket's queue.
    ///
    /// # Errors
    ///
    /// The kernel's: `ConnectionRefused` if an earlier datagram found no receiver. As
    /// [`wait_writable`](CoFd::wait_writable).
    ///
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        self.write_calling(|socket| socket.send(datagram))
    }

    /// Receives a datagram from the peer. The part that does not fit into `buf` is lost.
    ///
    /// # Errors
    ///
    /// The kernel's: `ConnectionRefused` if an earlier datagram found no receiver. As
    /// [`wait_readable`](CoFd::wait_readable).
    ///
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_calling(|socket| socket.recv(buf))
    }

    /// Sends a datagram to `address`, or to the first of its addresses. Waits for space in the
    /// socket's queue.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), and as [`bind`](Self::bind) for `address`.
    ///
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn send_to(&self, datagram: &[u8], address: impl ToSocketAddrs) -> io::Result<usize> {
        let address = first_address(&address)?;
        self.write_calling(|socket| socket.send_to(datagram, address))
    }

    /// Receives a datagram, and returns its length and source. The part that does not fit into
    /// `buf` is lost, and not counted.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    ///
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn recv_from(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.read_calling(|socket| socket.recv_from(buf))
    }

    forward! {
        /// Returns the address of the peer.
        ///
        /// # Errors
        ///
        /// `NotConnected`: there is none. Other errors of the kernel.
        fn peer_addr(&self) -> SocketAddr;
        /// Returns the address of this socket.
        ///
        /// # Errors
        ///
        /// The kernel's.
        fn local_addr(&self) -> SocketAddr;
    }
}

socket_methods!(net::UdpSocket);
