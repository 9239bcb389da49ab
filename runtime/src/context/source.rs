//! What an I/O engine is to the loop: a place to look for completions, and a way to sleep until they come.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::coroutine::waiting::Waiting;
use crate::coroutine::{Cancelled, Coroutine, Token};
use crate::home::{Home, fork};

use super::AioContext;
use super::lock::HomeGuard;
use super::shared::Shared;

/// An I/O engine that a context drives. One per context.
///
/// The loop calls [`dispatch`](Self::dispatch) at the beginning of each round, nested rounds too, and
/// [`flush`](Self::flush) at its end; both under the context's lock, also from another thread's poll. Between the two
/// the engine may let requests gather: `flush` is sure to come.
///
/// Every method that drives the engine takes a token that only a loop can create, so that no other code can call the
/// method. A source that passes its token on to another source passes the token of its own context: an engine that relies
/// on its context's lock or thread compares the token with that context ([`LoopToken::is_of`], [`HomeToken::is_of`]).
pub trait Source: Any + Send + Sync {
    /// Completes what is done. Returns whether anything was.
    ///
    /// # Control
    ///
    /// May enter coroutines, on the home thread.
    fn dispatch(&self, token: LoopToken<'_>) -> bool;

    /// Submits what has gathered, and completes what is done at once. With `all`, the loop is about to sleep: nothing may
    /// stay behind with nobody to wake it. Returns whether anything was completed.
    ///
    /// # Control
    ///
    /// May enter coroutines, on the home thread.
    fn flush(&self, token: LoopToken<'_>, all: bool) -> bool;

    /// Whether there is something for `dispatch`, or something that `flush` held back and that may go now: then the loop
    /// does not sleep. A look at memory.
    fn is_ready(&self, token: HomeToken<'_>) -> bool;

    /// Whether nothing is with the kernel and nothing waits to be submitted: then no completion will come. A look at memory.
    fn is_idle(&self) -> bool;

    /// Its counters in words, for a dump. From any thread. Who waits for a request, and since when, the context knows.
    fn describe(&self) -> String;

    /// Sleeps until a completion is there, `other` is readable, or `timeout` is over; or returns `None` at once, if
    /// nothing is in flight that could complete. Called by the home thread alone, without the
    /// lock; it may not use the context meanwhile.
    ///
    /// A source that simulates a device does not sleep, but advances the context's [virtual
    /// clock](crate::VirtualClock) to when the first completion is there, or by `timeout` if that is less; not if `other` is
    /// readable now.
    ///
    /// # Errors
    ///
    /// What the system says if it cannot sleep.
    fn sleep(&self, token: HomeToken<'_>, other: BorrowedFd<'_>, timeout: Option<Duration>) -> Option<io::Result<()>>;

    /// Returns whether [`AioContext::detach`] may take the engine from the context. An engine that has a way of its own to
    /// leave, or that stays, returns an error: nothing completes the requests of an engine without a context.
    ///
    /// # Errors
    ///
    /// What is in the way, and the remedy.
    fn may_detach(&self, token: HomeToken<'_>) -> io::Result<()> {
        let _ = token;
        Ok(())
    }

    /// The context has ended, and its coroutines with it; it is home for this one call still. What others have with the engine
    /// is brought to its end.
    fn close(&self, token: HomeToken<'_>) {
        let _ = token;
    }
}

/// Proof that the caller polls a context and holds the context's lock. Created by a poll of that context alone, and
/// valid within the call that it is passed to.
#[derive(Clone, Copy)]
pub struct LoopToken<'l> {
    shared: &'l Shared,
    home: Option<&'l Home>,
    _not_send: PhantomData<*const ()>,
}

impl<'l> LoopToken<'l> {
    /// Of a poll by the home thread, which holds the lock.
    #[inline]
    pub(crate) fn at_home_of(home: &'l Home) -> LoopToken<'l> {
        LoopToken { shared: &home.shared, home: Some(home), _not_send: PhantomData }
    }

    /// Of a poll by another thread, which holds the lock.
    pub(crate) fn elsewhere(shared: &'l Shared) -> LoopToken<'l> {
        LoopToken { shared, home: None, _not_send: PhantomData }
    }

    /// Whether the context that is polled is `context`.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn is_of(self, context: &AioContext) -> bool {
        ptr::eq(self.shared, &*context.shared)
    }

    /// What an engine may do on the context's home thread; `None` if another thread polls.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn at_home(self) -> Option<AtHome<'l>> {
        self.home.map(AtHome::new)
    }
}

impl std::fmt::Debug for LoopToken<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoopToken")
    }
}

/// Proof that the caller is a context's loop, on the context's home thread, when the loop sleeps or ends. Created by that
/// loop alone, and valid within the call that it is passed to.
#[derive(Clone, Copy)]
pub struct HomeToken<'l> {
    shared: &'l Shared,
    _not_send: PhantomData<*const ()>,
}

impl<'l> HomeToken<'l> {
    #[inline]
    pub(crate) fn new(home: &'l Home) -> HomeToken<'l> {
        HomeToken { shared: &home.shared, _not_send: PhantomData }
    }

    /// Whether the loop is that of `context`.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn is_of(self, context: &AioContext) -> bool {
        ptr::eq(self.shared, &*context.shared)
    }
}

impl std::fmt::Debug for HomeToken<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HomeToken")
    }
}

/// The engines that a context has had; the one that it has. None is dropped before the home is: a round that one was taken away
/// in may be on the stack.
#[derive(Default)]
pub(crate) struct Sources(OnceCell<Box<Had>>);

struct Had {
    source: Arc<dyn Source>,
    has_gone: Cell<bool>,
    next: Sources,
}

impl Sources {
    fn all(&self) -> impl Iterator<Item = &Had> {
        std::iter::successors(self.0.get(), |had| had.next.0.get()).map(|had| &**had)
    }

    fn current(&self) -> Option<&Had> {
        self.all().find(|had| !had.has_gone.get())
    }

    #[inline]
    pub(crate) fn get(&self) -> Option<&Arc<dyn Source>> {
        self.current().map(|had| &had.source)
    }

    fn set(&self, source: &Arc<dyn Source>) -> io::Result<()> {
        if self.current().is_some() {
            let why = "the context has an I/O engine already; share that one";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        bind(source)?;
        if let Some(had) = self.all().find(|had| Arc::ptr_eq(&had.source, source)) {
            had.has_gone.set(false);
            return Ok(());
        }
        let news = Had { source: Arc::clone(source), has_gone: Cell::new(false), next: Sources::default() };
        let end = self.all().last().map_or(self, |had| &had.next);
        assert!(end.0.set(Box::new(news)).is_ok(), "the last source has no next one");
        Ok(())
    }

    fn take(&self) -> Option<Arc<dyn Source>> {
        let had = self.current()?;
        had.has_gone.set(true);
        release(&had.source);
        Some(Arc::clone(&had.source))
    }
}

impl Drop for Had {
    fn drop(&mut self) {
        if !self.has_gone.get() {
            release(&self.source);
        }
    }
}

/// Addresses of the sources that contexts of this process have now. One context at a time drives an engine.
static ATTACHED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn address(source: &Arc<dyn Source>) -> usize {
    Arc::as_ptr(source).cast::<()>().addr()
}

/// Records that a context has `source`; fails if another context has it.
fn bind(source: &Arc<dyn Source>) -> io::Result<()> {
    let mut attached = ATTACHED.lock();
    if attached.contains(&address(source)) {
        let why = "cannot attach the I/O engine: another context has it; detach it there first";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
    }
    attached.push(address(source));
    Ok(())
}

fn release(source: &Arc<dyn Source>) {
    ATTACHED.lock().retain(|&other| other != address(source));
}

impl AioContext {
    /// Gives the context its I/O engine. For authors of engines.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`: the context has an engine already. `ResourceBusy`: another context has this engine.
    ///
    /// # Panics
    ///
    /// On another thread than the context's home.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn attach(&self, source: Arc<dyn Source>) -> io::Result<()> {
        let Some(home) = self.shared.home() else {
            panic!("an engine is attached on the context's home thread");
        };
        home.source.set(&source)?;
        *self.shared.source.lock() = Some(source);
        Ok(())
    }

    /// Takes the I/O engine away from the context, and returns it, if it has one. The engine answers for its requests. Until
    /// the context ends it keeps a handle to it. For authors of engines.
    ///
    /// # Errors
    ///
    /// That of [`Source::may_detach`]. The context keeps the engine.
    ///
    /// # Panics
    ///
    /// On another thread than the context's home.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn detach(&self) -> io::Result<Option<Arc<dyn Source>>> {
        let Some(home) = self.shared.home() else {
            panic!("an engine is detached on the context's home thread");
        };
        if let Some(source) = home.source.get() {
            source.may_detach(HomeToken::new(home))?;
        }
        let shared = self.shared.source.lock().take();
        drop(shared);
        Ok(home.source.take())
    }
}

/// What an engine may do on its context's home thread: proof that this is it, looked up once for many steps.
///
/// Handed out by [`AioContext::at_home`](super::AioContext::at_home), and good within its closure.
#[derive(Clone, Copy)]
pub struct AtHome<'h> {
    home: &'h Home,
    _not_send: PhantomData<*const ()>,
}

impl<'h> AtHome<'h> {
    #[inline]
    pub(crate) fn new(home: &'h Home) -> AtHome<'h> {
        AtHome { home, _not_send: PhantomData }
    }

    /// This thread's context; `None`, if it has none. Without a closure, so that what suspends in between is compiled into its
    /// caller.
    ///
    /// # Safety
    ///
    /// It is not used after the coroutine, or the closure of [`run`](super::AioContext::run), that this was called in has ended.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline(always)]
    pub unsafe fn here() -> Option<AtHome<'h>> {
        let home = Home::current();
        if home.is_none() {
            fork::refuse_in_child("using a context");
        }
        home.map(AtHome::new)
    }

    /// Whether this is the home of `context`.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn is_of(self, context: &AioContext) -> bool {
        Arc::ptr_eq(&self.home.shared, &context.shared)
    }

    /// The coroutine that runs now, as an engine keeps it; `None` on the thread's own stack and in the loop.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn current(self) -> Option<Token> {
        self.home.running().map(|block| Token::of(block.id()))
    }

    /// Whether a coroutine has forked, and this is the child: then the home is there no more, and what an engine has in
    /// flight, and in memory that it shares with the kernel, is the parent's. To be asked after whatever may enter.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn in_child() -> bool {
        fork::in_child()
    }

    /// The coroutine behind `token`, if it lives.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn coroutine(self, token: Token) -> Option<Coroutine> {
        token.lives_in(&self.home.shared).then(|| token.coroutine())
    }

    /// Takes the context's lock, as [`AioContext::acquire`](super::AioContext::acquire).
    ///
    /// # Control
    ///
    /// Never switches; may block the thread.
    #[inline]
    pub fn acquire(self) -> HomeGuard<'h> {
        self.home.shared.acquire_at_home()
    }

    /// An error if the running coroutine is to end early, as [`check_cancelled`](crate::check_cancelled). The caller fails
    /// with it: a timeout that is over reports that.
    ///
    /// # Errors
    ///
    /// [`Cancelled`].
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn check_cancelled(self) -> Result<(), Cancelled> {
        match self.home.running() {
            Some(block) if self.home.is_cancelled(block) => Err(self.home.cut_short(block)),
            _ => Ok(()),
        }
    }

    /// Whether the loop is in a round, so that [`Source::flush`] is sure to come.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn is_in_round(self) -> bool {
        self.home.is_in_round()
    }

    /// Suspends the running coroutine until `look` finds something, and returns it. It looks first, and again whenever the
    /// coroutine is resumed; if it finds nothing then, and the coroutine is to end early, it asks `cancelled`. `None`: the
    /// coroutine cannot be suspended, since its stack unwinds.
    ///
    /// What is being cancelled may still succeed. A caller that returns [`Cancelled`] in the end calls
    /// [`check_cancelled`](Self::check_cancelled) for it, so that a timeout that is over reports it.
    ///
    /// # Panics
    ///
    /// Outside a coroutine; and while the coroutine holds the context's lock (rule X8).
    ///
    /// # Control
    ///
    /// May yield, as [`suspend`](crate::suspend).
    #[inline(always)]
    #[track_caller]
    pub fn suspend_until<R>(self, look: impl Fn() -> Option<R>, cancelled: impl Fn() -> Option<R>) -> Option<R> {
        let mut found = look();
        while found.is_none() && self.home.suspend_if_possible(Waiting::Io) {
            found = look();
            if found.is_none() && self.home.running().is_some_and(|block| self.home.is_cancelled(block)) {
                found = cancelled();
            }
        }
        found
    }

    /// Wakes the coroutine behind `token`, unless it is entered: then it looks before it suspends (rule E6). If it has
    /// ended, or is another context's, nothing happens, and this returns false.
    ///
    /// # Panics
    ///
    /// With its panic, if it is entered and panics.
    ///
    /// # Control
    ///
    /// May enter it.
    #[inline]
    #[track_caller]
    pub fn wake_unless_entered(self, token: Token) -> bool {
        let ours = token.lives_in(&self.home.shared);
        if ours {
            self.home.wake_unless_entered(token.block());
        }
        ours
    }
}

impl std::fmt::Debug for AtHome<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AtHome")
    }
}
