//! Requests that the calling thread performs itself, since they do not wait for a device: all but long
//! writes on tmpfs, and reads whose data is in the page cache.
//!
//! Native AIO and io_uring perform these within submit too (io_uring on tmpfs: on a worker thread),
//! so the queue, the ring and the switch to the loop would only be added to the same work. The kernel
//! tells which reads find their data: with `RWF_NOWAIT` it fails the others, and the engine takes
//! them. Where several coroutines read cached data at the same time, one submit for all costs less than a
//! system call each, so the engine takes these too ([`ErasedEngine::shares_submit`]).
//!
//! Pages of tmpfs that have been swapped out do make the loop wait, as they would within the submit of
//! native AIO.
//!
//! A request in place counts in the engine's statistics and appears in its trace. It does not wait
//! for a plug, which could not save it a system call.

#![allow(unsafe_code)]

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use coralio_runtime::trace::RequestState;
use coralio_runtime::{HomeRef, can_suspend, yield_now};

use super::Engine;
use super::erased::{ErasedEngine, outside_a_coroutine};
use super::guards::Guards;
use super::stats::add;
use super::transfer::Request;
use crate::backend::system_call::execute;
use crate::backend::{Backend, Opcode, Operation};

/// The work after which the coroutine lets the loop look at timers and sockets, in the units of
/// [`Operation::work`]: 20 to 40 microseconds.
const MAX_WORK: u64 = 32;
/// The same if then something else is due, or the loop waits for timers or descriptors.
const MAX_WORK_BEFORE_OTHERS: u64 = 16;
/// The most bytes of one request: to copy them takes 0.2 to 0.5 milliseconds. A longer read is split, so
/// that other coroutines run in between. The caller does not make other requests that long in place.
pub(crate) const MAX_LEN: u64 = 1 << 20;

/// The requests of an engine's context that were performed in place. Written only by the home thread.
#[derive(Default)]
pub(super) struct InPlace {
    pub(super) requests: AtomicU64,
    /// Their work since a coroutine last yielded because of it.
    work: AtomicU64,
}

impl<B: Backend, G: Guards> Engine<B, G> {
    /// Performs one operation on the calling thread and returns the kernel's result; an error is a
    /// negative `errno`. A read may be short. With `nowait` a read that would wait for a device
    /// fails: `EAGAIN`, or `EOPNOTSUPP` where the kernel cannot tell.
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    pub(super) unsafe fn perform_in_place(&self, fd: RawFd, request: &Request) -> i64 {
        // SAFETY: used only within this call.
        let Some(here) = (unsafe { HomeRef::here() }) else { return self.refusal(None) };
        let Some(current) = here.current() else { outside_a_coroutine() };
        if !self.owner.is(|context| here.is_of(context)) || here.check_cancelled().is_err() {
            return self.refusal(Some(here));
        }
        let mut operation = Operation { fd, ..request.operation };
        if operation.opcode == Opcode::Read {
            operation.len = operation.len.min(MAX_LEN);
        }
        let traced = self.traced.then(|| self.requests.allocate(current));
        let tell = |state| traced.into_iter().for_each(|slot| self.tell(slot.key(), state));
        tell(RequestState::Pending);
        // SAFETY: promised by the caller.
        let result = self.submit_timer.time(|| unsafe { execute(&operation, request.nowait) });
        let is_refused = request.nowait && matches!((-result) as i32, libc::EAGAIN | libc::EOPNOTSUPP);
        if is_refused {
            tell(RequestState::Refused(result));
        } else {
            tell(RequestState::InFlight);
            tell(RequestState::Done(result));
        }
        traced.into_iter().for_each(|slot| self.requests.free(slot));
        if is_refused {
            // The engine will count it.
            return result;
        }
        add(&self.in_place.requests, 1);
        let before = self.in_place.work.load(Ordering::Relaxed);
        let work = before + operation.work();
        self.in_place.work.store(work, Ordering::Relaxed);
        // Checked once, at the first limit: what becomes due later is no further from the second.
        let others_wait = || before < MAX_WORK_BEFORE_OTHERS && (here.has_due() || here.awaits_events());
        // Afterwards: a drain, or a detach, that begins in between finds the request performed.
        if work >= MAX_WORK_BEFORE_OTHERS && (work >= MAX_WORK || others_wait()) && can_suspend() {
            self.in_place.work.store(0, Ordering::Relaxed);
            here.poll_descriptors_next();
            yield_now();
        }
        result
    }
}
