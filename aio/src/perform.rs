//! The life of one request, in the stack frame of its caller.
//!
//! ```text
//!   begin     called      allocates a slot, queues, possibly submits
//!   suspend   inlined     until the slot has a result
//!   end       called      frees the slot
//! ```
//!
//! The processor's return predictor expects each return to match its most recent calls. A frame
//! that is suspended and returned from later, after other stacks have run, mispredicts twice. So
//! the suspension, and nothing else, is inlined into the caller, all the way up to
//! [`File::read_at`](crate::File::read_at).

#![allow(unsafe_code)]

use std::mem;

use coralio_runtime::{AtHome, can_suspend, yield_now};

use crate::engine::Engine;
use crate::kernel::{Kernel, Operation};
use crate::policy::Policy;
use crate::request::Slot;

/// An operation. With `nowait`, the kernel fails it instead of blocking in submit (`EAGAIN`, or
/// `EOPNOTSUPP` where it cannot tell).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) operation: Operation,
    pub(crate) nowait: bool,
}

/// The engine operations that a request needs, independent of the engine's type.
pub(crate) trait Performs {
    /// Queues a request for the running coroutine, and submits unless it may be batched with
    /// others. Returns `None` if the request is not allowed, see [`refusal`](Self::refusal).
    ///
    /// # Control
    ///
    /// May enter other coroutines.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`], until the slot has a result.
    unsafe fn begin(&self, here: AtHome<'_>, attempt: &Attempt) -> Option<&Slot>;

    /// Frees the slot, on the home thread of the context that made the request.
    fn end(&self, here: AtHome<'_>, slot: &Slot);

    /// Returns why there is no request, as a negative `errno`.
    fn refusal(&self, here: Option<AtHome<'_>>) -> i64;

    /// Cancels the request because its coroutine ends early (rule E11). Returns the result if the
    /// request has thereby ended.
    fn cancel(&self, slot: &Slot) -> Option<i64>;

    /// Waits for the result without suspending, because the stack unwinds or cannot switch for
    /// another reason. Coroutines whose requests complete meanwhile are woken and run later.
    fn wait_in_place(&self, slot: &Slot) -> i64;

    /// Ends the request of an unwinding stack: returns when the kernel no longer uses its memory,
    /// cancelling it if possible.
    fn abandon(&self, slot: &Slot);
}

/// Maximum number of `EAGAIN` retries per operation; a further `EAGAIN` is its result.
const MOST_AGAIN: u32 = 16;

/// Performs one operation and returns the kernel's result; an error is a negative `errno`. Retries
/// `EINTR`, and `EAGAIN` up to [`MOST_AGAIN`] times (rule E10): FUSE and network file systems
/// complete requests with both.
///
/// # Panics
///
/// Outside a coroutine.
///
/// # Control
///
/// May yield; may enter other coroutines.
///
/// # Safety
///
/// As [`Engine::transfer`].
#[inline(always)]
pub(crate) unsafe fn perform(engine: &(impl Performs + ?Sized), attempt: &Attempt) -> i64 {
    // SAFETY: promised by the caller.
    let result = unsafe { perform_once(engine, attempt) };
    if result >= 0 {
        return result;
    }
    // SAFETY: promised by the caller; the failed request has ended.
    unsafe { retry(engine, attempt, result) }
}

/// Repeats an operation while `result` is an error to retry.
///
/// # Safety
///
/// As [`Engine::transfer`].
#[cold]
unsafe fn retry(engine: &(impl Performs + ?Sized), attempt: &Attempt, mut result: i64) -> i64 {
    let mut again = 0;
    loop {
        match (-result) as i32 {
            libc::EINTR => {}
            // With `nowait`, EAGAIN is the refusal that the caller asked for.
            libc::EAGAIN if !attempt.nowait && again < MOST_AGAIN => again += 1,
            _ => return result,
        }
        // A file system may fail the request within submit, again and again: let other coroutines
        // run in between, which may cancel this one.
        if can_suspend() {
            yield_now();
        }
        // SAFETY: promised by the caller.
        result = unsafe { perform_once(engine, attempt) };
    }
}

/// Makes one request and returns its result.
///
/// # Safety
///
/// As [`Engine::transfer`].
#[inline(always)]
unsafe fn perform_once(engine: &(impl Performs + ?Sized), attempt: &Attempt) -> i64 {
    // SAFETY: used only within this call.
    let Some(here) = (unsafe { AtHome::here() }) else { return engine.refusal(None) };
    // SAFETY: promised by the caller; this function neither returns nor unwinds before the slot has
    // a result.
    let Some(slot) = (unsafe { engine.begin(here, attempt) }) else { return engine.refusal(Some(here)) };
    let request = InFlight { engine, slot, here };
    // Rule E7: checks for the result before suspending and after each resumption. Submit may have
    // reaped the request already.
    let found = here.suspend_until(|| slot.result(), || engine.cancel(slot));
    let result = found.unwrap_or_else(|| engine.wait_in_place(slot));
    mem::forget(request);
    engine.end(here, slot);
    result
}

/// A request that the kernel may hold. If the stack unwinds over it, the request is cancelled and
/// awaited (rules C9, E13).
struct InFlight<'a, E: Performs + ?Sized> {
    engine: &'a E,
    slot: &'a Slot,
    here: AtHome<'a>,
}

impl<E: Performs + ?Sized> Drop for InFlight<'_, E> {
    #[cold]
    fn drop(&mut self) {
        self.engine.abandon(self.slot);
        self.engine.end(self.here, self.slot);
    }
}

impl<K: Kernel, P: Policy> Performs for Engine<K, P> {
    unsafe fn begin(&self, here: AtHome<'_>, attempt: &Attempt) -> Option<&Slot> {
        let Some(current) = here.current() else { outside_a_coroutine() };
        if !self.context.is_at(here) || here.check_cancelled().is_err() {
            return None;
        }
        let slot = self.requests.allocate(current);
        let request = InFlight { engine: self, slot, here };
        let gathers = self.enqueue(here, attempt, slot.key().to_bits());
        if !gathers {
            self.submit_from(Some(here));
        }
        // The caller creates its own.
        mem::forget(request);
        Some(slot)
    }

    fn end(&self, here: AtHome<'_>, slot: &Slot) {
        if self.context.is_at(here) { self.requests.free(slot) } else { self.requests.free_from_elsewhere(slot) }
    }

    #[cold]
    fn refusal(&self, here: Option<AtHome<'_>>) -> i64 {
        let errno = match here {
            Some(here) if self.context.is_at(here) => libc::ECANCELED,
            _ => libc::ENOTCONN,
        };
        -i64::from(errno)
    }

    #[cold]
    fn cancel(&self, slot: &Slot) -> Option<i64> {
        Engine::cancel(self, slot.key().to_bits())
    }

    #[cold]
    fn wait_in_place(&self, slot: &Slot) -> i64 {
        Engine::wait_in_place(self, slot)
    }

    #[cold]
    fn abandon(&self, slot: &Slot) {
        Engine::abandon(self, slot);
    }
}

#[cold]
fn outside_a_coroutine() -> ! {
    panic!("I/O outside a coroutine: only a coroutine can wait for it; call it inside `run(|| ..)` or `spawn`")
}
