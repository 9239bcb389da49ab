//! Reaping: from the completion ring to the coroutine; re-entrant, one completion at a time (rules
//! E5, E6, E9).
//!
//! The ring itself holds the shared cursor. A reap copies one completion, decrements the in-flight
//! count, advances the cursor, and only then wakes the coroutine. That coroutine may run
//! immediately, submit, and reap in turn: the nested reap continues at the cursor, and the outer
//! one then finds the ring empty. Nothing of the engine is borrowed meanwhile.
//!
//! Rule E5 requires a bottom half to be scheduled first, so that a nested poll looks at the ring.
//! Here every iteration looks at the ring anyway, in
//! [`dispatch`](coralio_runtime::EventSource::dispatch); it costs one memory access.

#![allow(unsafe_code)]

use std::sync::atomic::Ordering;

use coralio_runtime::HomeRef;
use coralio_runtime::trace::{RequestState, Span};

use super::Engine;
use super::guards::{AfterReap, Guards, InFlightDecrement, RingCursor, WakeGuard};
use super::owner::PollLock;
use super::stats::add;
use crate::backend::Backend;

impl<B: Backend, G: Guards> Engine<B, G> {
    /// Processes all completions on the ring. Returns whether there were any. `here` is `None` if
    /// another thread polls the context.
    ///
    /// # Control
    ///
    /// May enter coroutines, on the home thread.
    pub(crate) fn reap_from(&self, here: Option<HomeRef<'_>>) -> bool {
        self.reap_under(PollLock::new(here), here)
    }

    /// As `reap_from`, for a caller that has acquired the context's lock.
    pub(super) fn reap_under(&self, lock: PollLock<'_>, here: Option<HomeRef<'_>>) -> bool {
        let _lock = G::REAP_LOCKS.then_some(lock);
        let _busy = here.map(|_| self.owner.busy());
        // SAFETY: the context's lock is held; without `REAP_LOCKS`, the author of the guards is
        // responsible.
        let peek = || unsafe { self.backend.peek_completion() };
        // SAFETY: as above; a completion was peeked, and is delivered once.
        let commit = || unsafe { self.backend.advance() };
        let mut progress = false;
        let _told = self.tell_span(Span::Reap);
        match G::RING_CURSOR {
            RingCursor::Shared => {
                while let Some(completion) = peek() {
                    self.tell(completion.key, RequestState::Done(completion.result));
                    if G::IN_FLIGHT_DECREMENT == InFlightDecrement::BeforeWaking {
                        self.count_down();
                    }
                    commit();
                    self.finish(here, completion.key, completion.result);
                    if G::IN_FLIGHT_DECREMENT == InFlightDecrement::AfterWaking {
                        self.count_down();
                    }
                    progress = true;
                    if HomeRef::in_child() {
                        // The coroutine forked. The ring is in memory shared with the parent.
                        break;
                    }
                }
            }
            RingCursor::PerReap => {
                let mut batch = Vec::new();
                while let Some(completion) = peek() {
                    self.tell(completion.key, RequestState::Done(completion.result));
                    commit();
                    batch.push(completion);
                }
                for completion in batch {
                    self.count_down();
                    self.finish(here, completion.key, completion.result);
                    progress = true;
                }
            }
        }
        if progress {
            match G::AFTER_REAP {
                AfterReap::LoopSubmits => {}
                AfterReap::ReapSubmits => _ = self.submit_from(here),
                AfterReap::NobodySubmits => {
                    let left = self.pending.len() > 0;
                    self.blocked.store(left, Ordering::Relaxed);
                }
            }
        }
        progress
    }

    /// Decrements `in_flight` before the coroutine is woken, so that there is room again if that
    /// coroutine polls or panics. Checked: a completion reaped twice is detected here (rule E9).
    #[inline]
    pub(super) fn count_down(&self) {
        let Some(in_flight) = self.in_flight.load(Ordering::Relaxed).checked_sub(1) else { self.below_zero() };
        // Plain load and store: the lock admits one writer at a time.
        self.in_flight.store(in_flight, Ordering::Relaxed);
        self.blocked.store(false, Ordering::Relaxed);
        add(&self.counters.completions, 1);
        if in_flight == 0 {
            self.reached_zero();
        }
    }

    /// Nothing is in flight any more: notifies threads that wait for that in `poll_while` (rule
    /// X9).
    ///
    /// No fence is needed: the counter was changed under the context's lock. A waiter in
    /// `poll_while` registers first and evaluates its condition under that lock. So either its
    /// condition sees the change, or this call sees the waiter.
    #[inline]
    fn reached_zero(&self) {
        if let Some(context) = self.owner.get().filter(|context| context.is_awaited()) {
            context.notify();
        }
    }

    /// As `reached_zero`, after a request that ended without a completion.
    pub(crate) fn notify_if_idle(&self) {
        if self.in_flight.load(Ordering::Relaxed) == 0 && self.pending.len() == 0 {
            self.reached_zero();
        }
    }

    #[cold]
    fn below_zero(&self) -> ! {
        self.tell_violation("in_flight below zero");
        panic!("in_flight below zero: a completion was reaped twice ({})", self.describe_state())
    }

    /// Stores a request's result and makes its coroutine runnable.
    ///
    /// # Control
    ///
    /// May enter the coroutine, on the home thread.
    #[inline(always)]
    pub(crate) fn finish(&self, here: Option<HomeRef<'_>>, key: u64, result: i64) {
        let Some(waiter) = self.requests.complete(key, result, G::REAP_LOCKS) else {
            self.unknown_completion(key, result)
        };
        let Some(here) = here else {
            // Reaped on another thread. The home thread determines whether the coroutine is
            // entered.
            return self.owner.get().into_iter().for_each(|context| context.schedule(waiter));
        };
        match G::WAKE_GUARD {
            // Rule E6: an entered coroutine is inside submit further down this stack, and finds its
            // result before it yields.
            WakeGuard::WakeUnlessEntered => _ = here.wake_unless_entered(waiter),
            WakeGuard::EnterUnlessCurrent => {
                let waits = here.coroutine(waiter).expect("the request has a waiter");
                if here.current() == Some(waiter) {
                    // The coroutine is entered, so this only records the wake in the event log.
                    waits.enter_unless_entered();
                } else {
                    waits.enter();
                }
            }
            WakeGuard::None => here.coroutine(waiter).expect("the request has a waiter").enter(),
        }
    }

    #[cold]
    fn unknown_completion(&self, key: u64, result: i64) -> ! {
        self.tell_violation("a completion for a request that is not in flight");
        panic!(
            "a completion for a request that is not in flight: key {key:#x}, result {result} ({})",
            self.describe_state()
        )
    }
}
