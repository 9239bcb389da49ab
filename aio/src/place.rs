//! Where an engine is: with a context, or between two (rule E12).
//!
//! ```text
//!   with A      under A's lock       A's thread submits, reaps and waits
//!   in transit  under its own lock   nobody but whoever must: a stack that unwinds, a `Detached` that is dropped
//!   with B      under B's lock       B's thread
//! ```
//!
//! Requests keep their coroutines, which stay at home: what B reaps for one of A's is stored in the request's slot, and A's loop
//! is told. So who waits may find the engine gone. What it would have done itself it leaves here as *mail*: that a request
//! be cancelled. A stack that must not be left before its request is done waits for *news*.
//!
//! Named here, and cited where they are relied on:
//!
//! - *where it is, is whose lock*: the engine's state is changed under the lock of its place. Only who holds that lock moves it: the
//!   home thread out of a context, whoever holds `transit` into one. A lock is taken, and then it is looked whether the
//!   engine is still there.
//! - *places stay*: a context that the engine was ever with is kept until the engine is dropped, so that a pointer to it is good
//!   for as long as a reference to the engine; its descriptors too, whose numbers a kernel may still watch, and its
//!   address, by which coroutines tell whose they are.

#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use coralio_runtime::trace::Tracer;
use coralio_runtime::{AioContext, AtHome, ContextGuard, HomeGuard, HomeToken, LoopToken, Token};
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

/// What the model checker's builds of the lock-free parts replace by its own.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
    pub(super) use std::sync::{Mutex, MutexGuard};
}
mod mail;

use mail::Mail;

/// See the module.
pub(crate) struct Place {
    /// Null in transit.
    now: AtomicPtr<AioContext>,
    transit: ReentrantMutex<()>,
    /// *places stay*
    // Boxed, so that they do not move when one more comes.
    #[allow(clippy::vec_box)]
    places: Mutex<Vec<Box<AioContext>>>,
    /// Requests that are to be cancelled.
    pub(crate) mail: Mail,
    news: Condvar,
    told: Mutex<()>,
    /// Reaps and submits of the home thread that are on the stack. Its alone.
    busy: AtomicU32,
}

/// The engine's lock, held, whichever it is now. One of the two.
pub(crate) struct Held<'a> {
    _home: Option<HomeGuard<'a>>,
    // Apart, and dropped by hand, so that what drops a `Held` at home is a few instructions, in line.
    abroad: ManuallyDrop<Option<Abroad<'a>>>,
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.abroad.is_some() {
            self.drop_abroad();
        }
    }
}

enum Abroad<'a> {
    Context { _guard: ContextGuard<'a> },
    Transit { _guard: ReentrantMutexGuard<'a, ()> },
}

/// The lock of the place that the engine is in is held.
pub(crate) trait Locked {}
impl Locked for Held<'_> {}
/// Where the engine is with that home's context.
impl Locked for HomeGuard<'_> {}

impl<'a> Held<'a> {
    /// Of an engine that is with the context whose home `here` is.
    #[inline]
    pub(crate) fn at_home(here: AtHome<'a>) -> Held<'a> {
        Held { _home: Some(here.acquire()), abroad: ManuallyDrop::new(None) }
    }

    fn abroad(guard: Abroad<'a>) -> Held<'a> {
        Held { _home: None, abroad: ManuallyDrop::new(Some(guard)) }
    }

    #[cold]
    fn drop_abroad(&mut self) {
        // SAFETY: called by `drop` alone, which runs once, and after which nobody uses the field.
        unsafe { ManuallyDrop::drop(&mut self.abroad) };
    }
}

impl Place {
    pub(crate) fn new(context: AioContext) -> Place {
        let context = Box::new(context);
        Place {
            now: AtomicPtr::new(ptr::from_ref(&*context).cast_mut()),
            transit: ReentrantMutex::new(()),
            places: Mutex::new(vec![context]),
            mail: Mail::new(),
            news: Condvar::new(),
            told: Mutex::new(()),
            busy: AtomicU32::new(0),
        }
    }

    /// The context that it is with; `None` in transit.
    #[inline]
    pub(crate) fn get(&self) -> Option<&AioContext> {
        // Acquire pairs with the release in `go`: the engine as it was left is seen.
        // SAFETY: *places stay*.
        unsafe { self.now.load(Ordering::Acquire).as_ref() }
    }

    /// Whether it is with this context, which `get` returned.
    fn is(&self, context: &AioContext) -> bool {
        // Relaxed: if it is, and this is that one's home, nobody else has moved it.
        ptr::eq(self.now.load(Ordering::Relaxed), context)
    }

    /// Whether it is with the context whose home `here` is.
    #[inline]
    pub(crate) fn is_at(&self, here: AtHome<'_>) -> bool {
        self.get().is_some_and(|context| here.is_of(context))
    }

    /// Whether the poll that `token` stands for is one of the context that it is with.
    #[inline]
    pub(crate) fn is_polled_by(&self, token: LoopToken<'_>) -> bool {
        self.get().is_some_and(|context| token.is_of(context))
    }

    /// Whether the loop that `token` stands for is that of the context that it is with.
    #[inline]
    pub(crate) fn is_home_of(&self, token: HomeToken<'_>) -> bool {
        self.get().is_some_and(|context| token.is_of(context))
    }

    /// As [`AioContext::at_home`], where it is; `None` in transit too.
    #[inline(always)]
    pub(crate) fn at_home<R>(&self, f: impl for<'h> FnOnce(AtHome<'h>) -> R) -> Option<R> {
        self.get()?.at_home(f)
    }

    pub(crate) fn tracer(&self) -> Option<&Tracer> {
        self.get()?.tracer()
    }

    /// *where it is, is whose lock*
    pub(crate) fn acquire(&self) -> Held<'_> {
        loop {
            let Some(context) = self.get() else {
                match self.acquire_transit() {
                    Some(held) => return held,
                    None => continue,
                }
            };
            let guard = context.acquire();
            if self.is(context) {
                return Held::abroad(Abroad::Context { _guard: guard });
            }
        }
    }

    /// As `acquire`; at home, if `here` says so, without a look where the engine is.
    #[inline]
    pub(crate) fn acquire_from<'a>(&'a self, here: Option<AtHome<'a>>) -> Held<'a> {
        here.map_or_else(|| self.acquire(), Held::at_home)
    }

    /// The lock in transit, if it is in transit.
    #[cold]
    pub(crate) fn acquire_transit(&self) -> Option<Held<'_>> {
        let guard = self.transit.lock();
        self.get().is_none().then(|| Held::abroad(Abroad::Transit { _guard: guard }))
    }

    fn go(&self, to: *mut AioContext) {
        // Release pairs with the acquire in `get`.
        self.now.store(to, Ordering::Release);
        // Pairs with the fence in `Mail::put`: it is seen here, or its sender sees where the engine is now.
        fence(Ordering::SeqCst);
        self.tell();
    }

    /// Leaves the context that it is with. Under that one's lock, on its home thread.
    pub(crate) fn leave(&self, _lock: &Held<'_>) {
        self.go(ptr::null_mut());
    }

    /// Comes to `context`. Under the lock in transit.
    pub(crate) fn enter(&self, _lock: &Held<'_>, context: &AioContext) {
        let mut places = locked(&self.places);
        let known = places.iter().position(|place| place.is_same(context));
        let place = known.unwrap_or_else(|| {
            places.push(Box::new(context.clone()));
            places.len() - 1
        });
        let to = ptr::from_ref(&*places[place]).cast_mut();
        drop(places);
        self.go(to);
    }

    pub(crate) fn notify(&self) {
        if let Some(context) = self.get() {
            context.wake_loop();
        }
    }

    /// Makes a coroutine of any of its places run, whose request is done.
    #[cold]
    pub(crate) fn schedule(&self, waiter: Token) {
        // One of them is its context; to the others it is nobody.
        locked(&self.places).iter().for_each(|place| place.schedule(waiter));
        self.tell();
    }

    fn tell(&self) {
        // Between a look and its sleep, who waits for news has the lock.
        drop(locked(&self.told));
        self.news.notify_all();
    }

    /// Blocks the thread until `done`, or until the engine is in transit. Who brings it about calls `schedule`.
    pub(crate) fn wait_for_news(&self, done: impl Fn() -> bool) {
        let mut told = locked(&self.told);
        while !done() && self.get().is_some() {
            told = self.news.wait(told).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Has the thread that has the engine cancel the request of this key.
    #[cold]
    pub(crate) fn mail(&self, key: u64) {
        self.mail.put(key);
        self.notify();
    }

    /// On the home thread: foreign code may run now on top of a reap or a submit, which relies on the place.
    #[inline]
    pub(crate) fn busy(&self) -> impl Drop {
        struct Busy<'a>(&'a AtomicU32);
        impl Drop for Busy<'_> {
            #[inline]
            fn drop(&mut self) {
                self.0.store(self.0.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
            }
        }
        // Relaxed, by plain load and store: the home thread's alone, and handed on with the engine.
        self.busy.store(self.busy.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Busy(&self.busy)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
