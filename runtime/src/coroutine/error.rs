//! Errors of entering, scheduling and cancellation.

use std::fmt;
use std::io;
use std::panic::Location;

/// The error of a wait that was cut short because its coroutine was cancelled or an enclosing
/// timeout expired. Also the panic payload that unwinds a coroutine whose context ended, and the
/// error that its join handle then returns.
///
/// `?` converts it to an [`io::Error`], of kind `Other`, which [`is_cause_of`](Cancelled::is_cause_of)
/// recognises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cancelled: the coroutine was cancelled or its context has ended")
    }
}

impl std::error::Error for Cancelled {}

impl Cancelled {
    /// Returns whether an I/O error was caused by cancellation.
    ///
    /// ```
    /// use coralio::{sleep, spawn};
    /// use coralio::context::AioContext;
    /// use coralio::task::Cancelled;
    /// use std::time::Duration;
    ///
    /// AioContext::run(|ctx| {
    ///     let task = spawn(|| Ok::<_, std::io::Error>(sleep(Duration::from_secs(3600))?));
    ///     ctx.poll(false);
    ///     task.cancel();
    ///     assert!(Cancelled::is_cause_of(&task.join().unwrap().unwrap_err()));
    /// });
    /// ```
    pub fn is_cause_of(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|cause| cause.is::<Cancelled>())
    }
}

impl From<Cancelled> for io::Error {
    /// Not of kind `Interrupted`: many callers retry on that.
    fn from(cancelled: Cancelled) -> io::Error {
        io::Error::other(cancelled)
    }
}

/// The reason why a coroutine cannot be entered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnterError {
    /// The coroutine is on the stack already.
    Recursive {
        /// The coroutine that was to be entered.
        name: String,
        /// The entered coroutines, outermost first: `thread > 'A' > 'B'`.
        chain: String,
    },
    /// The coroutine is scheduled, and must run from the list that it is on.
    Scheduled {
        /// The coroutine that was to be entered.
        name: String,
        /// Where it was scheduled.
        at: &'static Location<'static>,
    },
    /// The coroutine has ended.
    Ended,
}

#[cold]
#[track_caller]
pub(crate) fn not_entered(error: &EnterError) -> ! {
    panic!("{error}")
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnterError::Recursive { name, chain } => write!(f, "recursive entry of {name}: {chain}"),
            EnterError::Scheduled { name, at } => {
                write!(f, "cannot enter {name}: already scheduled, at {at}")
            }
            EnterError::Ended => f.write_str("cannot enter a coroutine: it has ended"),
        }
    }
}

impl std::error::Error for EnterError {}

/// The error of scheduling a coroutine twice before it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleError {
    /// The first call that scheduled it.
    pub first: &'static Location<'static>,
    /// The second call.
    pub second: &'static Location<'static>,
}

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "coroutine scheduled twice before it ran: at {}, then at {}", self.first, self.second)
    }
}

impl std::error::Error for ScheduleError {}
