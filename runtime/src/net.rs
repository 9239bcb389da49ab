//! Sockets, pipes and other descriptors with blocking semantics that suspend the coroutine instead
//! of the thread.
//!
//! [`CoFd`] is any of them. [`TcpStream`], [`TcpListener`], [`UnixStream`], [`UnixListener`] and
//! [`UdpSocket`] are a `CoFd` with the type of `std` of that name in it, and have the methods of
//! `std`. [`CoFd::new`] makes one from the type of `std`, [`CoFd::into_inner`] or `From` returns
//! that, and [`CoFd::get_ref`] lends it for options that have no method here.
//!
//! ```
//! use coralio::net::{TcpListener, TcpStream};
//! use coralio::spawn;
//! use std::io::{Read, Write};
//!
//! coralio::run(|| {
//!     let listener = TcpListener::bind("127.0.0.1:0")?;
//!     let address = listener.local_addr()?;
//!     let server = spawn(move || {
//!         let (mut client, _from) = listener.accept()?;
//!         client.write_all(b"hello")
//!     });
//!     let client = spawn(move || {
//!         let mut answer = String::new();
//!         TcpStream::connect(address)?.read_to_string(&mut answer)?;
//!         Ok::<_, std::io::Error>(answer)
//!     });
//!     assert_eq!(client.join().unwrap()?, "hello");
//!     server.join().unwrap()
//! })
//! # .unwrap();
//! ```

/// Defines methods of a `CoFd` that call the method of the same name of the type in it.
macro_rules! forward {
    ($($(#[$attribute:meta])* fn $name:ident(&self $(, $argument:ident: $type:ty)?) -> $result:ty;)*) => {$(
        $(#[$attribute])*
        pub fn $name(&self $(, $argument: $type)?) -> io::Result<$result> {
            self.inner().$name($($argument)?)
        }
    )*};
}

/// Defines the methods for timeouts and for duplicates, and the conversions, of one type of socket.
macro_rules! socket_methods {
    ($socket:ty) => {
        impl CoFd<$socket> {
            /// Sets the read timeout: a wait for data that takes longer fails with `TimedOut`.
            /// `None`: waits are not limited. This is the socket's own option, shared with its
            /// duplicates.
            ///
            /// The time is that of the context's clock, and is not masked by a
            /// [shield](crate::shield).
            ///
            /// # Errors
            ///
            /// `InvalidInput`: zero. Other errors of the kernel.
            pub fn set_read_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
                self.time_limits().forget();
                self.inner().set_read_timeout(limit)
            }

            /// Sets the write timeout, as [`set_read_timeout`](Self::set_read_timeout) does for
            /// reads: a wait for space that takes longer fails with `TimedOut`.
            ///
            /// # Errors
            ///
            /// `InvalidInput`: zero. Other errors of the kernel.
            pub fn set_write_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
                self.time_limits().forget();
                self.inner().set_write_timeout(limit)
            }

            forward! {
                /// Returns the read timeout.
                ///
                /// # Errors
                ///
                /// The kernel's.
                fn read_timeout(&self) -> Option<Duration>;
                /// Returns the write timeout.
                ///
                /// # Errors
                ///
                /// The kernel's.
                fn write_timeout(&self) -> Option<Duration>;
            }

            /// Creates another handle to the same socket, with its own registration in the loop. To
            /// use one handle from several coroutines no duplicate is needed: read and write
            /// through a shared reference.
            ///
            /// # Errors
            ///
            /// The kernel's.
            ///
            /// # Panics
            ///
            /// Outside a context.
            #[track_caller]
            pub fn try_clone(&self) -> io::Result<Self> {
                let other = CoFd::register(self.get_ref().try_clone()?, self.socket_type())?;
                other.time_limits().share();
                Ok(other)
            }
        }

        conversions!($socket);
    };
}

/// Defines the conversions from and to the type of `std`.
macro_rules! conversions {
    ($socket:ty) => {
        impl From<CoFd<$socket>> for $socket {
            /// As [`CoFd::into_inner`].
            fn from(socket: CoFd<$socket>) -> $socket {
                socket.into_inner()
            }
        }

        impl TryFrom<$socket> for CoFd<$socket> {
            type Error = io::Error;

            /// As [`CoFd::new`].
            fn try_from(socket: $socket) -> io::Result<CoFd<$socket>> {
                CoFd::new(socket)
            }
        }
    };
}

mod address;
mod co_fd;
mod listener;
mod readiness;
mod signal;
mod tcp;
mod udp;
mod unix;

pub use address::ToSocketAddrs;
pub use co_fd::{CoFd, splice};
pub use listener::Incoming;
pub use readiness::{wait_readable, wait_writable};
pub use signal::{Signal, ctrl_c, signal};
pub use tcp::{TcpListener, TcpStream};
pub use udp::UdpSocket;
pub use unix::{UnixListener, UnixStream};
