//! Walks the stack of a suspended coroutine, for a backtrace, by switching to it.
//!
//! ```text
//!   the requester                        the coroutine
//!   -------------                        -------------
//!   walk      -- Resume::Backtrace -->   in `switch_out`, where it waits
//!                                          room left on its stack?
//!     captures, on the requester's  <-     the stack pointer moves back to the requester's stack;
//!     stack                                the chain of frames does not
//!                                  -->     stores what it has found
//!   returns it   <--------------------   waits as before
//! ```
//!
//! No other coroutine runs meanwhile, no frame is pushed, no list changes. The capture needs much
//! stack, so it runs on the requester's stack; the switch back to that stack takes about a hundred
//! bytes of the coroutine's. This adds no cost to a suspension: "take a backtrace" is one of the
//! commands with which a suspended coroutine can be resumed.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::ptr;

use corosensei::{CoroutineResult, Yielder};

use crate::coroutine::{ControlBlock, Resume, State};
use crate::scheduler::Scheduler;

/// An upper bound, in bytes, of the stack needed to switch back to the requester's stack.
const ROOM: usize = 2048;

thread_local! {
    /// The request in progress, if any.
    static PENDING: Cell<*const Request> = const { Cell::new(ptr::null()) };
}

/// A request. It lies on the requester's stack; the traced coroutine fills it in.
struct Request {
    of: &'static ControlBlock,
    look: fn() -> Box<dyn Any>,
    found: Cell<Option<Box<dyn Any>>>,
}

impl Scheduler {
    /// Returns the `T` that `look` returns on a stack from which an unwinder finds the frames of a
    /// suspended coroutine that has started; `None` if its stack has no room for the switch.
    pub(crate) fn walk<T: 'static>(&self, block: &'static ControlBlock, look: fn() -> Box<dyn Any>) -> Option<T> {
        let local = self.local(block);
        let request = Request { of: block, look, found: Cell::new(None) };
        // Marked as entered: a capture allocates, and the program's allocator may run any code,
        // which must not enter this coroutine.
        let state = local.state.replace(State::Entered);
        PENDING.set(&request);
        // SAFETY: *taken out while it runs*: as in `Scheduler::switch_in`.
        let raw = unsafe { (*local.raw.get()).assume_init_mut() };
        self.switching.set(true);
        let result = raw.resume(Resume::Backtrace);
        self.switching.set(false);
        match result {
            CoroutineResult::Yield(()) => local.state.set(state),
            CoroutineResult::Return(()) => unreachable!("a traced coroutine keeps waiting"),
        }
        Some(*request.found.take()?.downcast().expect("`look` returns a T"))
    }
}

/// Walks the stack of the traced coroutine, in which it runs, for `walk`.
/// Returns the yielder through which the coroutine suspends again. Takes no argument, so that a
/// suspending coroutine need not keep one.
#[cold]
#[inline(never)]
pub(super) fn store_backtrace() -> *const Yielder<Resume, ()> {
    let scheduler = Scheduler::expect("a backtrace");
    // SAFETY: `walk` has set the pointer to its own local, and returns only when this coroutine
    // has suspended again.
    let request = unsafe { &*PENDING.get() };
    let local = scheduler.local(request.of);
    let yielder = local.yielder.get();
    let here = 0u8;
    let lowest = local.lease.get().map_or(usize::MAX, |lease| lease.guard().end);
    let left = ptr::from_ref(&here).addr().saturating_sub(lowest);
    // AddressSanitizer keeps locals elsewhere, so their address says nothing about the room left.
    if left >= ROOM || cfg!(feature = "sanitizer") {
        scheduler.switching.set(true);
        let look = request.look;
        // SAFETY: the yielder lies at the root of the running stack, so it is alive.
        let found = unsafe { &*yielder }.on_parent_stack(move || {
            let switching = &Scheduler::expect("a backtrace").switching;
            switching.set(false);
            let found = look();
            switching.set(true);
            found
        });
        scheduler.switching.set(false);
        request.found.set(Some(found));
    }
    yielder
}
