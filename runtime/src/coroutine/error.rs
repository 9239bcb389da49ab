//! Why a coroutine cannot be entered or scheduled, and how one tells that it was cancelled.

use std::fmt;
use std::io;
use std::panic::Location;

/// What a wait returns that was cut short, because its coroutine was cancelled or a timeout around it is over. Also the
/// payload with which a coroutine unwinds whose context ended, and what its join handle reports then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cancelled: the coroutine was asked to end, or its context ended")
    }
}

impl std::error::Error for Cancelled {}

impl Cancelled {
    /// Whether an I/O error says that the coroutine was cancelled.
    pub fn is_cause_of(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|cause| cause.is::<Cancelled>())
    }
}

impl From<Cancelled> for io::Error {
    /// Not of the kind `Interrupted`: such calls are made again by many.
    fn from(cancelled: Cancelled) -> io::Error {
        io::Error::other(cancelled)
    }
}

/// Why a coroutine cannot be entered (rule C5).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnterError {
    /// It is on the stack already.
    Recursive {
        /// Whom somebody tried to enter.
        name: String,
        /// Who is on the stack, outermost first: `main > 'A' > 'B'`.
        chain: String,
    },
    /// It is scheduled, and whoever scheduled it counts on it.
    Scheduled {
        /// Whom somebody tried to enter.
        name: String,
        /// Where it was scheduled.
        at: &'static Location<'static>,
    },
    /// It has ended.
    Ended,
}

#[cold]
#[track_caller]
pub(super) fn not_entered(error: &EnterError) -> ! {
    panic!("{error}")
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnterError::Recursive { name, chain } => write!(f, "recursive entry of {name}: {chain}"),
            EnterError::Scheduled { name, at } => {
                write!(f, "cannot enter {name}: it is scheduled to run already, at {at}")
            }
            EnterError::Ended => f.write_str("cannot enter a coroutine that has ended"),
        }
    }
}

impl std::error::Error for EnterError {}

/// A coroutine was scheduled twice before it ran (rule W2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleError {
    /// Where it was scheduled first.
    pub first: &'static Location<'static>,
    /// Where it was scheduled again.
    pub second: &'static Location<'static>,
}

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the coroutine is scheduled already: first at {}, and before it ran at {}", self.first, self.second)
    }
}

impl std::error::Error for ScheduleError {}
