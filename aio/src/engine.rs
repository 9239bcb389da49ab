//! The engine between coroutines that want I/O and the kernel backend that performs it.
//!
//! ```text
//!   coroutine                 submit.rs               backend             reap.rs
//!   ---------                 ---------               -------             -------
//!   perform(op)
//!     allocates slot, key -->  pending
//!     suspend()                 plugged, or within
//!                               a loop iteration?
//!                               no: submit   ------>  in flight
//!                               yes: batched,         ...
//!                                 flush or sleep      done  ----------->  in_flight decremented
//!                                 submits
//!                                                                         cursor advanced
//!     result there?     <------------------ woken, unless entered ------- result stored
//!     returns
//! ```
//!
//! All requests go through `submit_and_wait`, which is where borrowed buffers are made sound
//! (*lent to the kernel*, rule E13): it neither returns nor unwinds before its request has
//! completed.

#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use coralio_runtime::{AioContext, Cancelled, check_cancelled};

use batching::Batching;
use deferral::Deferral;
use guards::{AllGuards, Guards, PartialSubmit, may_wedge};
use in_place::InPlace;
use owner::Owner;
use request::{Requests, Slot};
use stats::{Counters, Detour, Stats, SubmitTimer, add};
use submission_queue::SubmissionQueue;
use transfer::{Request, submit_and_wait};

mod batching;
mod deferral;
pub(crate) mod erased;
pub mod guards;
pub(crate) mod in_place;
mod owner;
pub(crate) mod plug;
mod reap;
mod request;
pub(crate) mod stats;
mod submission_queue;
mod submit;
mod trace;
pub(crate) mod transfer;

pub use crate::backend::{
    Backend, Completion, Opcode, Operation, io_uring, linux_aio, scripted, simulated, thread_pool,
};
#[doc(inline)]
pub use coralio_runtime::{EventSource, Flush, HomeLockGuard, HomeRef, HomeToken, LoopToken, SourceState};

/// Submits a context's requests to one backend and delivers their completions. Each context has at
/// most one engine.
///
/// Programs do not use it directly: [`File`](crate::File) uses the engine of the context it is
/// opened in. It is public for tests that run it on a [scripted backend](crate::backend::scripted)
/// or with a custom [`Guards`].
pub struct Engine<B: Backend, G: Guards = AllGuards> {
    owner: Owner,
    backend: B,
    /// Whether the engine reports to the context's event log.
    traced: bool,
    depth: u32,
    requests: Requests,
    pending: SubmissionQueue<B::Entry>,
    /// Requests accepted by the backend and not yet reaped. Written under the context's lock with
    /// plain stores (rule E9).
    in_flight: AtomicU32,
    /// Number of plugs. Written by any thread, without the lock.
    plug_depth: AtomicU32,
    /// Work of the submits outside the loop's flush since the last `dispatch`.
    immediate_work: AtomicU64,
    /// Consecutive loop iterations that skipped the flush because of a plug.
    plugged_rounds: AtomicU32,
    /// Set when the backend did not accept everything: no submit until a completion is reaped,
    /// unless nothing is in flight.
    blocked: AtomicBool,
    deferral: Deferral,
    batching: Batching,
    in_place: InPlace,
    counters: Counters,
    submit_timer: SubmitTimer,
    _guards: PhantomData<G>,
}

impl<B: Backend, G: Guards> Engine<B, G> {
    /// Creates an engine of this thread's context, for the context's driver. The engine reports to
    /// the event log only if `traced`: the log holds one engine per context.
    pub(crate) fn new(backend: B, depth: u32, traced: bool) -> io::Result<Arc<Engine<B, G>>> {
        const { assert!(!B::DEFERS || B::SUBMITS_AT_HOME, "a sleep that submits runs on the home thread") };
        let context = AioContext::current().expect("creating an engine outside a context: call it inside `run(|| ..)`");
        if depth == 0 || depth > backend.capacity() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("invalid queue depth {depth}: must be 1 to {}", backend.capacity()),
            ));
        }
        Ok(Arc::new(Engine {
            traced: traced && context.tracer().is_some(),
            owner: Owner::new(&context),
            backend,
            depth,
            requests: Requests::new(),
            pending: SubmissionQueue::new(),
            in_flight: AtomicU32::new(0),
            plug_depth: AtomicU32::new(0),
            immediate_work: AtomicU64::new(0),
            plugged_rounds: AtomicU32::new(0),
            blocked: AtomicBool::new(false),
            deferral: Deferral::default(),
            batching: Batching::default(),
            in_place: InPlace::default(),
            counters: Counters::default(),
            submit_timer: SubmitTimer::new(),
            _guards: PhantomData,
        }))
    }

    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    /// Performs one operation and returns the number of bytes transferred.
    ///
    /// # Errors
    ///
    /// The kernel's `errno`; `ENOTCONN` if the engine is not with this thread's context;
    /// [`Cancelled`] if the coroutine has been cancelled.
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield; may enter other coroutines. Blocks the thread if the coroutine cannot suspend, as
    /// in a destructor while the stack unwinds.
    ///
    /// # Safety
    ///
    /// The memory that `operation` names is valid, and for reads not aliased, until this returns or
    /// unwinds.
    #[inline]
    pub unsafe fn transfer(&self, operation: &Operation) -> io::Result<usize> {
        // SAFETY: promised by the caller.
        let result = unsafe { submit_and_wait(self, &Request { operation: *operation, nowait: false }) };
        if result < 0 { Err(error_of(-result as i32)) } else { Ok(result as usize) }
    }

    /// As `wait_in_place`, on the home thread `here`.
    #[cold]
    fn wait_at_home(&self, here: HomeRef<'_>, slot: &Slot) -> i64 {
        // Held during the sleep too: otherwise another thread could reap the completion and leave
        // this one asleep.
        let _guard = here.acquire();
        loop {
            if let Some(result) = slot.result() {
                return result;
            }
            if self.submit_from(Some(here)) {
                continue;
            }
            if self.in_flight.load(Ordering::Relaxed) > 0 {
                self.sleep_in_place();
            } else if self.pending.len() == 0 && slot.result().is_none() {
                if G::PARTIAL_SUBMIT == PartialSubmit::TailForgotten {
                    // The request was removed before the backend accepted it.
                    return -i64::from(libc::ECANCELED);
                }
                abort(&format!("a request is neither pending nor in flight: it is lost ({})", self.describe_state()));
            }
            // Otherwise submit failed with EAGAIN, and nothing in flight would end a sleep: retry
            // (rule E2).
            if const { may_wedge::<G>() } {
                // Lets a test of a removed guard finish.
                self.blocked.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Completes all requests, blocking the thread.
    #[cold]
    fn finish_in_place(&self, here: HomeRef<'_>) {
        let _guard = here.acquire();
        while self.in_flight.load(Ordering::Relaxed) > 0 || self.pending.len() > 0 {
            if !self.submit_from(Some(here)) && self.in_flight.load(Ordering::Relaxed) > 0 {
                self.sleep_in_place();
            }
        }
    }

    /// Sleeps until a completion arrives. Called on the home thread, under the context's lock.
    fn sleep_in_place(&self) {
        add(&self.counters.sleeps, 1);
        // SAFETY: this is the home thread, and the context's lock is held, so no other thread
        // sleeps.
        let slept = unsafe { self.backend.wait(None, None) };
        // To return would leave the buffer with the kernel.
        slept.unwrap_or_else(|error| abort(&format!("cannot wait for I/O in flight: {error}")));
    }

    /// Starts timing submits and counting slow ones, longer than `limit`:
    /// [`Stats::slow_submits`].
    pub fn set_slow_submit_threshold(&self, limit: Duration) {
        self.submit_timer.set_limit(limit);
    }

    /// Waits until no request is in flight or pending, in the manner of [`AioContext::poll_while`]:
    /// the home thread runs the loop, another thread waits for the loop. Includes requests made
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// `NotConnected`: the engine is [detached](crate::driver::detach), or becomes detached during the
    /// wait.
    ///
    /// # Panics
    ///
    /// Propagates panics from callbacks that the loop runs.
    ///
    /// # Control
    ///
    /// May enter coroutines. Blocks the thread, not just the coroutine.
    #[doc(alias = "bdrv_drain")]
    pub fn drain(&self) -> io::Result<()> {
        let context = self.owner.get();
        let is_there = || context.is_some() && self.owner.get().map(ptr::from_ref) == context.map(ptr::from_ref);
        if let Some(context) = context {
            context.poll_while(|| is_there() && self.state() != SourceState::Idle);
        }
        if is_there() {
            return Ok(());
        }
        let why = "cannot drain a detached engine: no context drives it; attach it first";
        Err(io::Error::new(io::ErrorKind::NotConnected, why))
    }

    /// Returns the engine's counters and state.
    ///
    /// # Control
    ///
    /// Blocks until the context's lock is free if called from a thread other than the context's.
    pub fn stats(&self) -> Stats {
        let _guard = self.owner.acquire();
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let pending = self.pending.len() as u32;
        let in_place = self.in_place.requests.load(Ordering::Relaxed);
        Stats {
            requests: self.taken() + u64::from(pending) + self.counters.refused.load(Ordering::Relaxed) + in_place,
            completions: self.counters.completions.load(Ordering::Relaxed) + in_place,
            submits: self.counters.submits.load(Ordering::Relaxed),
            sleeps: self.counters.sleeps.load(Ordering::Relaxed),
            in_flight,
            pending,
            offloaded: 0,
            in_place,
            slow_submits: self.submit_timer.over_threshold(),
            max_submit_time: self.submit_timer.longest(),
            bounced: self.counters.detour(Detour::Bounced).load(Ordering::Relaxed),
            page_cached: self.counters.detour(Detour::PageCached).load(Ordering::Relaxed),
        }
    }

    /// Returns the number of requests that the backend has accepted.
    fn taken(&self) -> u64 {
        self.counters.completions.load(Ordering::Relaxed) + u64::from(self.in_flight.load(Ordering::Relaxed))
    }

    /// Formats the engine's state for an error report.
    pub(crate) fn describe_state(&self) -> String {
        format!(
            "in_flight {}, depth {}, plug depth {}, blocked {}, {} requests submitted, {} completed",
            self.in_flight.load(Ordering::Relaxed),
            self.depth,
            self.plug_depth.load(Ordering::Relaxed),
            self.blocked.load(Ordering::Relaxed),
            self.taken(),
            self.counters.completions.load(Ordering::Relaxed),
        )
    }
}

/// Converts an `errno`. `ECANCELED` becomes [`Cancelled`].
pub(crate) fn error_of(errno: i32) -> io::Error {
    if errno != libc::ECANCELED {
        return io::Error::from_raw_os_error(errno);
    }
    // The operation has failed for good, so an expired timeout reports the error.
    let _ = check_cancelled();
    Cancelled.into()
}

/// Aborts the process: continuing would leave a buffer with the kernel that its owner is about to
/// free.
#[cold]
fn abort(why: &str) -> ! {
    coralio_runtime::report(format_args!("coralio: {why}"));
    std::process::abort()
}

impl<B: Backend, G: Guards> std::fmt::Debug for Engine<B, G> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({})", self.describe_state())
    }
}
