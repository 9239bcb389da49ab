//! The location of an engine: with a context, or between two (rule E12).
//!
//! ```text
//!   with A      under A's lock       A's thread submits, reaps and waits
//!   in transit  under its own lock   only threads that must: an unwinding stack, a `Detached` being dropped
//!   with B      under B's lock       B's thread
//! ```
//!
//! A request's coroutine stays at its home: when B reaps a request of A, the result is stored in
//! the request's slot, and A's loop is notified. So a waiter may find that the engine has moved. It
//! then posts its cancellation as *mail* for the engine's current owner. A waiter that cannot
//! suspend blocks on the condition variable `news`.
//!
//! Invariants named here and cited elsewhere:
//!
//! - *where it is, is whose lock*: the engine's state is changed only under the lock of its current
//!   place, and only the holder of that lock moves it: the home thread out of a context, the holder
//!   of `transit` into one. After taking a lock, a thread checks that the engine is still there.
//! - *places stay*: a context that the engine was ever with is kept until the engine is dropped. So
//!   a pointer to it is valid for as long as a reference to the engine. Its descriptors stay open
//!   too, because a backend may still watch their numbers, and its address stays in use, because
//!   coroutines identify their context by it.

#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering, fence};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use coralio_runtime::trace::Tracer;
use coralio_runtime::{AioContext, AtHome, ContextGuard, HomeGuard, HomeToken, LoopToken, Token};
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

/// Re-exports the atomics, which the model checker's builds replace.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
    pub(super) use std::sync::{Mutex, MutexGuard};
}
mod mail;

use mail::Mail;

/// See the module documentation.
pub(crate) struct Place {
    /// Null in transit.
    now: AtomicPtr<AioContext>,
    transit: ReentrantMutex<()>,
    /// *places stay*
    // Boxed, so that they do not move when the vector grows.
    #[allow(clippy::vec_box)]
    places: Mutex<Vec<Box<AioContext>>>,
    /// Requests to be cancelled.
    pub(crate) mail: Mail,
    news: Condvar,
    told: Mutex<()>,
    /// Number of reaps and submits on the home thread's stack. Accessed only by the home thread.
    busy: AtomicU32,
}

/// Guard of the engine's current lock. Exactly one of the two fields is set.
pub(crate) struct Held<'a> {
    _home: Option<HomeGuard<'a>>,
    // A separate field, dropped by hand, so that dropping a `Held` on the home thread is a few
    // inlined instructions.
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

/// Proof that the lock of the engine's current place is held.
pub(crate) trait Locked {}
impl Locked for Held<'_> {}
/// Valid if the engine is with that home's context.
impl Locked for HomeGuard<'_> {}

impl<'a> Held<'a> {
    /// For an engine that is with the context whose home `here` is.
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

    /// Returns the engine's context; `None` in transit.
    #[inline]
    pub(crate) fn get(&self) -> Option<&AioContext> {
        // Acquire pairs with the release in `go`: the engine's state at that point is visible.
        // SAFETY: *places stay*.
        unsafe { self.now.load(Ordering::Acquire).as_ref() }
    }

    /// Whether the engine is with this context, which `get` returned.
    fn is(&self, context: &AioContext) -> bool {
        // Relaxed: on the context's home thread, or under its lock, the engine cannot move away.
        ptr::eq(self.now.load(Ordering::Relaxed), context)
    }

    /// Whether the engine is with the context whose home `here` is.
    #[inline]
    pub(crate) fn is_at(&self, here: AtHome<'_>) -> bool {
        self.get().is_some_and(|context| here.is_of(context))
    }

    /// Whether the poll that `token` stands for is of the engine's context.
    #[inline]
    pub(crate) fn is_polled_by(&self, token: LoopToken<'_>) -> bool {
        self.get().is_some_and(|context| token.is_of(context))
    }

    /// Whether the loop that `token` stands for is of the engine's context.
    #[inline]
    pub(crate) fn is_home_of(&self, token: HomeToken<'_>) -> bool {
        self.get().is_some_and(|context| token.is_of(context))
    }

    /// As [`AioContext::at_home`] of the engine's context; also `None` in transit.
    #[inline(always)]
    pub(crate) fn at_home<R>(&self, f: impl for<'h> FnOnce(AtHome<'h>) -> R) -> Option<R> {
        self.get()?.at_home(f)
    }

    pub(crate) fn tracer(&self) -> Option<&Tracer> {
        self.get()?.tracer()
    }

    /// Acquires the lock of the engine's current place (*where it is, is whose lock*).
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

    /// As `acquire`; if `here` is present, without checking where the engine is.
    #[inline]
    pub(crate) fn acquire_from<'a>(&'a self, here: Option<AtHome<'a>>) -> Held<'a> {
        here.map_or_else(|| self.acquire(), Held::at_home)
    }

    /// Acquires the transit lock, if the engine is in transit.
    #[cold]
    pub(crate) fn acquire_transit(&self) -> Option<Held<'_>> {
        let guard = self.transit.lock();
        self.get().is_none().then(|| Held::abroad(Abroad::Transit { _guard: guard }))
    }

    fn go(&self, to: *mut AioContext) {
        // Release pairs with the acquire in `get`.
        self.now.store(to, Ordering::Release);
        // Pairs with the fence in `Mail::put`: either this thread sees the mail, or its sender sees
        // the engine's new place.
        fence(Ordering::SeqCst);
        self.tell();
    }

    /// Leaves the engine's context. Called under that context's lock, on its home thread.
    pub(crate) fn leave(&self, _lock: &Held<'_>) {
        self.go(ptr::null_mut());
    }

    /// Moves the engine to `context`. Called under the transit lock.
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

    /// Schedules a coroutine, of any context in `places`, whose request is done.
    #[cold]
    pub(crate) fn schedule(&self, waiter: Token) {
        // One of these contexts owns the coroutine; the others ignore the token.
        locked(&self.places).iter().for_each(|place| place.schedule(waiter));
        self.tell();
    }

    fn tell(&self) {
        // A waiter holds this lock between its check and its sleep.
        drop(locked(&self.told));
        self.news.notify_all();
    }

    /// Blocks the thread until `done`, or until the engine is in transit. The thread that makes
    /// `done` true calls `schedule`.
    pub(crate) fn wait_for_news(&self, done: impl Fn() -> bool) {
        let mut told = locked(&self.told);
        while !done() && self.get().is_some() {
            told = self.news.wait(told).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks the engine's current owner to cancel the request with this key.
    #[cold]
    pub(crate) fn mail(&self, key: u64) {
        self.mail.put(key);
        self.notify();
    }

    /// Marks, on the home thread, that foreign code may run on top of a reap or submit, which
    /// relies on the engine's place.
    #[inline]
    pub(crate) fn busy(&self) -> impl Drop {
        struct Busy<'a>(&'a AtomicU32);
        impl Drop for Busy<'_> {
            #[inline]
            fn drop(&mut self) {
                self.0.store(self.0.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
            }
        }
        // Relaxed, plain load and store: only the home thread accesses it, and it moves with the
        // engine.
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
