//! What an I/O engine is to the loop: a place to look for completions, and a way to sleep until they come.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// An I/O engine that a context drives. One per context.
///
/// The loop calls [`dispatch`](Self::dispatch) at the beginning of each round, nested rounds too, and
/// [`flush`](Self::flush) at its end; both under the context's lock, also from another thread's poll. Between the two
/// the engine may let requests gather: `flush` is sure to come.
pub trait Source: Any + Send + Sync {
    /// Completes what is done. Returns whether anything was.
    ///
    /// # Control
    ///
    /// May enter coroutines, on the home thread.
    fn dispatch(&self) -> bool;

    /// Submits what has gathered, and completes what is done at once. With `all`, the loop is about to sleep: nothing may
    /// stay behind with nobody to wake it. Returns whether anything was completed.
    ///
    /// # Control
    ///
    /// May enter coroutines, on the home thread.
    fn flush(&self, all: bool) -> bool;

    /// Whether there is something for `dispatch`, or something that `flush` held back and that may go now: then the loop
    /// does not sleep. A look at memory.
    fn is_ready(&self) -> bool;

    /// Sleeps until a completion is there, `other` is readable, or `timeout` is over; or returns `None` at once, if
    /// nothing is in flight that could complete. Called by the home thread alone, without the lock.
    ///
    /// # Errors
    ///
    /// What the system says if it cannot sleep.
    fn sleep(&self, other: BorrowedFd<'_>, timeout: Option<Duration>) -> Option<io::Result<()>>;
}
