//! The engine: what lies between a coroutine that wants I/O and a kernel that does it.
//!
//! ```text
//!   coroutine                 queue.rs                kernel              reap.rs
//!   ---------                 --------                ------              -------
//!   perform(op)
//!     a slot, its key  --->   pending
//!     suspend()                 plugged, or in a
//!                               round of the loop?
//!                               no: submit   ------>  in flight
//!                               yes: gathers,         ...
//!                                 flush submits       done  ----------->  in_flight counts down
//!                                                                         cursor moves
//!     looks: done?     <------------------ woken, unless entered -------- result is stored
//!     returns
//! ```
//!
//! [`perform`] is the one way in, and in it lies what makes borrowed buffers sound (*lent to the kernel*, rule E13): it does
//! not return, and does not unwind, before its request has completed.

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

/// Rule E1: one engine per context, on a kernel of its own.
///
/// Programs do not see it; [`File`](crate::File) uses the engine of the context it is opened in. It is public for tests that
/// run it on a [scripted kernel](crate::kernel::scripted), or with a [`Policy`] of their own.
pub struct Engine<K: Kernel, P: Policy = Current> {
    pub(crate) context: Place,
    pub(crate) kernel: K,
    /// The context has an event log.
    pub(crate) traced: bool,
    pub(crate) depth: u32,
    pub(crate) requests: Requests,
    pub(crate) pending: Pending<K::Entry>,
    /// Counted by the kernel and not reaped. Written under the context's lock, by plain stores (rule E9).
    pub(crate) in_flight: AtomicU32,
    pub(crate) plug_depth: AtomicU32,
    /// Submits since the loop's last look that went because the queue was full.
    pub(crate) eager: AtomicU32,
    /// Rounds in a row that have ended with a plug in.
    pub(crate) held: AtomicU32,
    /// The kernel did not take all: nothing is submitted before a completion was reaped, if one is to come.
    pub(crate) blocked: AtomicBool,
    pub(crate) counts: Counts,
    pub(crate) slow: Slow,
    _policy: PhantomData<P>,
}

/// A plug holds requests back for fewer rounds than this.
const MOST_HELD: u32 = 16;

/// What the engine has done so far. Written under the context's lock.
#[derive(Default)]
pub(crate) struct Counts {
    /// Requests that ended without a completion: they failed at submit, or were taken back.
    pub(crate) refused: AtomicU64,
    pub(crate) completions: AtomicU64,
    pub(crate) submits: AtomicU64,
    pub(crate) sleeps: AtomicU64,
    /// By [`Detour`]. Written by the home thread alone.
    pub(crate) detours: [AtomicU64; 2],
}

/// The way of a request that direct I/O does not take as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Detour {
    /// Direct, through an aligned buffer.
    Bounced,
    PageCached,
}

/// Adds by plain load and store: there is one writer at a time, and a lost count is no harm.
#[inline]
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}

/// What an engine has done so far, and how it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests made.
    pub requests: u64,
    /// Requests completed by the kernel.
    pub completions: u64,
    /// System calls that submitted.
    pub submits: u64,
    /// System calls that slept until something completed.
    pub sleeps: u64,
    /// Requests that the kernel has now.
    pub in_flight: u32,
    /// Requests that wait to be submitted.
    pub pending: u32,
    /// Of `requests`, those that went to a thread because they would have blocked the loop in submit
    /// ([`KernelChoice::Auto`](crate::KernelChoice::Auto)).
    pub on_threads: u64,
    /// Submits that blocked the loop for longer than [`Runner::submit_limit`](crate::Runner::submit_limit); 0 without one.
    pub blocked_submits: u64,
    /// The longest submit, where there is a limit; else zero.
    pub longest_submit: Duration,
    /// Of `requests`, direct ones that went through an aligned buffer, since their memory was not aligned
    /// ([`File`](crate::File)).
    pub bounced: u64,
    /// Of `requests`, those of files open for direct I/O that went through the page cache, since their offset or length was not
    /// aligned ([`File`](crate::File)).
    pub page_cached: u64,
}

impl<K: Kernel, P: Policy> Engine<K, P> {
    /// Gives this thread's context an engine on `kernel`, with at most `depth` requests in flight.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: `depth` is 0, or more than the kernel takes. `AlreadyExists`: the context has an engine.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn attach(kernel: K, depth: u32) -> io::Result<Arc<Engine<K, P>>> {
        let engine = Engine::new(kernel, depth, true)?;
        let context = engine.context.get().expect("it is new, and with the context that it was made for");
        context.attach(Arc::clone(&engine) as Arc<dyn Source>)?;
        Ok(engine)
    }

    /// As `attach`, for one that another source drives. It tells the event log of what it does only if it is `told`: the log knows
    /// one engine of a context.
    pub(crate) fn new(kernel: K, depth: u32, told: bool) -> io::Result<Arc<Engine<K, P>>> {
        let context = AioContext::current().expect("an engine belongs to a context; call it inside `run(|| ..)`");
        if depth == 0 || depth > kernel.capacity() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a queue depth of {depth} cannot be; choose 1 to {}", kernel.capacity()),
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

    /// Does one operation, and returns what the kernel said: bytes, or an error.
    ///
    /// # Errors
    ///
    /// The kernel's `errno`; `ENOTCONN` if the engine's context is not this thread's;
    /// [`Cancelled`](coralio_runtime::Cancelled) if the coroutine was cancelled before.
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield; may enter other coroutines. Where nothing can be suspended, in a destructor while the stack unwinds, it
    /// waits in place.
    ///
    /// # Safety
    ///
    /// The memory that `operation` names is valid, and for reads not aliased, until this returns or unwinds.
    #[inline]
    pub unsafe fn transfer(&self, operation: &Operation) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        let result = unsafe { perform(self, &Attempt { operation: *operation, nowait: false }) };
        if result < 0 { Err(error_of(-result as i32)) } else { Ok(result as usize) }
    }

    /// Waits for a request without leaving this stack: it unwinds, or must not be left for another reason. Others that
    /// complete meanwhile are woken, and run later.
    #[cold]
    pub(crate) fn wait_in_place(&self, slot: &Slot) -> i64 {
        if !self.is_at_home() {
            return self.wait_abroad(slot);
        }
        // Held while it sleeps too: another thread that reaped the completion meanwhile would leave it asleep.
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
                    // It was dropped before the kernel had it.
                    return -i64::from(libc::ECANCELED);
                }
                abort(&format!("a request is lost, neither pending nor in flight ({})", self.state()));
            }
            // Else the kernel said "try again", and nothing in flight would wake a sleep (rule E2).
            if const { gets_stuck::<P>() } {
                // So that a test that has seen it comes to its end.
                self.blocked.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Sleeps until a completion is there, or until a coroutine elsewhere gives its request up. Under the engine's lock.
    pub(crate) fn sleep_in_place(&self) {
        let sleep = || {
            add(&self.counts.sleeps, 1);
            // SAFETY: the engine's lock is held, and by the home thread or in transit: no other thread sleeps.
            let slept = unsafe { self.kernel.wait(1, None, None) };
            // Returning would leave the buffer with the kernel.
            slept.unwrap_or_else(|error| abort(&format!("cannot wait for I/O in flight: {error}")));
        };
        if !self.context.mail.sleep(sleep) {
            self.read_mail(None);
        }
    }

    /// From now on submits are timed, and those that take longer are counted: [`Stats::blocked_submits`].
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn set_submit_limit(&self, limit: Duration) {
        self.slow.set_limit(limit);
    }

    /// Waits until no request is in flight and none is pending, as [`AioContext::poll_while`] waits: on the home thread it
    /// runs the loop, another thread waits for the loop. Requests that coroutines make meanwhile are waited for too.
    ///
    /// # Errors
    ///
    /// `NotConnected`: the engine is [detached](Engine::detach), or is detached meanwhile; nothing completes its requests
    /// before it is attached again.
    ///
    /// # Panics
    ///
    /// With the panic of what the loop runs.
    ///
    /// # Control
    ///
    /// May enter coroutines. Blocks the thread, not the coroutine.
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
        let why = "cannot drain a detached engine: no context completes its requests; attach it first";
        Err(io::Error::new(io::ErrorKind::NotConnected, why))
    }

    /// How the engine stands.
    ///
    /// # Control
    ///
    /// Never switches. From another thread than its context's, it waits for the context's lock.
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

    /// Requests that the kernel has taken so far.
    fn taken(&self) -> u64 {
        self.counts.completions.load(Ordering::Relaxed) + u64::from(self.in_flight.load(Ordering::Relaxed))
    }

    /// The engine's state, for a message about a violation.
    pub(crate) fn state(&self) -> String {
        format!(
            "in_flight {}, depth {}, plug depth {}, blocked {}, {} requests taken, {} completed",
            self.in_flight.load(Ordering::Relaxed),
            self.depth,
            self.plug_depth.load(Ordering::Relaxed),
            self.blocked.load(Ordering::Relaxed),
            self.taken(),
            self.counts.completions.load(Ordering::Relaxed),
        )
    }
}

/// How the loop drives the engine.
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
        // Whoever reaps from elsewhere has woken the home thread; what is pending goes in that one's round.
        if K::SUBMITS_AT_HOME && here.is_none() {
            return false;
        }
        // Before a sleep even what is plugged goes: nobody else would submit it (rule E2). Nor may a loop that never
        // sleeps hold it back for ever.
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
        // SAFETY: a look whether something is there, without the lock.
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
        // SAFETY: this is the loop of the context that the engine is with, on its home thread, which alone sleeps and,
        // where that matters, submits.
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

/// Going on would leave a buffer with the kernel that its owner is about to free.
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
