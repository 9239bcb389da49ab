//! A socket's own timeout, which the kernel applies to blocking calls only, applied to a wait.
//!
//! It does not matter which handle or duplicate has set it. As long as only the `CoFd` can reach the
//! socket, which it created or accepted itself, the socket option is read before the first wait in
//! each direction, and again after the `CoFd` has set it: *sole handle*. Once another handle may
//! exist, the option is read before each wait, one system call. A wait that does not suspend does
//! not read it.

use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, socket_timeout};

use crate::context::{Action, LocalContext, Timer};
use crate::coroutine::{Cancelled, WaitReason};
use crate::net::readiness::BorrowedRawFd;
use crate::sync::wait_queue::{Locked, WaitQueue};
use crate::task::Coroutine;

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

    fn get(&self, raw: RawFd, option: Timeout) -> io::Result<Option<Duration>> {
        let known = match option {
            Timeout::Recv => &self.read,
            Timeout::Send => &self.write,
        };
        if let Some(after) = known.get().filter(|_| self.is_sole_handle.get()) {
            return Ok(after);
        }
        let after = socket_timeout(BorrowedRawFd(raw).as_fd(), option)?;
        known.set(Some(after));
        Ok(after)
    }
}

/// The end of one wait.
pub(super) struct TimeLimit<'a> {
    home: &'a LocalContext,
    deadline: Instant,
    option: Timeout,
    after: Duration,
}

impl<'a> TimeLimit<'a> {
    /// Returns the limit of a wait that begins now; `None` if the socket has none.
    pub(super) fn of_socket(
        limits: &TimeLimits,
        raw: RawFd,
        option: Timeout,
        home: &'a LocalContext,
    ) -> io::Result<Option<TimeLimit<'a>>> {
        let Some(after) = limits.get(raw, option)? else { return Ok(None) };
        let deadline = home.scheduler.shared.clock.now().checked_add(after);
        Ok(deadline.map(|deadline| TimeLimit { home, deadline, option, after }))
    }

    /// Waits in `queue` until the grant or the limit. A shield does not mask the limit, which
    /// belongs to the operation.
    ///
    /// # Control
    ///
    /// Yields.
    #[track_caller]
    pub(super) fn wait(&self, queue: &WaitQueue, locked: Locked<'_>, reason: WaitReason) -> io::Result<()> {
        let context = &self.home.context.shared;
        let timer = OnceCell::new();
        let arm = || {
            let block = self.home.scheduler.running().expect("a waiter is a coroutine");
            let _ = timer.set(Timer::start(self.deadline, Action::Wake(block.id()), context));
        };
        let is_over = Cell::new(false);
        let ends = |current: &Coroutine| {
            current.is_cancelled() || {
                is_over.set(context.scheduler.clock.now() >= self.deadline);
                is_over.get()
            }
        };
        let waited = queue.wait_unless(ends, locked, (), reason, arm, |_| {});
        waited.map_err(|()| if is_over.get() { self.error() } else { Cancelled.into() })
    }

    #[cold]
    fn error(&self) -> io::Error {
        let what = match self.option {
            Timeout::Recv => "read",
            Timeout::Send => "write",
        };
        let why = format!("the socket's {what} timeout has expired: it is {:?}", self.after);
        io::Error::new(io::ErrorKind::TimedOut, why)
    }
}
