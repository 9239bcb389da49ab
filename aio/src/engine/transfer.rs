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

use coralio_runtime::{HomeRef, can_suspend, yield_now};

use super::erased::ErasedEngine;
use super::request::Slot;
use crate::backend::Operation;

/// An operation. With `nowait`, the kernel fails it instead of blocking in submit (`EAGAIN`, or
/// `EOPNOTSUPP` where it cannot tell).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    pub(crate) nowait: bool,
}

/// Maximum number of `EAGAIN` retries per operation; a further `EAGAIN` is its result.
const MAX_AGAIN: u32 = 16;

/// Performs one operation and returns the kernel's result; an error is a negative `errno`. Retries
/// `EINTR`, and `EAGAIN` up to [`MAX_AGAIN`] times (rule E10): FUSE and network file systems
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
pub(crate) unsafe fn submit_and_wait(engine: &(impl ErasedEngine + ?Sized), attempt: &Request) -> i64 {
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
unsafe fn retry(engine: &(impl ErasedEngine + ?Sized), attempt: &Request, mut result: i64) -> i64 {
    let mut again = 0;
    loop {
        match (-result) as i32 {
            libc::EINTR => {}
            // With `nowait`, EAGAIN is the refusal that the caller asked for.
            libc::EAGAIN if !attempt.nowait && again < MAX_AGAIN => again += 1,
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
unsafe fn perform_once(engine: &(impl ErasedEngine + ?Sized), attempt: &Request) -> i64 {
    // SAFETY: used only within this call.
    let Some(here) = (unsafe { HomeRef::here() }) else { return engine.refusal(None) };
    // SAFETY: promised by the caller; this function neither returns nor unwinds before the slot has
    // a result.
    let Some(slot) = (unsafe { engine.begin(here, attempt) }) else { return engine.refusal(Some(here)) };
    let request = InFlight { engine, slot };
    // Rule E7: checks for the result before suspending and after each resumption. Submit may have
    // reaped the request already.
    let found = here.suspend_until(|| slot.result(), || engine.cancel(slot));
    let result = found.unwrap_or_else(|| engine.wait_in_place(slot));
    mem::forget(request);
    engine.end(slot);
    result
}

/// A request that the kernel may hold. If the stack unwinds over it, the request is cancelled and
/// awaited (rules C9, E13).
pub(super) struct InFlight<'a, E: ErasedEngine + ?Sized> {
    pub(super) engine: &'a E,
    pub(super) slot: &'a Slot,
}

impl<E: ErasedEngine + ?Sized> Drop for InFlight<'_, E> {
    #[cold]
    fn drop(&mut self) {
        self.engine.abandon(self.slot);
        self.engine.end(self.slot);
    }
}
