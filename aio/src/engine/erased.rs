//! The engine as files, the driver and the loop see it: with the types of its backend and guards
//! erased.
//!
//! The engine is generic, so that its submit and reap paths are compiled separately for each
//! backend. A request costs two virtual calls, both well predicted.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coralio_runtime::{AioContext, EventSource, Flush, HomeRef, HomeToken, LoopToken, SourceState};

use super::guards::{Guards, Notifier, OnCancel, ShortRead, UnplugDecrement};
use super::owner::Owner;
use super::request::Slot;
use super::stats::{Detour, Stats, add};
use super::submit::Next;
use super::transfer::{InFlight, Request};
use super::{Engine, abort};
use crate::backend::Backend;

/// A plug delays requests for fewer loop iterations than this.
const MAX_PLUGGED_ROUNDS: u32 = 16;

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

    /// Returns whether a request made now is likely to share a submit with others: of coroutines
    /// that are ready, or that completions will wake.
    fn shares_submit(&self) -> bool;

    /// Performs a request on the calling thread, see [`in_place`](super::in_place), on the descriptor
    /// `fd`: the request may have a number that only the backend understands.
    ///
    /// # Control
    ///
    /// May yield.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    unsafe fn perform_in_place(&self, fd: RawFd, request: &Request) -> i64;

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

    fn plug_depth(&self) -> &AtomicU32;

    /// Ends one plug.
    fn unplug(&self);

    fn on_short(&self) -> ShortRead;

    /// Returns the context that the engine belongs to.
    fn owner(&self) -> &Owner;

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
}

impl<B: Backend, G: Guards> ErasedEngine for Engine<B, G> {
    unsafe fn begin(&self, here: HomeRef<'_>, attempt: &Request) -> Option<&Slot> {
        let Some(current) = here.current() else { outside_a_coroutine() };
        if !self.owner.is(|context| here.is_of(context)) || here.check_cancelled().is_err() {
            return None;
        }
        self.backend.before_request();
        let slot = self.requests.allocate(current);
        let request = InFlight { engine: self, slot };
        match self.enqueue(here, attempt, slot.key()) {
            Next::Batched => {}
            Next::Alone => self.submit_alone(here, slot),
            Next::Submit => _ = self.submit_from(Some(here)),
        }
        // The caller creates its own.
        mem::forget(request);
        Some(slot)
    }

    fn end(&self, slot: &Slot) {
        self.requests.free(slot);
    }

    fn shares_submit(&self) -> bool {
        // SAFETY: used only within this call.
        let has_ready = unsafe { HomeRef::here() }.is_some_and(HomeRef::has_ready);
        has_ready || self.pending.len() > 0 || self.has_completion()
    }

    unsafe fn perform_in_place(&self, fd: RawFd, request: &Request) -> i64 {
        // SAFETY: promised by the caller.
        unsafe { Engine::perform_in_place(self, fd, request) }
    }

    #[cold]
    fn refusal(&self, here: Option<HomeRef<'_>>) -> i64 {
        let errno = match here {
            Some(here) if self.owner.is(|context| here.is_of(context)) => libc::ECANCELED,
            _ => libc::ENOTCONN,
        };
        -i64::from(errno)
    }

    #[cold]
    fn cancel(&self, slot: &Slot) -> Option<i64> {
        let is_over = self.remove_or_cancel(slot.key()) || G::ON_CANCEL == OnCancel::ReturnsAtOnce;
        is_over.then_some(-i64::from(libc::ECANCELED))
    }

    #[cold]
    fn wait_in_place(&self, slot: &Slot) -> i64 {
        let waited = self.owner.at_home(|here| self.wait_at_home(here, slot));
        waited.unwrap_or_else(|| {
            abort(&format!("the engine has left a context that waits for it ({})", self.describe_state()))
        })
    }

    #[cold]
    fn abandon(&self, slot: &Slot) {
        if slot.result().is_none() && !self.remove_or_cancel(slot.key()) {
            self.wait_in_place(slot);
        }
    }

    fn stats(&self) -> Stats {
        Engine::stats(self)
    }

    fn plug_depth(&self) -> &AtomicU32 {
        &self.plug_depth
    }

    fn unplug(&self) {
        let counts = match G::UNPLUG_DECREMENT {
            UnplugDecrement::Always => true,
            UnplugDecrement::OnlyWhenNotFull => self.pending.len() < self.depth as usize,
        };
        self.plug_depth.fetch_sub(u32::from(counts), Ordering::Relaxed);
        // A destructor enters no coroutine: the loop's next iteration submits, and a sleeping loop
        // is woken.
        self.owner.get().into_iter().for_each(AioContext::wake_loop);
    }

    fn on_short(&self) -> ShortRead {
        G::SHORT_READ
    }

    fn owner(&self) -> &Owner {
        &self.owner
    }

    fn register(&self, fd: BorrowedFd<'_>) -> RawFd {
        // SAFETY: only requests of the file being registered use the number, and only until
        // `Registered` unregisters it.
        unsafe { self.backend.register(fd) }
    }

    unsafe fn unregister(&self, number: RawFd) {
        // SAFETY: promised by the caller.
        unsafe { self.backend.unregister(number) };
    }

    fn set_slow_submit_threshold(&self, limit: Duration) {
        self.submit_timer.set_limit(limit);
    }

    fn count_detour(&self, detour: Detour) {
        add(self.counters.detour(detour), 1);
    }

    fn is_drained(&self) -> bool {
        !self.owner.is_busy() && self.state() == SourceState::Idle && self.requests.are_all_free()
    }
}

#[cold]
pub(super) fn outside_a_coroutine() -> ! {
    panic!("I/O outside a coroutine: only a coroutine can wait for it; call it inside `run(|| ..)` or `spawn`")
}

impl<B: Backend, G: Guards> Engine<B, G> {
    #[inline]
    fn has_completion(&self) -> bool {
        // SAFETY: only checks for a completion, which needs no lock.
        unsafe { self.backend.peek_completion() }.is_some()
    }
}

/// The loop's calls, which the driver passes on.
impl<B: Backend, G: Guards> EventSource for Engine<B, G> {
    fn dispatch(&self, token: LoopToken<'_>) -> bool {
        if !self.owner.is(|context| token.is_of(context)) {
            return false;
        }
        self.immediate_work.store(0, Ordering::Relaxed);
        self.backend.before_dispatch();
        self.reap_from(token.at_home())
    }

    fn flush(&self, token: LoopToken<'_>, when: Flush) -> bool {
        if !self.owner.is(|context| token.is_of(context)) {
            return false;
        }
        // Often called twice, at the end of an iteration and before a sleep.
        let submits = self.can_submit();
        let has_deferred = B::DEFERS && self.backend.has_deferred();
        let is_idle = match when {
            Flush::Release => !self.deferral.is_holding(),
            // The sleep submits deferred requests.
            Flush::BeforeSleep => !submits && !self.has_completion(),
            _ => !submits && !has_deferred && !self.has_completion(),
        };
        if is_idle {
            return false;
        }
        let here = token.at_home();
        // A thread that reaps off home has woken the home thread, which submits pending requests
        // in its own iteration.
        if B::SUBMITS_AT_HOME && here.is_none() {
            return false;
        }
        // Before a sleep plugged requests are submitted too: nothing else would submit them (rule
        // E2). Nor may a loop that never sleeps delay them forever.
        let plugged = self.plug_depth.load(Ordering::Relaxed) > 0;
        let plugged_rounds = self.plugged_rounds.load(Ordering::Relaxed) + 1;
        if plugged && !when.precedes_wait() && plugged_rounds < MAX_PLUGGED_ROUNDS {
            self.plugged_rounds.store(plugged_rounds, Ordering::Relaxed);
            return false;
        }
        self.plugged_rounds.store(0, Ordering::Relaxed);
        if HomeRef::in_child() {
            return false;
        }
        // A request that could not be deferred to the sleep before is submitted now: none waits for
        // more than one iteration.
        let defers = B::DEFERS && submits && !has_deferred && self.deferral.is_expected();
        match (here, when) {
            (Some(_), Flush::MayHold) if defers && self.deferral.hold() => false,
            (Some(here), Flush::BeforeSleep) if defers => {
                self.defer(here);
                false
            }
            _ => self.submit_from(here),
        }
    }

    fn state(&self) -> SourceState {
        if HomeRef::in_child() {
            // The ring and its requests are the parent's.
            SourceState::Idle
        } else if self.has_completion() {
            SourceState::Ready
        } else if self.can_submit() {
            if B::DEFERS && self.deferral.is_holding() { SourceState::Held } else { SourceState::Ready }
        } else if self.in_flight.load(Ordering::Relaxed) > 0 {
            SourceState::Waiting
        } else {
            SourceState::Idle
        }
    }

    fn describe(&self) -> String {
        self.describe_state()
    }

    fn sleep(
        &self,
        token: HomeToken<'_>,
        other: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> Option<io::Result<bool>> {
        if !self.owner.is(|context| token.is_of(context)) {
            return None;
        }
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let waits = in_flight > 0 && G::NOTIFIER == Notifier::Wakes;
        let idle = self.backend.sleep_idle(in_flight, self.pending.len(), waits, other, timeout);
        if idle.is_none() && !waits {
            return None;
        }
        let slept = idle.unwrap_or_else(|| {
            add(&self.counters.sleeps, 1);
            // SAFETY: this is the loop of the context that the engine is with, on its home thread.
            // Only that thread sleeps and, if the backend requires it, submits.
            unsafe { self.backend.wait(Some(other), timeout) }
        });
        Some(slept.map(|()| self.has_completion()))
    }

    fn close(&self, token: HomeToken<'_>) {
        if self.owner.is(|context| token.is_of(context)) {
            self.owner.at_home(|here| self.finish_in_place(here));
        }
    }
}
