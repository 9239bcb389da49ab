//! An I/O engine as the loop sees it: a source of completions, and a way to sleep until they
//! arrive.

#![allow(unsafe_code)]

use std::any::Any;
use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::context::{AioContext, ContextGuard, HomeLockGuard, LocalContext, ROUNDS_PER_POLL, SharedContext};
use crate::coroutine::{Cancelled, CoroutineId, WaitReason};
use crate::sys::{fork, opaque_debug};

/// Converts a source to `dyn Any`, for a downcast. Implemented for every type. `dyn EventSource`
/// coerces to `dyn Any` by itself only since Rust 1.86.
pub trait IntoAny: Any + Send + Sync {
    /// Returns the same source as `dyn Any`.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<T: Any + Send + Sync> IntoAny for T {
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// The occasion of a call of [`EventSource::flush`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// An iteration ends.
    Iteration,
    /// An iteration ends, and the loop will flush again soon: before it sleeps, or at the end of its
    /// next iteration. The source may hold requests back until then, but not twice.
    MayHold,
    /// The loop will not continue as it has promised with `MayHold`: the source submits the requests
    /// that it holds back.
    Release,
    /// As `BeforeSleep`, but the loop first polls in memory for completions.
    BeforeBusyPoll,
    /// The loop is about to sleep: the source must not hold back a request whose submission nothing
    /// else would trigger. It may leave requests to its [`sleep`](EventSource::sleep), which submits
    /// them; or the next call of `flush` does, if something keeps the loop from sleeping.
    BeforeSleep,
}

impl Flush {
    /// Returns whether nothing else triggers the submission of requests that a plug holds back.
    pub fn precedes_wait(self) -> bool {
        matches!(self, Flush::BeforeBusyPoll | Flush::BeforeSleep)
    }
}

/// What an [`EventSource`] needs from the loop, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceState {
    /// `dispatch` or `flush` has work to do; the loop does not sleep.
    Ready,
    /// Requests are held back until the loop flushes before it sleeps.
    Held,
    /// Requests are in flight: the loop sleeps in the source.
    Waiting,
    /// No request is in flight or waiting to be submitted, so no completion will come.
    Idle,
}

/// An I/O engine that a context drives. One per context.
///
/// The loop calls [`dispatch`](Self::dispatch) at the beginning of each iteration, nested ones
/// included, and [`flush`](Self::flush) at its end; both under the context's lock, possibly from
/// another thread's poll. In between, the engine may batch requests: `flush` is sure to follow.
///
/// Every method that drives the engine takes a token that only a loop can create, so that no other
/// code can call the method. A source that passes its token on to another source passes the token
/// of its own context: an engine that relies on its context's lock or thread compares the token
/// with that context ([`LoopToken::is_of`], [`HomeToken::is_of`]).
pub trait EventSource: IntoAny {
    /// Processes completions. Returns whether there were any.
    ///
    /// # Control
    ///
    /// May enter coroutines, on the home thread.
    fn dispatch(&self, token: LoopToken<'_>) -> bool;

    /// Submits the batched requests, and processes those that complete immediately. Returns whether
    /// any request completed.
    ///
    /// # Control
    ///
    /// May enter coroutines, on the home thread.
    fn flush(&self, token: LoopToken<'_>, when: Flush) -> bool;

    /// Returns what the source needs from the loop. From any thread. Reads memory only.
    fn state(&self) -> SourceState;

    /// Describes its counters, for a dump. From any thread. The waiters of requests are described
    /// by the context.
    fn describe(&self) -> String;

    /// Sleeps until a completion arrives, `other` is readable, or `timeout` has elapsed. Returns
    /// whether `dispatch` has completions to process; `None` immediately if nothing in flight could
    /// complete. Called on the home thread only, without the lock; must not use the context
    /// meanwhile.
    ///
    /// A source that simulates a device does not sleep, but advances the context's [virtual
    /// clock](crate::VirtualClock) to the first completion, or by `timeout` if that is less; unless
    /// `other` is readable now.
    ///
    /// # Errors
    ///
    /// The system's error if the thread cannot sleep.
    fn sleep(&self, token: HomeToken<'_>, other: BorrowedFd<'_>, timeout: Option<Duration>)
    -> Option<io::Result<bool>>;

    /// Called by [`AioContext::detach`] on the home thread, under the context's lock, so that no poll
    /// of another thread is inside the engine: the context no longer drives the engine if this
    /// succeeds. An engine with requests returns an error, because nothing completes the
    /// requests of an engine without a context.
    ///
    /// # Errors
    ///
    /// The obstacle and the remedy.
    fn leave(&self, token: HomeToken<'_>) -> io::Result<()> {
        let _ = token;
        Ok(())
    }

    /// Called once, when the context and its coroutines have ended. The thread is still home to the
    /// context during this one call. Finishes operations of other users of the engine.
    fn close(&self, token: HomeToken<'_>) {
        let _ = token;
    }
}

/// Proof that the caller polls a context and holds the context's lock. Created only by a poll of
/// that context, and valid within the call that receives it. Off the home thread it proves nothing
/// while [`poll_while`](AioContext::poll_while) has released the lock: [`is_of`](Self::is_of) is
/// then false.
#[derive(Clone, Copy)]
pub struct LoopToken<'l> {
    poller: Poller<'l>,
    _not_send: PhantomData<*const ()>,
}

#[derive(Clone, Copy)]
enum Poller<'l> {
    Home(&'l LocalContext),
    OffHome(&'l ContextGuard<'l>),
}

impl<'l> LoopToken<'l> {
    /// Creates the token of a poll by the home thread, which holds the lock.
    #[inline]
    pub(crate) fn at_home_of(home: &'l LocalContext) -> LoopToken<'l> {
        LoopToken { poller: Poller::Home(home), _not_send: PhantomData }
    }

    /// Creates the token of a poll by another thread, which holds the lock.
    pub(crate) fn elsewhere(guard: &'l ContextGuard<'l>) -> LoopToken<'l> {
        LoopToken { poller: Poller::OffHome(guard), _not_send: PhantomData }
    }

    /// Returns whether the polled context is `context`, and its lock is held.
    #[inline]
    pub fn is_of(self, context: &AioContext) -> bool {
        match self.poller {
            Poller::Home(home) => ptr::eq(&*home.context.shared, &*context.shared),
            Poller::OffHome(guard) => guard.holds(&context.shared),
        }
    }

    /// Returns the engine operations of the context's home thread; `None` if another thread polls.
    #[inline]
    pub fn at_home(self) -> Option<HomeRef<'l>> {
        match self.poller {
            Poller::Home(home) => Some(HomeRef::new(home)),
            Poller::OffHome(_) => None,
        }
    }
}

/// Proof that the caller is a context's loop, on the home thread, that is about to sleep or end.
/// Created only by that loop, and valid within the call that receives it.
#[derive(Clone, Copy)]
pub struct HomeToken<'l> {
    shared: &'l SharedContext,
    _not_send: PhantomData<*const ()>,
}

impl<'l> HomeToken<'l> {
    #[inline]
    pub(crate) fn new(home: &'l LocalContext) -> HomeToken<'l> {
        HomeToken { shared: &home.context.shared, _not_send: PhantomData }
    }

    /// Returns whether the loop is that of `context`.
    #[inline]
    pub fn is_of(self, context: &AioContext) -> bool {
        ptr::eq(self.shared, &*context.shared)
    }
}

/// The operations that an engine may perform on its context's home thread. A proof of being on that
/// thread, looked up once for many operations.
///
/// Passed by [`AioContext::at_home`](super::AioContext::at_home) to its closure, and valid within
/// it.
#[derive(Clone, Copy)]
pub struct HomeRef<'h> {
    pub(crate) home: &'h LocalContext,
    _not_send: PhantomData<*const ()>,
}

impl<'h> HomeRef<'h> {
    #[inline]
    pub(crate) fn new(home: &'h LocalContext) -> HomeRef<'h> {
        HomeRef { home, _not_send: PhantomData }
    }

    /// Returns the `HomeRef` of this thread's context, if it has one. Takes no closure, so that
    /// code that suspends is compiled into its caller.
    ///
    /// # Safety
    ///
    /// The value is not used after the end of the coroutine, or of the closure of
    /// [`run`](super::AioContext::run), in which this was called.
    #[inline(always)]
    pub unsafe fn here() -> Option<HomeRef<'h>> {
        let home = LocalContext::current();
        if home.is_none() {
            fork::refuse_in_child("using a context");
        }
        home.map(HomeRef::new)
    }

    /// Returns whether this is the home of `context`.
    #[inline]
    pub fn is_of(self, context: &AioContext) -> bool {
        Arc::ptr_eq(&self.home.context.shared, &context.shared)
    }

    /// Returns the token of the running coroutine; `None` on the thread's own stack and in the
    /// loop.
    #[inline]
    pub fn current(self) -> Option<CoroutineId> {
        self.home.scheduler.running().map(|block| block.id())
    }

    /// Returns whether this process is the child of a fork by a coroutine. In the child the home no
    /// longer exists, and requests in flight and memory shared with the kernel belong to the
    /// parent. Check this after any call that may enter a coroutine.
    #[inline]
    pub fn in_child() -> bool {
        fork::in_child()
    }

    /// Acquires the context's lock, as [`AioContext::acquire`](super::AioContext::acquire).
    ///
    /// # Control
    ///
    /// May block the thread.
    #[inline]
    pub fn acquire(self) -> HomeLockGuard<'h> {
        self.home.context.shared.acquire_at_home()
    }

    /// Returns an error if the running coroutine is to end early, as
    /// [`check_cancelled`](crate::check_cancelled). The caller must fail with that error, so that
    /// an expired timeout is reported.
    ///
    /// # Errors
    ///
    /// [`Cancelled`].
    #[inline]
    pub fn check_cancelled(self) -> Result<(), Cancelled> {
        match self.home.scheduler.running() {
            Some(block) if self.home.scheduler.is_cancelled(block) => Err(self.home.scheduler.cut_short(block)),
            _ => Ok(()),
        }
    }

    /// Returns whether another coroutine is ready to run, or has been woken by the running one.
    #[inline]
    pub fn has_ready(self) -> bool {
        self.home.scheduler.has_ready() || self.home.scheduler.has_woken()
    }

    /// Returns whether the loop would run something else now: a coroutine that is ready, a bottom half,
    /// or work of another thread. Timers and descriptors are not checked.
    #[inline]
    pub fn has_due(self) -> bool {
        let shared = &*self.home.context.shared;
        self.has_ready() || shared.scheduler.remote_queue.is_pending() || shared.bottom_halves.is_due()
    }

    /// Returns whether an iteration of the loop would look for events that [`has_due`](Self::has_due)
    /// does not see: a timer is armed, or there is a handler of a descriptor, or a poll handler.
    #[inline]
    pub fn awaits_events(self) -> bool {
        let shared = &*self.home.context.shared;
        !(shared.timers.is_empty() && shared.watches.is_empty() && shared.pollers.is_empty())
    }

    /// Returns whether the loop is in an iteration, so that [`EventSource::flush`] is sure to
    /// follow.
    #[inline]
    pub fn is_in_round(self) -> bool {
        self.home.scheduler.is_in_round()
    }

    /// Makes the loop's next iteration poll the descriptors. A busy loop otherwise polls them in every
    /// eighth iteration only. For an engine whose coroutines have used the time of several iterations
    /// in this one.
    pub fn poll_descriptors_next(self) {
        self.home.context.shared.busy_rounds.store(ROUNDS_PER_POLL - 1, Ordering::Relaxed);
    }

    /// Suspends the running coroutine until `look` returns a value, and returns that value. `look`
    /// is called first, and again whenever the coroutine is resumed; if it returns nothing and the
    /// coroutine is to end early, `cancelled` is called. Returns `None` if the coroutine cannot be
    /// suspended because its stack unwinds.
    ///
    /// An operation that is being cancelled may still succeed. A caller that finally returns
    /// [`Cancelled`] must obtain the error from [`check_cancelled`](Self::check_cancelled), so that
    /// an expired timeout is reported.
    ///
    /// # Panics
    ///
    /// Panics outside a coroutine, and while the coroutine holds the context's lock.
    ///
    /// # Control
    ///
    /// May yield, as [`suspend`](crate::suspend).
    #[inline(always)]
    #[track_caller]
    pub fn suspend_until<R>(self, look: impl Fn() -> Option<R>, cancelled: impl Fn() -> Option<R>) -> Option<R> {
        let mut found = look();
        while found.is_none() && self.home.scheduler.suspend_if_possible(WaitReason::Io) {
            found = look();
            if found.is_none()
                && self.home.scheduler.running().is_some_and(|block| self.home.scheduler.is_cancelled(block))
            {
                found = cancelled();
            }
        }
        found
    }

    /// Wakes the coroutine behind `token`, unless it is entered: it then checks its condition
    /// before it suspends. Returns false, without effect, if the coroutine has ended or belongs to
    /// another context.
    ///
    /// # Panics
    ///
    /// Propagates the panic of a coroutine that it enters.
    ///
    /// # Control
    ///
    /// May enter the coroutine.
    #[inline]
    #[track_caller]
    pub fn wake_unless_entered(self, token: CoroutineId) -> bool {
        let ours = token.lives_in(self.home.scheduler.shared.id());
        if ours {
            self.home.scheduler.wake_unless_entered(token.block);
        }
        ours
    }
}

opaque_debug!(LoopToken<'l>, HomeToken<'l>, HomeRef<'h>);
