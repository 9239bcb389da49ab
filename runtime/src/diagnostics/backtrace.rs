//! The backtrace of a suspended coroutine (rule C13), captured by switching to its stack.
//!
//! ```text
//!   the requester                      the coroutine
//!   -------------                      -------------
//!   Home::trace   -- Resume::Trace ->  in `switch_out`, where it waits
//!                                        room left on its stack?
//!     captures, on the requester's  <-   the stack pointer moves back to the requester's stack;
//!     stack                              the chain of frames does not
//!                                  -->   stores the backtrace
//!   returns it   <------------------   waits as before
//! ```
//!
//! No other coroutine runs meanwhile, no frame is pushed, no list changes. The capture needs room,
//! so it runs on the requester's stack; getting there takes about a hundred bytes of the
//! coroutine's. Suspension costs nothing more for this feature: the backtrace is one more command
//! with which a coroutine can be resumed.

#![allow(unsafe_code)]

use std::backtrace::Backtrace;
use std::cell::Cell;
use std::{io, ptr};

use corosensei::{CoroutineResult, Yielder};

use crate::coroutine::control_block::{ControlBlock, LocalState, Resume, State};
use crate::scheduler::Home;
use crate::task::coroutine::Coroutine;

/// An upper bound, in bytes, of the stack needed to switch back to the requester's stack.
const ROOM: usize = 2048;

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
    /// use coralio_runtime::{AioContext, Coroutine, suspend};
    ///
    /// AioContext::run(|_ctx| {
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
        let Some(home) = Home::current().filter(|_| self.id.is_live()) else {
            return refused(io::ErrorKind::NotFound, "it has ended or belongs to another thread");
        };
        let local = home.local(self.id.block);
        match local.state.get() {
            State::Suspended | State::Scheduled if !local.has_started() => {
                refused(io::ErrorKind::NotFound, "not entered yet, so it has no frames")
            }
            State::Suspended | State::Scheduled => match home.trace(self.id.block) {
                Some(trace) => Ok(trace),
                None => refused(io::ErrorKind::StorageFull, "less than 2 KiB of its stack is left"),
            },
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
        // SAFETY: the callers' states are Suspended and Scheduled, so the machine is in its slot
        // and not in use.
        unsafe { (*self.raw.get()).assume_init_ref() }.started()
    }
}

/// A backtrace request: lies on the requester's stack, filled in by the traced coroutine.
pub(crate) struct Request {
    of: &'static ControlBlock,
    found: Cell<Option<Backtrace>>,
}

impl Home {
    /// Returns `None` if the coroutine's stack has no room for the switch.
    fn trace(&self, block: &'static ControlBlock) -> Option<Backtrace> {
        let local = self.local(block);
        let request = Request { of: block, found: Cell::new(None) };
        // Marked as entered: a capture allocates, and the program's allocator may run any code,
        // which must not enter this coroutine.
        let state = local.state.replace(State::Entered);
        self.trace.set(&request);
        // SAFETY: *taken out while it runs*: as in `Home::resume`.
        let machine = unsafe { (*local.raw.get()).assume_init_mut() };
        self.switching.set(true);
        let result = machine.resume(Resume::Backtrace);
        self.switching.set(false);
        match result {
            CoroutineResult::Yield(()) => local.state.set(state),
            CoroutineResult::Return(()) => unreachable!("a traced coroutine keeps waiting"),
        }
        request.found.take()
    }
}

/// Runs in the traced coroutine, on its stack: stores the backtrace for [`Home::trace`]. Returns
/// the yielder through which the coroutine suspends again. Takes no argument, so that a suspending
/// coroutine need not keep one.
#[cold]
#[inline(never)]
pub(crate) fn leave_trace() -> *const Yielder<Resume, ()> {
    let home = Home::expect("a backtrace");
    // SAFETY: set by `Home::trace`, which returns only when this coroutine has suspended again.
    let request = unsafe { &*home.trace.get() };
    let local = home.local(request.of);
    let yielder = local.yielder.get();
    let here = 0u8;
    let lowest = local.lease.get().map_or(usize::MAX, |lease| lease.guard().end);
    let left = ptr::from_ref(&here).addr().saturating_sub(lowest);
    // AddressSanitizer keeps locals elsewhere, so their address says nothing about the room left.
    if left >= ROOM || cfg!(feature = "sanitizer") {
        home.switching.set(true);
        // SAFETY: the yielder lies at the root of the running stack, so it is alive.
        let trace = unsafe { &*yielder }.on_parent_stack(|| {
            let switching = &Home::expect("a backtrace").switching;
            switching.set(false);
            let trace = Backtrace::force_capture();
            switching.set(true);
            trace
        });
        home.switching.set(false);
        request.found.set(Some(trace));
    }
    yielder
}
