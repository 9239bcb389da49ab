//! Submission: pending requests, batching, and the submit itself (rules E2 to E4, E8).
//!
//! A request waits in `pending` until it is submitted. While a plug is held, or the loop is in an
//! iteration that will flush, requests accumulate, and one system call takes them all; a full batch
//! is submitted immediately. Submit then reaps the requests that completed within the call, on the
//! submitter's stack. Requests enqueued by the coroutines that this reap wakes accumulate again:
//! submit never calls submit (rule E8).

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coralio_runtime::AtHome;
use coralio_runtime::trace::{RequestState, Span};

use crate::engine::{Engine, add};
use crate::kernel::Kernel;
use crate::perform::Attempt;
use crate::place::{Held, Locked};
use crate::policy::{NotTaken, OnCancel, Policy, UnplugCounts, gets_stuck};

/// Requests not yet accepted by the kernel, in order. Protected by the context's lock: every method
/// takes its guard.
pub(crate) struct Pending<E>(UnsafeCell<Line<E>>);

/// A contiguous queue, as the kernel requires: entries are appended at the end, and those before
/// `start` are consumed.
struct Line<E> {
    entries: Vec<E>,
    start: usize,
}

// SAFETY: *under the context's lock*: the queue is accessed only through methods that take the
// guard of the place that the engine is in (*where it is, is whose lock*). None of them runs
// foreign code, so accesses never overlap.
unsafe impl<E: Send> Sync for Pending<E> {}

impl<E> Pending<E> {
    pub(crate) fn new() -> Pending<E> {
        Pending(UnsafeCell::new(Line { entries: Vec::new(), start: 0 }))
    }

    #[inline]
    #[allow(clippy::mut_from_ref)]
    fn line(&self, _lock: &impl Locked) -> &mut Line<E> {
        // SAFETY: *under the context's lock*.
        unsafe { &mut *self.0.get() }
    }

    #[inline]
    pub(crate) fn len(&self, lock: &impl Locked) -> usize {
        let line = self.line(lock);
        line.entries.len() - line.start
    }

    /// Appends an entry, constructed in place, and returns a reference to it.
    #[inline]
    fn push(&self, lock: &impl Locked, make: impl FnOnce() -> E) -> &E {
        let entries = &mut self.line(lock).entries;
        if entries.len() == entries.capacity() {
            grow(entries);
        }
        let end = entries.len();
        let entry = entries.spare_capacity_mut()[0].write(make());
        let entry = ptr::from_ref(entry);
        // SAFETY: the capacity suffices, and the entry has been written.
        unsafe {
            entries.set_len(end + 1);
            &*entry
        }
    }

    /// Offers the first `most` entries to `submit`, which is the backend's and runs no foreign
    /// code, and removes those that it accepted.
    #[inline]
    fn offer(
        &self,
        lock: &Held<'_>,
        most: usize,
        submit: impl FnOnce(&mut [E]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let line = self.line(lock);
        let taken = submit(&mut line.entries[line.start..line.start + most])?;
        assert!(taken <= most, "the kernel accepted {taken} of {most} requests");
        line.take_off(taken);
        Ok(taken)
    }

    /// Removes the entry that matches `is`. Returns whether there was one.
    fn take_back(&self, lock: &Held<'_>, is: impl Fn(&E) -> bool) -> bool {
        let line = self.line(lock);
        let found = line.entries[line.start..].iter().position(is);
        if let Some(place) = found {
            line.entries.remove(line.start + place);
            line.take_off(0);
        }
        found.is_some()
    }

    /// Removes the first entry and returns `of` it.
    fn take_first<R>(&self, lock: &Held<'_>, of: impl FnOnce(&E) -> R) -> Option<R> {
        let line = self.line(lock);
        let first = of(line.entries.get(line.start)?);
        line.take_off(1);
        Some(first)
    }
}

#[cold]
fn grow<E>(entries: &mut Vec<E>) {
    entries.reserve(1);
}

impl<E> Line<E> {
    #[inline]
    fn take_off(&mut self, count: usize) {
        self.start += count;
        if self.start == self.entries.len() {
            self.entries.clear();
            self.start = 0;
        } else if self.start > self.entries.len() / 2 {
            // Compacting at this point moves each entry at most once.
            self.entries.drain(..self.start);
            self.start = 0;
        }
    }
}

impl<K: Kernel, P: Policy> Engine<K, P> {
    /// Queues a request. Returns whether it may be batched with others, because a later submit is
    /// certain.
    #[inline]
    pub(crate) fn enqueue(&self, here: AtHome<'_>, attempt: &Attempt, key: u64) -> bool {
        let guard = here.acquire();
        let entry = self.pending.push(&guard, || {
            let mut entry = self.kernel.prepare(&attempt.operation, key);
            self.kernel.set_nowait(&mut entry, attempt.nowait);
            entry
        });
        self.tell_of(entry, RequestState::Pending);
        // The batch is full when it reaches the queue depth, regardless of how many requests are in
        // flight: otherwise, with as many coroutines as the queue is deep, each request would be
        // submitted alone.
        let full = self.pending.len(&guard) >= self.depth as usize;
        let plugged = here.is_in_round() || self.plug_depth.load(Ordering::Relaxed) > 0;
        plugged && !(full && self.may_go_at_once())
    }

    /// Limits consecutive submits outside the loop's flush. Where requests complete within submit,
    /// coroutines that keep filling the queue would otherwise never return to the loop.
    fn may_go_at_once(&self) -> bool {
        let eager = self.eager.load(Ordering::Relaxed);
        self.eager.store(eager + 1, Ordering::Relaxed);
        eager < 16
    }

    /// Whether a submit now could make progress.
    pub(crate) fn can_submit(&self) -> bool {
        self.can_submit_under(&self.context.acquire())
    }

    #[inline]
    fn can_submit_under(&self, lock: &Held<'_>) -> bool {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        self.pending.len(lock) > 0
            && in_flight < self.depth
            && (in_flight == 0 && !const { gets_stuck::<P>() } || !self.blocked.load(Ordering::Relaxed))
    }

    /// Submits pending requests up to the queue depth, and reaps those that have completed by then.
    /// Returns whether any request ended.
    ///
    /// # Control
    ///
    /// May enter coroutines.
    pub(crate) fn submit(&self) -> bool {
        // A forked child leaves the coroutine that forked and gets here on its way to the loop.
        if AtHome::in_child() {
            return false;
        }
        self.context.at_home(|here| self.submit_from(Some(here))).unwrap_or_else(|| self.submit_from(None))
    }

    /// As `submit`; `here` is present on the home thread.
    pub(crate) fn submit_from(&self, here: Option<AtHome<'_>>) -> bool {
        let _told = self.tell_span(Span::Submit);
        let mut progress = false;
        // Failed requests may be resubmitted immediately by their coroutines. The number of
        // attempts is bounded, so that the loop gets its turn.
        for _ in 0..=self.depth {
            let lock = self.context.acquire_from(here);
            if !self.can_submit_under(&lock) || AtHome::in_child() {
                break;
            }
            match self.submit_batch(&lock) {
                Ok(()) => break,
                // The error concerns only the first request; retry the rest.
                Err(error) => progress |= self.fail_first(here, lock, &error),
            }
            if P::NOT_TAKEN == NotTaken::StuckAfterError {
                self.blocked.store(true, Ordering::Relaxed);
            }
        }
        if self.in_flight.load(Ordering::Relaxed) > 0 && !AtHome::in_child() {
            progress |= self.reap_from(here);
        }
        progress
    }

    /// Submits one batch, with one system call.
    #[inline]
    fn submit_batch(&self, lock: &Held<'_>) -> io::Result<()> {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let wanted = self.pending.len(lock).min((self.depth - in_flight) as usize);
        add(&self.counts.submits, 1);
        // SAFETY: *lent to the kernel*: `transfer` keeps each request's memory valid until its
        // completion is reaped.
        let submit = |entries: &mut [K::Entry]| self.slow.time(|| unsafe { self.submit_and_tell(entries) });
        let submitted = self.pending.offer(lock, wanted, submit);
        match submitted {
            Ok(taken) => {
                self.in_flight.store(in_flight + taken as u32, Ordering::Relaxed);
                self.blocked.store(taken < wanted, Ordering::Relaxed);
                if P::NOT_TAKEN == NotTaken::TailForgotten {
                    (taken..wanted).for_each(|_| _ = self.pending.take_first(lock, |_| ()));
                }
                self.tell_counters(lock);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // With nothing in flight, no completion would ever clear `blocked`.
                let blocks = in_flight > 0 || P::NOT_TAKEN == NotTaken::StuckAfterAgain;
                self.blocked.store(blocks, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Ends a coroutine's request early. A pending request is removed and thereby ends; for one in
    /// flight the kernel is asked to cancel it, and the coroutine still waits for the completion
    /// (rule E11).
    #[cold]
    pub(crate) fn cancel(&self, key: u64) -> Option<i64> {
        if !self.is_at_home() {
            self.cancel_from_elsewhere(key);
            return None;
        }
        let is_over = self.cancel_under(&self.context.acquire(), key) || P::ON_CANCEL == OnCancel::ReturnsAtOnce;
        is_over.then_some(-i64::from(libc::ECANCELED))
    }

    /// Removes a pending request, or asks the kernel to cancel it. Returns whether the request was
    /// pending.
    pub(crate) fn cancel_under(&self, lock: &Held<'_>, key: u64) -> bool {
        let taken_back = self.take_back(lock, key);
        if !taken_back {
            // SAFETY: the coroutine that made the request ends early or unwinds.
            unsafe { self.kernel.cancel(key) };
        }
        taken_back
    }

    /// Asks the thread that owns the engine to cancel a request. If a thread sleeps in place, it
    /// does not read mail before a completion arrives, so this also asks the kernel directly.
    pub(crate) fn cancel_from_elsewhere(&self, key: u64) {
        self.context.mail(key);
        if self.context.mail.is_asleep() {
            // SAFETY: as in `cancel_under`; allowed from any thread.
            unsafe { self.kernel.cancel(key) };
        }
    }

    /// Whether the calling thread is the home thread of the engine's context.
    pub(crate) fn is_at_home(&self) -> bool {
        self.context.at_home(|_| ()).is_some()
    }

    /// Removes a request if it is pending. Returns whether it was.
    pub(crate) fn take_back(&self, lock: &Held<'_>, key: u64) -> bool {
        let pending = self.pending.take_back(lock, |entry| self.kernel.key(entry) == key);
        if pending {
            add(&self.counts.refused, 1);
            self.tell(key, RequestState::TakenBack);
            self.notify_if_idle(lock);
        }
        pending
    }

    #[cold]
    fn fail_first(&self, here: Option<AtHome<'_>>, lock: Held<'_>, error: &io::Error) -> bool {
        let Some(key) = self.pending.take_first(&lock, |entry| self.kernel.key(entry)) else { return false };
        add(&self.counts.refused, 1);
        self.notify_if_idle(&lock);
        drop(lock);
        let result = -i64::from(error.raw_os_error().unwrap_or(libc::EIO));
        self.tell(key, RequestState::Refused(result));
        let _busy = here.map(|_| self.context.busy());
        self.finish(here, key, result);
        true
    }
}

/// Holds requests back while it exists; when the last plug is dropped, the loop submits them.
///
/// A plug is a performance hint: before the loop sleeps, and every sixteenth iteration, it submits
/// plugged requests too.
#[must_use = "requests are held back until the plug is dropped"]
pub struct Plug {
    engine: Arc<dyn Unplug>,
}

/// Type-erased engine, as a plug needs it.
trait Unplug: Send + Sync {
    fn unplug(&self);
}

impl<K: Kernel, P: Policy> Engine<K, P> {
    /// Delays requests until the plug is dropped.
    #[doc(alias = "blk_io_plug")]
    pub fn plug(self: &Arc<Self>) -> Plug {
        let _guard = self.context.acquire();
        self.plug_depth.store(self.plug_depth.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Plug { engine: Arc::clone(self) as Arc<dyn Unplug> }
    }
}

impl<K: Kernel, P: Policy> Unplug for Engine<K, P> {
    fn unplug(&self) {
        let guard = self.context.acquire();
        let counts = match P::UNPLUG_COUNTS {
            UnplugCounts::Always => true,
            UnplugCounts::UnlessFull => self.pending.len(&guard) < self.depth as usize,
        };
        self.plug_depth.store(self.plug_depth.load(Ordering::Relaxed) - u32::from(counts), Ordering::Relaxed);
        // A destructor enters no coroutine: the loop's next iteration submits, and a sleeping loop
        // is woken.
        self.context.notify();
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.engine.unplug();
    }
}

impl std::fmt::Debug for Plug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plug").finish_non_exhaustive()
    }
}
