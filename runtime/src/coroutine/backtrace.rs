//! Where a suspended coroutine waits (rule C13): its backtrace, taken on its own stack.
//!
//! ```text
//!   whoever asks                       the coroutine
//!   ------------                       -------------
//!   Home::trace   -- Resume::Trace ->  in `switch_out`, where it waits
//!                                        room left on its stack?
//!     captured here, on the asker's <-   the stack pointer goes back to the asker's stack, the chain of frames does not
//!     stack                       -->    leaves the backtrace
//!   returns it   <------------------   waits as before
//! ```
//!
//! Nobody else runs meanwhile, no frame is pushed, no list changes. What needs room, the capture, runs on the stack of
//! whoever asks; going there takes a hundred bytes of the coroutine's. Suspending costs no more for all this: the command
//! to leave a backtrace is one more that it may be resumed with.

#![allow(unsafe_code)]

use std::backtrace::Backtrace;
use std::cell::Cell;
use std::{io, ptr};

use corosensei::{CoroutineResult, Yielder};

use crate::home::Home;

use super::Coroutine;
use super::control::{Control, Own, Resume, State};

/// More than what going back to the asker's stack takes, in bytes.
const ROOM: usize = 2048;

impl Coroutine {
    /// The backtrace of a suspended coroutine: where it waits, and who called whom to get there. It is captured whatever
    /// `RUST_BACKTRACE` says. The coroutine does not notice. Beyond its root follow the frames of whoever asks.
    ///
    /// For a running one call [`Backtrace::force_capture`] in it: that goes on into the stacks of those that entered it.
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
    /// It was never entered, and has no frames yet; it is entered now; it has ended; or less than 2 KiB of its stack are
    /// left.
    ///
    /// # Control
    ///
    /// Runs nothing of the coroutine's own.
    pub fn backtrace(self) -> io::Result<Backtrace> {
        let refused = |kind, why: &str| Err(io::Error::new(kind, format!("no backtrace of coroutine {self}: {why}")));
        let Some(home) = Home::current().filter(|_| self.id.is_live()) else {
            return refused(io::ErrorKind::NotFound, "it has ended, or is not of this thread");
        };
        let own = home.own(self.id.block);
        match own.state.get() {
            State::Suspended | State::Scheduled if !own.has_started() => {
                refused(io::ErrorKind::NotFound, "it was never entered, so it has no frames yet")
            }
            State::Suspended | State::Scheduled => match home.trace(self.id.block) {
                Some(trace) => Ok(trace),
                None => refused(io::ErrorKind::StorageFull, "less than 2 KiB of its stack are left"),
            },
            State::Entered => refused(
                io::ErrorKind::ResourceBusy,
                "it is on the stack; call std's Backtrace::force_capture in the one that runs",
            ),
            State::Finished | State::Free => refused(io::ErrorKind::NotFound, "it has ended"),
        }
    }
}

impl Own {
    /// Whether a coroutine that is suspended was ever entered.
    fn has_started(&self) -> bool {
        // SAFETY: the callers' states are Suspended and Scheduled, so the machine is in its place, and nobody uses it.
        unsafe { (*self.machine.get()).assume_init_ref() }.started()
    }
}

/// What passes between whoever asks, on whose stack it lies, and the one that is traced.
pub(crate) struct Request {
    of: &'static Control,
    found: Cell<Option<Backtrace>>,
}

impl Home {
    /// `None`: there was no room for it.
    fn trace(&self, block: &'static Control) -> Option<Backtrace> {
        let own = self.own(block);
        let request = Request { of: block, found: Cell::new(None) };
        // Entered meanwhile: a capture allocates, and a program's own allocator may do anything, but not enter this one.
        let state = own.state.replace(State::Entered);
        self.trace.set(&request);
        // SAFETY: *taken out while it runs*: as in `Home::resume`.
        let machine = unsafe { (*own.machine.get()).assume_init_mut() };
        self.switching.set(true);
        let result = machine.resume(Resume::Trace);
        self.switching.set(false);
        match result {
            CoroutineResult::Yield(()) => own.state.set(state),
            CoroutineResult::Return(()) => unreachable!("one that is traced goes on waiting"),
        }
        request.found.take()
    }
}

/// In the coroutine that is traced, on its stack: leaves the backtrace for [`Home::trace`]. Returns by whom it suspends
/// again. Takes nothing, so that a coroutine that suspends need not keep it.
#[cold]
#[inline(never)]
pub(crate) fn leave_trace() -> *const Yielder<Resume, ()> {
    let home = Home::expect("a backtrace");
    // SAFETY: `Home::trace` has set it, and returns only when this coroutine has suspended again.
    let request = unsafe { &*home.trace.get() };
    let own = home.own(request.of);
    let yielder = own.yielder.get();
    let here = 0u8;
    let lowest = own.lease.get().map_or(usize::MAX, |lease| lease.guard().end);
    let left = ptr::from_ref(&here).addr().saturating_sub(lowest);
    // AddressSanitizer keeps locals elsewhere, so there the address tells nothing.
    if left >= ROOM || cfg!(feature = "sanitizer") {
        home.switching.set(true);
        // SAFETY: the yielder lies at the root of the stack that this runs on, so it lives.
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
