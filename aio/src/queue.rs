//! From a request to the kernel: pending, gathered, submitted (rules E2 to E4, E8).
//!
//! A request waits in `pending` until somebody submits. While a plug is held, or the loop is in a round that will flush,
//! requests gather, and one system call takes them all; a full queue goes at once. Submit then reaps what was done within
//! the call, on the stack of whoever submitted. What is enqueued by those that the reap wakes gathers again: no submit
//! comes from within a submit (rule E8).

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coralio_runtime::ContextGuard;

use crate::engine::{Engine, add};
use crate::kernel::Kernel;
use crate::policy::Policy;

/// Requests that the kernel has not got yet, in order. Under the context's lock: every method takes its guard.
pub(crate) struct Pending<E>(UnsafeCell<VecDeque<E>>);

// SAFETY: *under the context's lock*: the queue is reached through methods that take the guard of the one context that the
// engine belongs to, and none of them runs foreign code, so each access is alone.
unsafe impl<E: Send> Sync for Pending<E> {}

impl<E> Pending<E> {
    pub(crate) fn new() -> Pending<E> {
        Pending(UnsafeCell::new(VecDeque::new()))
    }

    #[inline]
    pub(crate) fn len(&self, _lock: &ContextGuard<'_>) -> usize {
        // SAFETY: *under the context's lock*.
        unsafe { (*self.0.get()).len() }
    }

    #[inline]
    fn push(&self, _lock: &ContextGuard<'_>, entry: E) {
        // SAFETY: *under the context's lock*.
        unsafe { (*self.0.get()).push_back(entry) }
    }

    fn pop(&self, _lock: &ContextGuard<'_>) -> Option<E> {
        // SAFETY: *under the context's lock*.
        unsafe { (*self.0.get()).pop_front() }
    }

    /// Offers the first `most` to `submit`, and takes off as many as it took.
    #[inline]
    fn offer(
        &self,
        _lock: &ContextGuard<'_>,
        most: usize,
        submit: impl FnOnce(&mut [E]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        // SAFETY: *under the context's lock*; `submit` is the kernel's, which runs no foreign code.
        let queue = unsafe { &mut *self.0.get() };
        let entries = queue.make_contiguous();
        let most = most.min(entries.len());
        let taken = submit(&mut entries[..most])?;
        assert!(taken <= most, "the kernel took {taken} of {most} requests");
        if taken == queue.len() {
            queue.clear();
        } else {
            queue.drain(..taken);
        }
        Ok(taken)
    }
}

impl<K: Kernel, P: Policy> Engine<K, P> {
    /// Queues a request. Returns whether it may gather with others: somebody is sure to submit.
    #[inline]
    pub(crate) fn enqueue(&self, entry: K::Entry) -> bool {
        let guard = self.context.acquire();
        self.pending.push(&guard, entry);
        add(&self.counts.requests, 1);
        let full = self.pending.len(&guard) + self.in_flight.load(Ordering::Relaxed) as usize >= self.depth as usize;
        let plugged = self.plug_depth.load(Ordering::Relaxed) > 0 || self.context.is_in_round();
        plugged && !(full && self.may_go_at_once())
    }

    /// Where requests complete within submit, coroutines that fill the queue again and again would never come back to
    /// the loop. So only so many submits in a row go out of turn.
    fn may_go_at_once(&self) -> bool {
        let eager = self.eager.load(Ordering::Relaxed);
        self.eager.store(eager + 1, Ordering::Relaxed);
        eager < 16
    }

    /// Whether a submit now would be of use.
    pub(crate) fn can_submit(&self) -> bool {
        let guard = self.context.acquire();
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        self.pending.len(&guard) > 0
            && in_flight < self.depth
            && (in_flight == 0 || !self.blocked.load(Ordering::Relaxed))
    }

    /// Submits what is pending, up to the depth, and reaps what is done by then. Returns whether anything was.
    ///
    /// # Control
    ///
    /// May enter coroutines.
    pub(crate) fn submit(&self) -> bool {
        let mut progress = false;
        while self.can_submit() {
            match self.submit_batch() {
                Ok(()) => break,
                // It concerns the first request alone; the rest is tried again.
                Err(error) => progress |= self.fail_first(&error),
            }
        }
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            progress |= self.reap();
        }
        progress
    }

    /// One system call.
    fn submit_batch(&self) -> io::Result<()> {
        let guard = self.context.acquire();
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let wanted = self.pending.len(&guard).min((self.depth - in_flight) as usize);
        add(&self.counts.submits, 1);
        // SAFETY: *lent to the kernel*: `transfer` keeps the memory of each request until its completion was reaped.
        let submitted = self.pending.offer(&guard, wanted, |entries| unsafe { self.kernel.submit(entries) });
        match submitted {
            Ok(taken) => {
                self.in_flight.store(in_flight + taken as u32, Ordering::Relaxed);
                self.blocked.store(taken < wanted, Ordering::Relaxed);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    #[cold]
    fn fail_first(&self, error: &io::Error) -> bool {
        let guard = self.context.acquire();
        let Some(entry) = self.pending.pop(&guard) else { return false };
        let key = self.kernel.key(&entry);
        let result = -i64::from(error.raw_os_error().unwrap_or(libc::EIO));
        self.finish(key, result);
        true
    }
}

/// Requests gather while it lives; when the last one is dropped, they are submitted (rule E3).
///
/// A plug is a hint for speed: before the loop sleeps, it submits even what is plugged.
#[must_use = "requests gather until the plug is dropped"]
pub struct Plug<K: Kernel, P: Policy = crate::policy::Current> {
    engine: Arc<Engine<K, P>>,
}

impl<K: Kernel, P: Policy> Engine<K, P> {
    /// Lets requests gather until the plug is dropped.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "blk_io_plug")]
    pub fn plug(self: &Arc<Self>) -> Plug<K, P> {
        let _guard = self.context.acquire();
        self.plug_depth.store(self.plug_depth.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Plug { engine: Arc::clone(self) }
    }
}

impl<K: Kernel, P: Policy> Drop for Plug<K, P> {
    fn drop(&mut self) {
        let engine = &self.engine;
        let _guard = engine.context.acquire();
        let depth = engine.plug_depth.load(Ordering::Relaxed) - 1;
        engine.plug_depth.store(depth, Ordering::Relaxed);
        // A destructor enters nobody: the loop's next round submits, and it is told if it sleeps.
        engine.context.notify();
    }
}

impl<K: Kernel, P: Policy> std::fmt::Debug for Plug<K, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plug").finish_non_exhaustive()
    }
}
