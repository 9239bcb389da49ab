//! The public side of backtraces (rule C13).

#![allow(unsafe_code)]

use std::backtrace::Backtrace;
use std::io;

use crate::coroutine::{LocalState, State};
use crate::scheduler::Scheduler;
use crate::task::Coroutine;

impl Coroutine {
    /// Returns the backtrace of a suspended coroutine: where it waits, and the calls that led
    /// there. It is captured whatever the value of `RUST_BACKTRACE`. The capture runs none of the
    /// coroutine's code and does not affect it. Below the coroutine's root follow the frames of the
    /// caller of this function.
    ///
    /// For the running coroutine call [`Backtrace::force_capture`] in it, which continues into the
    /// stacks of its enterers.
    ///
    /// ```
    /// use coralio::coroutine::{Coroutine, suspend};
    ///
    /// coralio::run(|| {
    ///     let co = Coroutine::new(suspend);
    ///     co.enter();
    ///     println!("{co} waits here:\n{}", co.backtrace().unwrap());
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// The coroutine was never entered and so has no frames yet; is entered; has ended; or has less
    /// than 2 KiB of stack left.
    pub fn backtrace(self) -> io::Result<Backtrace> {
        let refused = |kind, why: &str| Err(io::Error::new(kind, format!("no backtrace of coroutine {self}: {why}")));
        let Some(scheduler) = Scheduler::current().filter(|_| self.id.is_live()) else {
            return refused(io::ErrorKind::NotFound, "it has ended or belongs to another thread");
        };
        let local = scheduler.local(self.id.block);
        match local.state.get() {
            State::Suspended | State::Scheduled if !local.has_started() => {
                refused(io::ErrorKind::NotFound, "not entered yet, so it has no frames")
            }
            State::Suspended | State::Scheduled => {
                match scheduler.walk(self.id.block, || Box::new(Backtrace::force_capture())) {
                    Some(trace) => Ok(trace),
                    None => refused(io::ErrorKind::StorageFull, "less than 2 KiB of its stack is left"),
                }
            }
            State::Entered => refused(
                io::ErrorKind::ResourceBusy,
                "it is on the stack; call std's Backtrace::force_capture in the running coroutine",
            ),
            State::Finished | State::Free => refused(io::ErrorKind::NotFound, "it has ended"),
        }
    }
}

impl LocalState {
    /// Returns whether the coroutine, which is suspended, was ever entered.
    fn has_started(&self) -> bool {
        // SAFETY: the callers' states are Suspended and Scheduled, so the raw coroutine is in its
        // slot and not in use.
        unsafe { (*self.raw.get()).assume_init_ref() }.started()
    }
}
