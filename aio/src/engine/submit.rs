//! Submission: pending requests, batching, and the submit itself (rules E2 to E4, E8).
//!
//! A request waits in `pending` until it is submitted. While a plug is held, or the loop is in an
//! iteration that will flush, requests accumulate, and one system call takes them all; a full batch
//! is submitted immediately. Submit then reaps the requests that completed within the call, on the
//! submitter's stack. Requests enqueued by the coroutines that this reap wakes accumulate again:
//! submit never calls submit (rule E8).

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::Ordering;

use coralio_runtime::HomeRef;
use coralio_runtime::trace::{RequestState, Span};

use super::Engine;
use super::guards::{Guards, PartialSubmit, is_usual, may_wedge};
use super::owner::{LockProof, PollLock};
use super::request::Slot;
use super::stats::add;
use super::transfer::Request;
use crate::backend::{Backend, Operation};

/// The [work](Operation::work) after which submits leave the next batch to the loop: other coroutines,
/// timers and sockets get their turn after half a millisecond. All requests of a batch count as the
/// last one.
const MAX_IMMEDIATE_WORK: u64 = 512;
/// The same for a coroutine that makes one request at a time, and may use the CPU in between.
const MAX_LONE_WORK: u64 = 32;
/// The same while the loop waits for timers or descriptors: as many requests as a coroutine would make
/// between two polls of the descriptors if each waited for the end of an iteration.
const MAX_LONE_WORK_BEFORE_EVENTS: u64 = 8;

/// What follows the queueing of a request.
pub(crate) enum Next {
    /// Nothing: a later submit is certain, and may serve other requests too.
    Batched,
    /// A submit.
    Submit,
    /// A submit of this request alone: nothing else is pending or in flight.
    Alone,
}

impl<B: Backend, G: Guards> Engine<B, G> {
    /// Queues a request of the running coroutine. Returns what the caller does next.
    #[inline]
    pub(crate) fn enqueue(&self, here: HomeRef<'_>, attempt: &Request, key: u64) -> Next {
        let guard = here.acquire();
        self.tell(key, RequestState::Pending);
        self.pending.push(&guard, || {
            let mut entry = self.backend.prepare(&attempt.operation, key);
            self.backend.set_nowait(&mut entry, attempt.nowait);
            entry
        });
        // The batch is full when it reaches the queue depth, regardless of how many requests are in
        // flight: otherwise, with as many coroutines as the queue is deep, each request would be
        // submitted alone.
        let pending = self.pending.len();
        let full = pending >= self.depth as usize;
        let plugged = self.plug_depth.load(Ordering::Relaxed) > 0;
        let may_gather = here.is_in_round() || plugged;
        if may_gather && pending > 1 && !full {
            return Next::Batched;
        }
        let lone = !plugged && pending == 1 && (full || self.batching.expects_lone(here) && !here.has_due());
        let may_defer = may_gather && B::DEFERS && !plugged && (lone || self.depth == 1);
        if may_defer && self.deferral.is_expected() {
            // The loop's sleep submits the only request, or the only one that there is room for.
            return Next::Batched;
        }
        if may_gather && !((full || lone) && self.allow_immediate_submit(here, &attempt.operation, full)) {
            return Next::Batched;
        }
        let is_alone = lone && self.in_flight.load(Ordering::Relaxed) == 0;
        if const { is_usual::<G>() } && is_alone && !self.traced { Next::Alone } else { Next::Submit }
    }

    /// Submits a request that is alone in the engine, and takes its completion if it has completed by
    /// then. Does the same as `submit_from`, which would reap whatever is on the ring, and would wake a
    /// coroutine that is entered, to no effect.
    pub(crate) fn submit_alone(&self, here: HomeRef<'_>, slot: &Slot) {
        let lock = PollLock::new(Some(here));
        if !self.can_submit() {
            // Another thread polls the context, and has submitted the request.
            return;
        }
        if let Err(error) = self.submit_batch(&lock) {
            self.fail_and_submit_rest(Some(here), lock, error);
            return;
        }
        // SAFETY: the context's lock is held.
        let completion = unsafe { self.backend.peek_completion() }.filter(|completion| completion.key == slot.key());
        if let Some(completion) = completion {
            self.count_down();
            // SAFETY: the lock is held; a completion was peeked, and is delivered once.
            unsafe { self.backend.advance() };
            self.requests.complete(completion.key, completion.result, true);
        }
        if B::DEFERS {
            self.deferral.submitted(completion.is_some() || self.submit_timer.is_on());
        }
    }

    /// Limits the work of consecutive submits outside the loop's flush, `last` being the last request
    /// of this one. Where requests complete within submit, the coroutines that make them would
    /// otherwise never return to the loop.
    fn allow_immediate_submit(&self, here: HomeRef<'_>, last: &Operation, full: bool) -> bool {
        let work = self.immediate_work.load(Ordering::Relaxed);
        let added = self.pending.len() as u64 * last.work();
        self.immediate_work.store(work.saturating_add(added), Ordering::Relaxed);
        let allows = if full {
            work < MAX_IMMEDIATE_WORK
        } else {
            work < MAX_LONE_WORK_BEFORE_EVENTS || work < MAX_LONE_WORK && !here.awaits_events()
        };
        if !allows {
            here.poll_descriptors_next();
        }
        allows
    }

    /// Returns whether a submit would offer the backend a request: exact under the context's lock.
    #[inline]
    pub(crate) fn can_submit(&self) -> bool {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        self.pending.len() > 0
            && in_flight < self.depth
            && (in_flight == 0 && !const { may_wedge::<G>() } || !self.blocked.load(Ordering::Relaxed))
    }

    /// Submits pending requests up to the queue depth, and reaps those that have completed by then.
    /// Returns whether any request ended. `here` is `None` if another thread polls the context.
    ///
    /// # Control
    ///
    /// May enter coroutines.
    pub(crate) fn submit_from(&self, here: Option<HomeRef<'_>>) -> bool {
        // A forked child may get here after it leaves the coroutine that forked. It must not
        // submit.
        if HomeRef::in_child() {
            return false;
        }
        let _told = self.tell_span(Span::Submit);
        let lock = PollLock::new(here);
        let submits = self.can_submit();
        if submits {
            if let Err(error) = self.submit_batch(&lock) {
                return self.fail_and_submit_rest(here, lock, error);
            }
        } else if B::DEFERS {
            self.submit_deferred();
        }
        let completed = self.in_flight.load(Ordering::Relaxed) > 0 && self.reap_under(lock, here);
        if B::DEFERS && submits {
            // The time of a submit within the sleep would not be that of the submit.
            self.deferral.submitted(completed || self.submit_timer.is_on());
        }
        completed
    }

    /// Passes the deferred requests to the kernel. Called on the home thread, under the lock.
    fn submit_deferred(&self) {
        if self.backend.has_deferred() && !HomeRef::in_child() {
            add(&self.counters.submits, 1);
            // SAFETY: there is no new entry. If the kernel consumes none, the next system call
            // offers them again.
            let _ = unsafe { self.backend.submit(&mut []) };
        }
    }

    /// Lets the backend accept pending requests up to the queue depth, which the loop's sleep will
    /// submit.
    pub(crate) fn defer(&self, here: HomeRef<'_>) {
        let lock = here.acquire();
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let wanted = self.pending.len().min((self.depth - in_flight) as usize);
        let defer = |entries: &mut [B::Entry]| {
            // SAFETY: *lent to the kernel*: `transfer` keeps each request's memory valid until its
            // completion is reaped.
            let taken = unsafe { self.backend.defer(entries) };
            Ok(self.tell_accepted(entries, taken))
        };
        self.batching.submitted(wanted);
        let taken = self.pending.submit_front(&lock, wanted, defer).unwrap_or(0);
        self.in_flight.store(in_flight + taken as u32, Ordering::Relaxed);
        self.tell_counters();
        self.deferral.deferred();
    }

    /// Records in the event log that the backend has accepted the first `taken` entries. Returns
    /// `taken`.
    #[inline]
    fn tell_accepted(&self, entries: &[B::Entry], taken: usize) -> usize {
        if self.traced {
            let accepted = entries.iter().take(taken);
            accepted.for_each(|entry| self.tell(self.backend.key(entry), RequestState::InFlight));
        }
        taken
    }

    /// Handles a submit's error, which concerns only the first request: fails that request, and
    /// submits the rest. Reaps as `submit_from`.
    ///
    /// # Control
    ///
    /// May enter coroutines.
    #[cold]
    fn fail_and_submit_rest<'h>(
        &self,
        here: Option<HomeRef<'h>>,
        mut lock: PollLock<'h>,
        mut error: io::Error,
    ) -> bool {
        let mut progress = false;
        // Failed requests may be resubmitted immediately by their coroutines. The number of
        // attempts is bounded, so that the loop gets its turn.
        let mut attempts_left = self.depth;
        loop {
            progress |= self.fail_first(here, lock, &error);
            if HomeRef::in_child() {
                return progress;
            }
            if G::PARTIAL_SUBMIT == PartialSubmit::WedgeOnError {
                self.blocked.store(true, Ordering::Relaxed);
            }
            lock = PollLock::new(here);
            if attempts_left == 0 || !self.can_submit() {
                break;
            }
            attempts_left -= 1;
            match self.submit_batch(&lock) {
                Ok(()) => break,
                Err(next) => error = next,
            }
        }
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            progress |= self.reap_under(lock, here);
        }
        progress
    }

    /// Submits one batch, with one system call.
    #[inline(always)]
    fn submit_batch(&self, lock: &impl LockProof) -> io::Result<()> {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let wanted = self.pending.len().min((self.depth - in_flight) as usize);
        add(&self.counters.submits, 1);
        self.batching.submitted(wanted);
        let submit = |entries: &mut [B::Entry]| {
            // SAFETY: *lent to the kernel*: `transfer` keeps each request's memory valid until its
            // completion is reaped.
            let submitted = self.submit_timer.time(|| unsafe { self.backend.submit(entries) });
            submitted.map(|taken| self.tell_accepted(entries, taken))
        };
        let submitted = self.pending.submit_front(lock, wanted, submit);
        match submitted {
            Ok(taken) => {
                self.in_flight.store(in_flight + taken as u32, Ordering::Relaxed);
                self.blocked.store(taken < wanted, Ordering::Relaxed);
                if G::PARTIAL_SUBMIT == PartialSubmit::TailForgotten {
                    (taken..wanted).for_each(|_| _ = self.pending.pop_front(lock, |_| ()));
                }
                self.tell_counters();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // With nothing in flight, no completion would ever clear `blocked`.
                let blocks = in_flight > 0 || G::PARTIAL_SUBMIT == PartialSubmit::WedgeOnEagain;
                self.blocked.store(blocks, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a pending request, or asks the kernel to cancel it. Returns whether the request was
    /// pending. Called on the home thread.
    pub(crate) fn remove_or_cancel(&self, key: u64) -> bool {
        let Some(lock) = self.owner.acquire() else { return false };
        let was_pending = self.pending.remove(&lock, |entry| self.backend.key(entry) == key);
        if was_pending {
            add(&self.counters.refused, 1);
            self.tell(key, RequestState::Cancelled);
            self.notify_if_idle();
        } else {
            if B::DEFERS {
                // The kernel does not find a request that it has not consumed.
                self.submit_deferred();
            }
            // SAFETY: the coroutine that made the request ends early or unwinds.
            unsafe { self.backend.cancel(key) };
        }
        was_pending
    }

    #[cold]
    fn fail_first(&self, here: Option<HomeRef<'_>>, lock: PollLock<'_>, error: &io::Error) -> bool {
        let Some(key) = self.pending.pop_front(&lock, |entry| self.backend.key(entry)) else { return false };
        add(&self.counters.refused, 1);
        self.notify_if_idle();
        drop(lock);
        let result = -i64::from(error.raw_os_error().unwrap_or(libc::EIO));
        self.tell(key, RequestState::Refused(result));
        let _busy = here.map(|_| self.owner.busy());
        self.finish(here, key, result);
        true
    }
}
