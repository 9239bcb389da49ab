//! The engine as files and the driver see it: with the types of its backend and guards erased.
//!
//! The engine is generic, so that its submit and reap paths are compiled separately for each
//! backend. A request costs two virtual calls, both well predicted.

#![allow(unsafe_code)]

use std::mem;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coralio_runtime::{AioContext, EventSource, HomeRef};

use super::Engine;
use super::guards::{Guards, ShortRead};
use super::plug::Plug;
use super::request::Slot;
use super::stats::{Detour, Stats, add};
use super::transfer::{InFlight, Request};
use crate::backend::Backend;

/// The operations of an engine of unknown type.
///
/// The methods that concern one request are called on the home thread of the engine's context.
pub(crate) trait ErasedEngine: EventSource {
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
    unsafe fn begin(&self, here: HomeRef<'_>, attempt: &Request) -> Option<&Slot>;

    /// Frees the slot.
    fn end(&self, slot: &Slot);

    /// Returns why there is no request, as a negative `errno`.
    fn refusal(&self, here: Option<HomeRef<'_>>) -> i64;

    /// Cancels the request because its coroutine ends early (rule E11). Returns the result if the
    /// request has thereby ended.
    fn cancel(&self, slot: &Slot) -> Option<i64>;

    /// Waits for the result without suspending, because the stack unwinds or cannot switch for
    /// another reason. Coroutines whose requests complete meanwhile are woken and run later.
    fn wait_in_place(&self, slot: &Slot) -> i64;

    /// Ends the request of an unwinding stack: returns when the kernel no longer uses its memory,
    /// cancelling it if possible.
    fn abandon(&self, slot: &Slot);

    fn stats(&self) -> Stats;

    fn in_flight(&self) -> u32;

    /// See [`Backend::completions_fd`].
    fn completions_fd(&self) -> Option<BorrowedFd<'_>>;

    fn plug(self: Arc<Self>) -> Plug;

    fn on_short(&self) -> ShortRead;

    /// Returns whether the calling thread is the home thread of the engine's context.
    fn is_here(&self) -> bool;

    fn register(&self, fd: BorrowedFd<'_>) -> RawFd;

    /// # Safety
    ///
    /// As [`Backend::unregister`].
    unsafe fn unregister(&self, number: RawFd);

    fn set_slow_submit_threshold(&self, limit: Duration);

    fn count_detour(&self, detour: Detour);

    /// Returns whether no request is pending, in flight or awaited, and no reap or submit is on the
    /// stack. Called on the home thread.
    fn is_drained(&self) -> bool;

    /// Returns whether a reap or submit is on the stack. Called on the home thread.
    fn is_busy(&self) -> bool;

    /// Makes the drained engine leave its context, or join `context`. Called on the home thread of
    /// that context.
    fn move_to(&self, context: Option<&AioContext>);
}

impl<B: Backend, G: Guards> ErasedEngine for Engine<B, G> {
    unsafe fn begin(&self, here: HomeRef<'_>, attempt: &Request) -> Option<&Slot> {
        let Some(current) = here.current() else { outside_a_coroutine() };
        if !self.owner.is_at(here) || here.check_cancelled().is_err() {
            return None;
        }
        self.backend.before_request();
        let slot = self.requests.allocate(current);
        let request = InFlight { engine: self, slot };
        let gathers = self.enqueue(here, attempt, slot.key().to_bits());
        if !gathers {
            self.submit_from(Some(here));
        }
        // The caller creates its own.
        mem::forget(request);
        Some(slot)
    }

    fn end(&self, slot: &Slot) {
        self.requests.free(slot);
    }

    #[cold]
    fn refusal(&self, here: Option<HomeRef<'_>>) -> i64 {
        let errno = match here {
            Some(here) if self.owner.is_at(here) => libc::ECANCELED,
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

    fn stats(&self) -> Stats {
        Engine::stats(self)
    }

    fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn completions_fd(&self) -> Option<BorrowedFd<'_>> {
        self.backend.completions_fd()
    }

    fn plug(self: Arc<Self>) -> Plug {
        Engine::plug(&self)
    }

    fn on_short(&self) -> ShortRead {
        G::SHORT_READ
    }

    fn is_here(&self) -> bool {
        self.owner.is_here()
    }

    fn register(&self, fd: BorrowedFd<'_>) -> RawFd {
        // SAFETY: the number is used only in requests of the file that registers, until
        // `Registered` unregisters it.
        unsafe { self.backend.register(fd) }
    }

    unsafe fn unregister(&self, number: RawFd) {
        // SAFETY: promised by the caller.
        unsafe { self.backend.unregister(number) };
    }

    fn set_slow_submit_threshold(&self, limit: Duration) {
        Engine::set_slow_submit_threshold(self, limit);
    }

    fn count_detour(&self, detour: Detour) {
        add(self.counters.detour(detour), 1);
    }

    fn is_drained(&self) -> bool {
        Engine::is_drained(self)
    }

    fn is_busy(&self) -> bool {
        self.owner.is_busy()
    }

    fn move_to(&self, context: Option<&AioContext>) {
        match context {
            Some(context) => self.owner.join(context),
            None => self.owner.leave(),
        }
    }
}

#[cold]
fn outside_a_coroutine() -> ! {
    panic!("I/O outside a coroutine: only a coroutine can wait for it; call it inside `run(|| ..)` or `spawn`")
}
