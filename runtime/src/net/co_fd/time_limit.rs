//! A socket's own timeout, which the kernel applies to blocking calls only, applied to a wait.
//!
//! It does not matter which handle or duplicate has set it. As long as only the `CoFd` can reach the
//! socket, which it created or accepted itself, the socket option is read before the first wait in
//! each direction, and again after the `CoFd` has set it: *sole handle*. Once another handle may
//! exist, the option is read before each wait, one system call. A wait that does not suspend does
//! not read it.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use rustix::net::sockopt::Timeout;

use crate::context::{Action, LocalContext, Timer};
use crate::coroutine::CoroutineId;
use crate::sys::socket_timeout;

/// The known timeouts of a socket.
pub(in crate::net) struct TimeLimits {
    is_sole_handle: Cell<bool>,
    /// The options as last read; the inner `None` is no limit.
    read: Cell<Option<Option<Duration>>>,
    write: Cell<Option<Option<Duration>>>,
}

impl TimeLimits {
    pub(super) fn new(is_sole_handle: bool) -> TimeLimits {
        TimeLimits { is_sole_handle: Cell::new(is_sole_handle), read: Cell::new(None), write: Cell::new(None) }
    }

    /// Notes that another handle to the socket may exist from now on.
    pub(in crate::net) fn share(&self) {
        self.is_sole_handle.set(false);
    }

    /// Notes that the options may have changed.
    pub(in crate::net) fn forget(&self) {
        self.read.set(None);
        self.write.set(None);
    }

    fn known(&self, option: Timeout) -> &Cell<Option<Option<Duration>>> {
        match option {
            Timeout::Recv => &self.read,
            Timeout::Send => &self.write,
        }
    }

    /// Returns the limit of a wait that begins now; `None` if the socket has none.
    #[inline]
    pub(super) fn limit(&self, raw: RawFd, option: Timeout, home: &LocalContext) -> io::Result<Option<TimeLimit>> {
        if self.is_sole_handle.get() && self.known(option).get() == Some(None) {
            return Ok(None);
        }
        self.read_option(raw, option, home)
    }

    #[cold]
    fn read_option(&self, raw: RawFd, option: Timeout, home: &LocalContext) -> io::Result<Option<TimeLimit>> {
        let known = self.known(option);
        let after = match known.get().filter(|_| self.is_sole_handle.get()) {
            Some(after) => after,
            None => socket_timeout(raw, option)?,
        };
        known.set(Some(after));
        let deadline = after.and_then(|after| home.scheduler.shared.clock.now().checked_add(after));
        Ok(after.zip(deadline).map(|(after, deadline)| TimeLimit { deadline, option, after }))
    }
}

/// The end of one wait. A shield does not mask it, since it belongs to the operation.
pub(super) struct TimeLimit {
    deadline: Instant,
    option: Timeout,
    after: Duration,
}

impl TimeLimit {
    /// Starts a timer that wakes the coroutine.
    #[cold]
    pub(super) fn arm(&self, home: &LocalContext, id: CoroutineId) -> Timer {
        Timer::start(self.deadline, Action::Wake(id), &home.context.shared)
    }

    pub(super) fn is_over(&self, home: &LocalContext) -> bool {
        home.scheduler.shared.clock.now() >= self.deadline
    }

    #[cold]
    pub(super) fn error(&self) -> io::Error {
        let what = match self.option {
            Timeout::Recv => "read",
            Timeout::Send => "write",
        };
        let why = format!("the socket's {what} timeout has expired: it is {:?}", self.after);
        io::Error::new(io::ErrorKind::TimedOut, why)
    }
}
