//! The engine between coroutines that want I/O and the kernel backend that performs it.
//!
//! ```text
//!   coroutine                 queue.rs                backend             reap.rs
//!   ---------                 --------                -------             -------
//!   perform(op)
//!     allocates slot, key -->  pending
//!     suspend()                 plugged, or within
//!                               a loop iteration?
//!                               no: submit   ------>  in flight
//!                               yes: batched,         ...
//!                                 flush submits       done  ----------->  in_flight decremented
//!                                                                         cursor advanced
//!     result there?     <------------------ woken, unless entered ------- result stored
//!     returns
//! ```
//!
//! All requests go through [`perform`], which is where borrowed buffers are made sound (*lent to
//! the kernel*, rule E13): it neither returns nor unwinds before its request has completed.

#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use coralio_runtime::{AioContext, AtHome, HomeToken, LoopToken, Source};

use crate::error::error_of;
use crate::kernel::{Kernel, Operation};
use crate::perform::{Attempt, perform};
use crate::place::Place;
use crate::policy::{Current, NotTaken, Notifier, Policy, gets_stuck};
use crate::queue::Pending;
use crate::request::{Requests, Slot};
use crate::slow::Slow;

/// Submits a context's requests to one backend and delivers their completions. Each context has at
/// most one engine.
///
/// Programs do not use it directly: [`File`](crate::File) uses the engine of the context it is
/// opened in. It is public for tests that run it on a [scripted backend](crate::kernel::scripted)
/// or with a custom [`Policy`].
pub struct Engine<K: Kernel, P: Policy = Current> {
    pub(crate) context: Place,
    pub(crate) kernel: K,
    /// Whether the engine reports to the context's event log.
    pub(crate) traced: bool,
    pub(crate) depth: u32,
    pub(crate) requests: Requests,
    pub(crate) pending: Pending<K::Entry>,
    /// Requests accepted by the backend and not yet reaped. Written under the context's lock with
    /// plain stores (rule E9).
    pub(crate) in_flight: AtomicU32,
    pub(crate) plug_depth: AtomicU32,
    /// Immediate submits on a full queue since the last `dispatch`.
    pub(crate) eager: AtomicU32,
    /// Consecutive loop iterations that skipped the flush because of a plug.
    pub(crate) held: AtomicU32,
    /// Set when the backend did not accept everything: no submit until a completion is reaped,
    /// unless nothing is in flight.
    pub(crate) blocked: AtomicBool,
    pub(crate) counts: Counts,
    pub(crate) slow: Slow,
    _policy: PhantomData<P>,
}

/// A plug delays requests for fewer loop iterations than this.
const MOST_HELD: u32 = 16;

/// Counters since the engine was created. Written under the context's lock.
#[derive(Default)]
pub(crate) struct Counts {
    /// Requests that ended without a completion: failed at submit, or cancelled while pending.
    pub(crate) refused: AtomicU64,
    pub(crate) completions: AtomicU64,
    pub(crate) submits: AtomicU64,
    pub(crate) sleeps: AtomicU64,
    /// Indexed by [`Detour`]. Written only by the home thread.
    pub(crate) detours: [AtomicU64; 2],
}

/// How a request is carried out that direct I/O does not accept as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Detour {
    /// Direct, through an aligned buffer.
    Bounced,
    PageCached,
}

/// Adds with a plain load and store: there is one writer at a time, and a lost count does no harm.
#[inline]
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}

/// Counters since the engine was created, and its current state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests made.
    pub requests: u64,
    /// Requests completed by the kernel.
    pub completions: u64,
    /// Submit system calls.
    pub submits: u64,
    /// System calls that slept until a completion.
    pub sleeps: u64,
    /// Requests currently in flight.
    pub in_flight: u32,
    /// Requests waiting to be submitted.
    pub pending: u32,
    /// The part of `requests` that went to a thread because they would have blocked the loop in
    /// submit ([`KernelChoice::Auto`](crate::KernelChoice::Auto)).
    pub on_threads: u64,
    /// Submits that blocked the loop for longer than
    /// [`Runner::submit_limit`](crate::Runner::submit_limit); 0 without a limit.
    pub blocked_submits: u64,
    /// The longest submit; zero without a limit.
    pub longest_submit: Duration,
    /// The part of `requests` that did direct I/O through an aligned buffer, because the caller's
    /// memory was unaligned ([`File`](crate::File)).
    pub bounced: u64,
    /// The part of `requests` on files open for direct I/O that went through the page cache,
    /// because their offset or length was unaligned ([`File`](crate::File)).
    pub page_cached: u64,
}

impl<K: Kernel, P: Policy> Engine<K, P> {
    /// Attaches an engine on `kernel` to this thread's context, with at most `depth` requests in
    /// flight.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: `depth` is 0 or exceeds the backend's capacity. `AlreadyExists`: the context
    /// has an engine.
    ///
    /// # Panics
    ///
    /// Outside a context.
    pub fn attach(kernel: K, depth: u32) -> io::Result<Arc<Engine<K, P>>> {
        let engine = Engine::new(kernel, depth, true)?;
        let context = engine.context.get().expect("a new engine is attached to its context");
        context.attach(Arc::clone(&engine) as Arc<dyn Source>)?;
        Ok(engine)
    }

    /// Creates an engine for another [`Source`] to drive, without attaching it. It is traced only
    /// if `told`: the event log holds one engine per context.
    pub(crate) fn new(kernel: K, depth: u32, told: bool) -> io::Result<Arc<Engine<K, P>>> {
        let context = AioContext::current().expect("creating an engine outside a context: call it inside `run(|| ..)`");
        if depth == 0 || depth > kernel.capacity() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("invalid queue depth {depth}: must be 1 to {}", kernel.capacity()),
            ));
        }
        Ok(Arc::new(Engine {
            traced: told && context.tracer().is_some(),
            context: Place::new(context),
            kernel,
            depth,
            requests: Requests::new(),
            pending: Pending::new(),
            in_flight: AtomicU32::new(0),
            plug_depth: AtomicU32::new(0),
            eager: AtomicU32::new(0),
            held: AtomicU32::new(0),
            blocked: AtomicBool::new(false),
            counts: Counts::default(),
            slow: Slow::new(),
            _policy: PhantomData,
        }))
    }

    /// Performs one operation and returns the number of bytes transferred.
    ///
    /// # Errors
    ///
    /// The kernel's `errno`; `ENOTCONN` if the engine is not with this thread's context;
    /// [`Cancelled`](coralio_runtime::Cancelled) if the coroutine has been cancelled.
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
        let result = unsafe { perform(self, &Attempt { operation: *operation, nowait: false }) };
        if result < 0 { Err(error_of(-result as i32)) } else { Ok(result as usize) }
    }

    /// Waits for a request without suspending, because the stack unwinds or cannot switch for
    /// another reason. Coroutines whose requests complete meanwhile are woken and run later.
    #[cold]
    pub(crate) fn wait_in_place(&self, slot: &Slot) -> i64 {
        if !self.is_at_home() {
            return self.wait_abroad(slot);
        }
        // Held during the sleep too: otherwise another thread could reap the completion and leave
        // this one asleep.
        let guard = self.context.acquire();
        loop {
            if let Some(result) = slot.result() {
                return result;
            }
            if self.submit() {
                continue;
            }
            if self.in_flight.load(Ordering::Relaxed) > 0 {
                self.sleep_in_place();
            } else if self.pending.len(&guard) == 0 && slot.result().is_none() {
                if P::NOT_TAKEN == NotTaken::TailForgotten {
                    // Dropped before the backend accepted it.
                    return -i64::from(libc::ECANCELED);
                }
                abort(&format!("a request is neither pending nor in flight: it is lost ({})", self.state()));
            }
            // Otherwise submit failed with EAGAIN, and nothing in flight would end a sleep: retry
            // (rule E2).
            if const { gets_stuck::<P>() } {
                // Lets a test that has seen the wedge finish.
                self.blocked.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Sleeps until a completion arrives, unless cancellations from other threads are pending:
    /// these are processed instead. Called under the engine's lock.
    pub(crate) fn sleep_in_place(&self) {
        let sleep = || {
            add(&self.counts.sleeps, 1);
            // SAFETY: the engine's lock is held, either by the home thread or in transit, so no
            // other thread sleeps.
            let slept = unsafe { self.kernel.wait(1, None, None) };
            // Returning would leave the buffer with the kernel.
            slept.unwrap_or_else(|error| abort(&format!("cannot wait for I/O in flight: {error}")));
        };
        if !self.context.mail.sleep(sleep) {
            self.read_mail(None);
        }
    }

    /// Starts timing submits and counting slow ones, longer than `limit`:
    /// [`Stats::blocked_submits`].
    pub fn set_submit_limit(&self, limit: Duration) {
        self.slow.set_limit(limit);
    }

    /// Waits until no request is in flight or pending, in the manner of [`AioContext::poll_while`]:
    /// the home thread runs the loop, another thread waits for the loop. Includes requests made
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// `NotConnected`: the engine is [detached](Engine::detach), or becomes detached during the
    /// wait; its requests do not complete before it is attached again.
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
        let context = self.context.get();
        let is_there = || context.is_some() && self.context.get().map(ptr::from_ref) == context.map(ptr::from_ref);
        if let Some(context) = context {
            context.poll_while(|| is_there() && !self.is_idle());
        }
        if is_there() {
            return Ok(());
        }
        let why = "cannot drain a detached engine: no context reaps its requests; attach it first";
        Err(io::Error::new(io::ErrorKind::NotConnected, why))
    }

    /// Returns the engine's counters and state.
    ///
    /// # Control
    ///
    /// Blocks until the context's lock is free if called from a thread other than the context's.
    pub fn stats(&self) -> Stats {
        let guard = self.context.acquire();
        let (in_flight, pending) = (self.in_flight.load(Ordering::Relaxed), self.pending.len(&guard) as u32);
        Stats {
            requests: self.taken() + u64::from(pending) + self.counts.refused.load(Ordering::Relaxed),
            completions: self.counts.completions.load(Ordering::Relaxed),
            submits: self.counts.submits.load(Ordering::Relaxed),
            sleeps: self.counts.sleeps.load(Ordering::Relaxed),
            in_flight,
            pending,
            on_threads: 0,
            blocked_submits: self.slow.beyond(),
            longest_submit: self.slow.longest(),
            bounced: self.counts.detours[Detour::Bounced as usize].load(Ordering::Relaxed),
            page_cached: self.counts.detours[Detour::PageCached as usize].load(Ordering::Relaxed),
        }
    }

    /// Returns the number of requests that the backend has accepted.
    fn taken(&self) -> u64 {
        self.counts.completions.load(Ordering::Relaxed) + u64::from(self.in_flight.load(Ordering::Relaxed))
    }

    /// Formats the engine's state for an error report.
    pub(crate) fn state(&self) -> String {
        format!(
            "in_flight {}, depth {}, plug depth {}, blocked {}, {} requests submitted, {} completed",
            self.in_flight.load(Ordering::Relaxed),
            self.depth,
            self.plug_depth.load(Ordering::Relaxed),
            self.blocked.load(Ordering::Relaxed),
            self.taken(),
            self.counts.completions.load(Ordering::Relaxed),
        )
    }
}

/// The interface through which the loop drives the engine.
impl<K: Kernel, P: Policy> Source for Engine<K, P> {
    fn dispatch(&self, token: LoopToken<'_>) -> bool {
        if !self.context.is_polled_by(token) {
            return false;
        }
        self.eager.store(0, Ordering::Relaxed);
        let read = self.context.mail.is_there() && self.read_mail(token.at_home());
        self.reap_from(token.at_home()) || read
    }

    fn flush(&self, token: LoopToken<'_>, all: bool) -> bool {
        if !self.context.is_polled_by(token) {
            return false;
        }
        let here = token.at_home();
        // A thread that reaps off home has woken the home thread, which submits pending requests
        // in its own iteration.
        if K::SUBMITS_AT_HOME && here.is_none() {
            return false;
        }
        // Before a sleep plugged requests are submitted too: nothing else would submit them (rule
        // E2). Nor may a loop that never sleeps delay them forever.
        let plugged = self.plug_depth.load(Ordering::Relaxed) > 0;
        let held = self.held.load(Ordering::Relaxed) + 1;
        if plugged && !all && held < MOST_HELD {
            self.held.store(held, Ordering::Relaxed);
            return false;
        }
        self.held.store(0, Ordering::Relaxed);
        !AtHome::in_child() && self.submit_from(here)
    }

    fn is_ready(&self, _token: HomeToken<'_>) -> bool {
        // SAFETY: only checks for a completion, which needs no lock.
        unsafe { self.kernel.peek() }.is_some() || self.can_submit() || self.context.mail.is_there()
    }

    fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0 && !self.can_submit()
    }

    fn describe(&self) -> String {
        self.state()
    }

    fn sleep(&self, token: HomeToken<'_>, other: BorrowedFd<'_>, timeout: Option<Duration>) -> Option<io::Result<()>> {
        if self.in_flight.load(Ordering::Relaxed) == 0 || P::NOTIFIER == Notifier::Lost {
            return None;
        }
        if !self.context.is_home_of(token) {
            return None;
        }
        add(&self.counts.sleeps, 1);
        // SAFETY: this is the loop of the context that the engine is with, on its home thread. Only
        // that thread sleeps and, if the backend requires it, submits.
        Some(unsafe { self.kernel.wait(1, Some(other), timeout) })
    }

    fn may_detach(&self, token: HomeToken<'_>) -> io::Result<()> {
        if !self.context.is_home_of(token) {
            return Ok(());
        }
        let why = "cannot detach the I/O engine by AioContext::detach: its requests would never complete; use Engine::detach \
                   or coralio_aio::detach";
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }

    fn close(&self, token: HomeToken<'_>) {
        if self.context.is_home_of(token) {
            self.finish_in_place();
        }
    }
}

/// Aborts the process: continuing would leave a buffer with the kernel that its owner is about to
/// free.
#[cold]
fn abort(why: &str) -> ! {
    coralio_runtime::report(format_args!("coralio: {why}"));
    std::process::abort()
}

impl<K: Kernel, P: Policy> std::fmt::Debug for Engine<K, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({})", self.state())
    }
}
