//! One request, from its beginning to its end, in the frame of whoever asks for it.
//!
//! ```text
//!   begin     called      a slot, queued, submitted perhaps
//!   suspend   in line     until the slot has a result
//!   end       called      the slot is free again
//! ```
//!
//! The processor expects returns to match the calls that it saw last. A frame that is left on another stack and returned from
//! later breaks that twice. So the suspension, and nothing else, is compiled into the caller, all the way up to
//! [`File::read_at`](crate::File::read_at).

#![allow(unsafe_code)]

use std::mem;

use coralio_runtime::{AtHome, can_suspend, yield_now};

use crate::engine::Engine;
use crate::kernel::{Kernel, Operation};
use crate::policy::Policy;
use crate::request::Slot;

/// An operation; with `nowait` one that the kernel shall refuse rather than block within submit (`EAGAIN`, or `EOPNOTSUPP` where it
/// cannot tell).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) operation: Operation,
    pub(crate) nowait: bool,
}

/// What a request needs of its engine, whichever that is.
pub(crate) trait Performs {
    /// Queues a request for the running coroutine, and submits unless it may gather with others. `None`: it may not be made, see
    /// [`refusal`](Self::refusal).
    ///
    /// # Control
    ///
    /// May enter other coroutines.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`], until the slot has a result.
    unsafe fn begin(&self, here: AtHome<'_>, attempt: &Attempt) -> Option<&Slot>;

    /// Gives the slot back, at home in the context that the request was made in.
    fn end(&self, here: AtHome<'_>, slot: &Slot);

    /// Why there is no request, as a negative `errno`.
    fn refusal(&self, here: Option<AtHome<'_>>) -> i64;

    /// The waiting coroutine is to end early (rule E11). Returns its result, if that was all.
    fn cancel(&self, slot: &Slot) -> Option<i64>;

    /// Waits for the result without leaving this stack: it unwinds, or must not be left for another reason. Others that
    /// complete meanwhile are woken, and run later.
    fn wait_in_place(&self, slot: &Slot) -> i64;

    /// Ends a request whose stack unwinds: returns when the kernel is done with its memory, early if it can be cancelled.
    fn abandon(&self, slot: &Slot);
}

/// `EAGAIN` completions of one operation that are retried; the next one is its result.
const MOST_AGAIN: u32 = 16;

/// Does one operation, and returns the kernel's result; an error is a negative `errno`. Retries `EINTR`, and `EAGAIN` up to
/// [`MOST_AGAIN`] times (rule E10): FUSE and network file systems complete requests with both.
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
    // SAFETY: the caller's promise.
    let result = unsafe { perform_once(engine, attempt) };
    if result >= 0 {
        return result;
    }
    // SAFETY: the caller's promise; the request that failed is over.
    unsafe { retry(engine, attempt, result) }
}

/// Repeats an operation while `result`, an error, is one to retry.
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
            // Of a request that must not block, it is the refusal that the caller has asked for.
            libc::EAGAIN if !attempt.nowait && again < MOST_AGAIN => again += 1,
            _ => return result,
        }
        // A file system may answer within submit, and so again and again: others run in between, and may cancel this one.
        if can_suspend() {
            yield_now();
        }
        // SAFETY: the caller's promise.
        result = unsafe { perform_once(engine, attempt) };
    }
}

/// One request, and its result.
///
/// # Safety
///
/// As [`Engine::transfer`].
#[inline(always)]
unsafe fn perform_once(engine: &(impl Performs + ?Sized), attempt: &Attempt) -> i64 {
    // SAFETY: it is used in this call alone.
    let Some(here) = (unsafe { AtHome::here() }) else { return engine.refusal(None) };
    // SAFETY: the caller's promise; this does not return, and does not unwind, before the slot has a result.
    let Some(slot) = (unsafe { engine.begin(here, attempt) }) else { return engine.refusal(Some(here)) };
    let request = InFlight { engine, slot, here };
    // Rule E7: looks first, and again after each resumption. Submit may have reaped the request already.
    let found = here.suspend_until(|| slot.result(), || engine.cancel(slot));
    let result = found.unwrap_or_else(|| engine.wait_in_place(slot));
    mem::forget(request);
    engine.end(here, slot);
    result
}

/// A request that the kernel may have. If the stack unwinds over it, the request is cancelled, and its end waited for
/// (rules C9, E13).
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
        // The caller has one of its own.
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
    panic!("I/O outside a coroutine: there is nothing to suspend; call it inside `run(|| ..)` or `spawn`")
}
