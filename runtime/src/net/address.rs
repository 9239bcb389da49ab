//! Addresses, and names that are resolved without blocking the thread.
//!
//! The C library's resolver blocks, so each lookup of a name has a thread of its own, for as long
//! as it takes. A lookup whose coroutine was cancelled is abandoned: its thread ends by itself.

use std::io;
use std::net::{self, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::slice;
use std::thread;

use crate::coroutine::Cancelled;
use crate::scheduler::Scheduler;
use crate::sync::{RecvError, oneshot};
use crate::task::check_cancelled;

/// An address of a socket, or a host name and port to look up: the same types as for
/// [`std::net::ToSocketAddrs`].
///
/// An address, as a value or as text (`"127.0.0.1:80"`), is converted in place. A name
/// (`"example.org:80"`, `("example.org", 80)`) is looked up on another thread while the coroutine
/// waits; outside a coroutine, the lookup blocks the thread.
///
/// Implemented by the types of this list only.
///
/// ```
/// use coralio::context::AioContext;
/// use coralio::net::{TcpListener, TcpStream, ToSocketAddrs};
/// use coralio::spawn;
///
/// fn is_reachable(address: impl ToSocketAddrs) -> bool {
///     TcpStream::connect(address).is_ok()
/// }
///
/// AioContext::run(|_ctx| {
///     let listener = TcpListener::bind("127.0.0.1:0").unwrap();
///     let port = listener.local_addr().unwrap().port();
///     let task = spawn(move || is_reachable(("127.0.0.1", port)) && is_reachable(format!("localhost:{port}")));
///     assert!(task.join().unwrap());
/// });
/// ```
#[doc(alias("lookup_host", "getaddrinfo"))]
pub trait ToSocketAddrs: sealed::Resolve {}

impl<A: sealed::Resolve + ?Sized> ToSocketAddrs for A {}

pub(super) mod sealed {
    use std::io;
    use std::net::SocketAddr;

    /// One address needs no allocation.
    pub enum Resolved {
        One(SocketAddr),
        Several(Vec<SocketAddr>),
    }

    pub trait Resolve {
        /// # Control
        ///
        /// May yield.
        #[track_caller]
        fn resolve(&self) -> io::Result<Resolved>;
    }
}
use sealed::{Resolve, Resolved};

macro_rules! resolve_in_place {
    ($($addr:ty),*) => {$(
        impl Resolve for $addr {
            fn resolve(&self) -> io::Result<Resolved> {
                Ok(Resolved::One(SocketAddr::from(*self)))
            }
        }
    )*};
}

resolve_in_place!(SocketAddr, SocketAddrV4, SocketAddrV6, (IpAddr, u16), (Ipv4Addr, u16), (Ipv6Addr, u16));

impl Resolve for [SocketAddr] {
    fn resolve(&self) -> io::Result<Resolved> {
        Ok(Resolved::Several(self.to_vec()))
    }
}

impl Resolve for str {
    fn resolve(&self) -> io::Result<Resolved> {
        match self.parse() {
            Ok(address) => Ok(Resolved::One(address)),
            Err(_) => look_up(self.to_owned()),
        }
    }
}

impl Resolve for String {
    fn resolve(&self) -> io::Result<Resolved> {
        self.as_str().resolve()
    }
}

impl Resolve for (&str, u16) {
    fn resolve(&self) -> io::Result<Resolved> {
        match self.0.parse::<IpAddr>() {
            Ok(address) => (address, self.1).resolve(),
            Err(_) => look_up((self.0.to_owned(), self.1)),
        }
    }
}

impl Resolve for (String, u16) {
    fn resolve(&self) -> io::Result<Resolved> {
        (self.0.as_str(), self.1).resolve()
    }
}

impl<A: Resolve + ?Sized> Resolve for &A {
    fn resolve(&self) -> io::Result<Resolved> {
        (**self).resolve()
    }
}

#[track_caller]
fn look_up(name: impl net::ToSocketAddrs + Send + 'static) -> io::Result<Resolved> {
    let now = move || Ok(Resolved::Several(name.to_socket_addrs()?.collect()));
    let in_coroutine = Scheduler::current().is_some_and(|scheduler| scheduler.running().is_some());
    if !in_coroutine {
        return now();
    }
    check_cancelled()?;
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name("lookup".into()).spawn(move || _ = sender.send(now()))?;
    match receiver.recv() {
        Ok(found) => found,
        Err(RecvError::Disconnected) => Err(io::Error::other("the lookup of the name has panicked")),
        Err(RecvError::Cancelled) => Err(Cancelled.into()),
    }
}

/// Calls `f` with each address until it succeeds, and returns the last error.
#[track_caller]
pub(super) fn each_address<R>(
    address: &impl ToSocketAddrs,
    mut f: impl FnMut(SocketAddr) -> io::Result<R>,
) -> io::Result<R> {
    let mut last = None;
    for &address in address.resolve()?.addresses() {
        match f(address) {
            Err(error) => last = Some(error),
            done => return done,
        }
    }
    Err(last.unwrap_or_else(no_address))
}

/// Returns the first address.
#[track_caller]
pub(super) fn first_address(address: &impl ToSocketAddrs) -> io::Result<SocketAddr> {
    address.resolve()?.addresses().first().copied().ok_or_else(no_address)
}

impl Resolved {
    pub(super) fn addresses(&self) -> &[SocketAddr] {
        match self {
            Resolved::One(address) => slice::from_ref(address),
            Resolved::Several(addresses) => addresses,
        }
    }
}

pub(super) fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "no address is given, or the name has none")
}
