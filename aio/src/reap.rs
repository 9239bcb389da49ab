//! From the ring to the coroutine: re-entrant, one completion at a time (rules E5, E6, E9).
//!
//! The ring is the shared cursor. A reap takes one completion by value, counts, moves the cursor,
//! and only then wakes the coroutine, which may run at once, submit, and reap from there: that
//! nested reap goes on where the cursor stands, and the outer one finds the ring empty. Nothing of
//! the engine is borrowed meanwhile.
//!
//! Rule E5 has a bottom half scheduled first, so that a nested poll comes to look at the ring. Here
//! every round looks at the ring anyway, which is a look at memory: the loop's
//! [`dispatch`](coralio_runtime::Source::dispatch).

#![allow(unsafe_code)]

use std::sync::atomic::Ordering;

use coralio_runtime::AtHome;
use coralio_runtime::trace::{RequestState, Span};

use crate::engine::{Engine, add};
use crate::kernel::{Completion, Kernel};
use crate::place::Held;
use crate::policy::{AfterReap, Counts, Cursor, OnCompletion, Policy};

impl<K: Kernel, P: Policy> Engine<K, P> {
    /// Completes what is on the ring. Returns whether anything was.
    ///
    /// # Control
    ///
    /// May enter coroutines, on the home thread.
    pub(crate) fn reap(&self) -> bool {
        self.context.at_home(|here| self.reap_from(Some(here))).unwrap_or_else(|| self.reap_from(None))
    }

    /// As `reap`, from home if `here` says so.
    pub(crate) fn reap_from(&self, here: Option<AtHome<'_>>) -> bool {
        let _guard = P::REAP_LOCKS.then(|| self.context.acquire_from(here));
        let _busy = here.map(|_| self.context.busy());
        let mut progress = false;
        let _told = self.tell_span(Span::Reap);
        match P::CURSOR {
            Cursor::Shared => {
                while let Some(completion) = self.peek() {
                    self.tell(completion.key, RequestState::Done(completion.result));
                    if P::COUNTS == Counts::BeforeWaking {
                        self.count_down();
                    }
                    self.commit();
                    self.finish(here, completion.key, completion.result);
                    if P::COUNTS == Counts::AfterWaking {
                        self.count_down();
                    }
                    progress = true;
                    if AtHome::in_child() {
                        // It forked. The ring is in memory that the parent has too.
                        break;
                    }
                }
            }
            Cursor::Private => {
                let mut batch = Vec::new();
                while let Some(completion) = self.peek() {
                    self.tell(completion.key, RequestState::Done(completion.result));
                    self.commit();
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
            match P::AFTER_REAP {
                AfterReap::LoopSubmits => {}
                AfterReap::ReapSubmits => _ = self.submit(),
                AfterReap::NobodySubmits => {
                    let left = self.pending.len(&self.context.acquire()) > 0;
                    self.blocked.store(left, Ordering::Relaxed);
                }
            }
        }
        progress
    }

    #[inline]
    fn peek(&self) -> Option<Completion> {
        // SAFETY: the context's lock is held; without `REAP_LOCKS`, the policy's author answers for
        // that.
        unsafe { self.kernel.peek() }
    }

    #[inline]
    fn commit(&self) {
        // SAFETY: as in `peek`; a completion was peeked, and is delivered by the caller, once.
        unsafe { self.kernel.commit() };
    }

    /// One less in flight, so that the kernel has room again: whoever is woken next may poll, or
    /// panic. Checked: a completion that was taken twice ends here (rule E9).
    #[inline]
    fn count_down(&self) {
        let Some(in_flight) = self.in_flight.load(Ordering::Relaxed).checked_sub(1) else { self.below_zero() };
        // Plain load and store: the lock makes it one writer at a time.
        self.in_flight.store(in_flight, Ordering::Relaxed);
        self.blocked.store(false, Ordering::Relaxed);
        add(&self.counts.completions, 1);
        if in_flight == 0 {
            self.reached_zero();
        }
    }

    /// Nothing is in flight any more: notifies the threads that poll this context for that (rule
    /// X9).
    ///
    /// Without a fence: the counter was changed under the context's lock, under which a thread that
    /// waits in `poll_while` evaluates its condition, after it has registered. So either the
    /// condition sees the change, or this sees the thread.
    #[inline]
    fn reached_zero(&self) {
        if let Some(context) = self.context.get().filter(|context| context.is_awaited()) {
            context.notify();
        }
    }

    /// As `reached_zero`, for a request that ended without a completion.
    pub(crate) fn notify_if_idle(&self, lock: &Held<'_>) {
        if self.in_flight.load(Ordering::Relaxed) == 0 && self.pending.len(lock) == 0 {
            self.reached_zero();
        }
    }

    #[cold]
    fn below_zero(&self) -> ! {
        self.tell_violation("in_flight below zero");
        panic!("in_flight below zero: a completion was reaped twice ({})", self.state())
    }

    /// Stores a request's result and makes its coroutine run.
    ///
    /// # Control
    ///
    /// May enter the coroutine, on the home thread.
    #[inline]
    pub(crate) fn finish(&self, here: Option<AtHome<'_>>, key: u64, result: i64) {
        let Ok(waiter) = self.requests.complete(key, result, P::REAP_LOCKS) else { self.stray(key, result) };
        let Some(here) = here else {
            // Another thread reaps. Whether the coroutine is entered, its own thread will see.
            return self.context.schedule(waiter);
        };
        match P::ON_COMPLETION {
            // Rule E6: entered, it is inside submit somewhere below, and finds its result before it
            // yields.
            OnCompletion::WakeUnlessEntered => {
                if !here.wake_unless_entered(waiter) {
                    // It is of a context that the engine was with before (rule E12).
                    self.context.schedule(waiter);
                }
            }
            OnCompletion::EnterUnlessCurrent => {
                let waits = here.coroutine(waiter).expect("it waits");
                if here.current() == Some(waiter) {
                    // It is entered, and so left alone; the event log is told.
                    waits.enter_unless_entered();
                } else {
                    waits.enter();
                }
            }
            OnCompletion::Enter => here.coroutine(waiter).expect("it waits").enter(),
        }
    }

    #[cold]
    fn stray(&self, key: u64, result: i64) -> ! {
        self.tell_violation("a completion for a request that is not in flight");
        panic!("a completion for a request that is not in flight: key {key:#x}, result {result} ({})", self.state())
    }
}
