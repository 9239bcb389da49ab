//! What listeners of all families share: the iterator over their connections.

use std::io;
use std::{fmt, net, os::unix};

use crate::coroutine::Cancelled;
use crate::net::{CoFd, TcpStream, UnixStream};

/// The connections of a listener: see [`TcpListener::incoming`](crate::net::TcpListener::incoming)
/// and [`UnixListener::incoming`](crate::net::UnixListener::incoming).
#[must_use = "iterators do nothing until they are used"]
pub struct Incoming<'a, L> {
    pub(super) listener: &'a CoFd<L>,
}

impl Iterator for Incoming<'_, net::TcpListener> {
    type Item = io::Result<TcpStream>;

    #[track_caller]
    fn next(&mut self) -> Option<io::Result<TcpStream>> {
        unless_cancelled(self.listener.accept().map(|(stream, _)| stream))
    }
}

impl Iterator for Incoming<'_, unix::net::UnixListener> {
    type Item = io::Result<UnixStream>;

    #[track_caller]
    fn next(&mut self) -> Option<io::Result<UnixStream>> {
        unless_cancelled(self.listener.accept().map(|(stream, _)| stream))
    }
}

/// Ends the iteration when its coroutine is cancelled: a loop that continues after errors would
/// never end.
fn unless_cancelled<S>(accepted: io::Result<S>) -> Option<io::Result<S>> {
    match accepted {
        Err(error) if Cancelled::is_cause_of(&error) => None,
        accepted => Some(accepted),
    }
}

impl<L: fmt::Debug> fmt::Debug for Incoming<'_, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("listener", &self.listener).finish()
    }
}
