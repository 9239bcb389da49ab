//! The context that an engine belongs to (rule E12).
//!
//! An engine changes its context only while none of its requests is pending, in flight or awaited,
//! and only on the home thread of the context that it leaves or joins.
//!
//! *Contexts stay*: a context that the engine has ever belonged to is kept until the engine is
//! dropped. So a reference to a context is valid for as long as a reference to the engine, and its
//! descriptors stay open, because a backend may still watch their numbers.

#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use coralio_runtime::{AioContext, ContextGuard, HomeLockGuard, HomeRef};
use parking_lot::Mutex;

/// See the module documentation.
pub(crate) struct Owner {
    /// Null while the engine is detached.
    current: AtomicPtr<AioContext>,
    /// *Contexts stay*. Boxed, so that they do not move when the vector grows.
    #[allow(clippy::vec_box)]
    contexts: Mutex<Vec<Box<AioContext>>>,
    /// Number of reaps and submits on the home thread's stack. Accessed only by the home thread.
    busy: AtomicU32,
}

impl Owner {
    pub(crate) fn new(context: &AioContext) -> Owner {
        let owner = Owner {
            current: AtomicPtr::new(ptr::null_mut()),
            contexts: Mutex::new(Vec::new()),
            busy: AtomicU32::new(0),
        };
        owner.join(context);
        owner
    }

    /// Returns the engine's context; `None` while it is detached.
    #[inline]
    pub(crate) fn get(&self) -> Option<&AioContext> {
        // Acquire pairs with the release in `join`: the context's contents are visible.
        // SAFETY: *contexts stay*.
        unsafe { self.current.load(Ordering::Acquire).as_ref() }
    }

    /// Returns whether the engine has a context, and `is_of` accepts it: `is_of` of a token accepts
    /// the token's context.
    #[inline]
    pub(crate) fn is(&self, is_of: impl FnOnce(&AioContext) -> bool) -> bool {
        self.get().is_some_and(is_of)
    }

    /// Calls [`AioContext::at_home`] of the engine's context; returns `None` while the engine is
    /// detached.
    #[inline(always)]
    pub(crate) fn at_home<R>(&self, f: impl for<'h> FnOnce(HomeRef<'h>) -> R) -> Option<R> {
        self.get()?.at_home(f)
    }

    /// Returns whether the calling thread is the home thread of the engine's context.
    pub(crate) fn is_here(&self) -> bool {
        self.at_home(|_| ()).is_some()
    }

    /// Makes the drained engine leave its context, under that context's lock, or join `context`.
    /// Called on the home thread of that context.
    pub(crate) fn move_to(&self, context: Option<&AioContext>) {
        match context {
            Some(context) => self.join(context),
            None => self.current.store(ptr::null_mut(), Ordering::Release),
        }
    }

    fn join(&self, context: &AioContext) {
        let mut contexts = self.contexts.lock();
        let known = contexts.iter().position(|known| known.is_same(context));
        let index = known.unwrap_or_else(|| {
            contexts.push(Box::new(context.clone()));
            contexts.len() - 1
        });
        // Release pairs with the acquire in `get`.
        self.current.store(ptr::from_ref(&*contexts[index]).cast_mut(), Ordering::Release);
    }

    /// Marks, on the home thread, that foreign code may run on top of a reap or submit, during
    /// which the engine must not leave its context.
    #[inline]
    pub(crate) fn busy(&self) -> impl Drop {
        struct Busy<'a>(&'a AtomicU32);
        impl Drop for Busy<'_> {
            #[inline]
            fn drop(&mut self) {
                self.0.store(self.0.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
            }
        }
        // Relaxed, plain load and store: only the home thread accesses it.
        self.busy.store(self.busy.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Busy(&self.busy)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }
}

/// Proof that the lock of the engine's context is held.
pub(crate) trait LockProof {}
impl LockProof for HomeLockGuard<'_> {}
impl LockProof for ContextGuard<'_> {}
impl LockProof for PollLock<'_> {}

/// The lock of the engine's context during a submit or reap.
pub(crate) struct PollLock<'a> {
    /// `None` if another thread than the home thread polls: its loop already holds the lock.
    _home: Option<HomeLockGuard<'a>>,
}

impl<'a> PollLock<'a> {
    /// `here` is `None` if another thread polls the context, see [`LoopToken::at_home`].
    #[inline]
    pub(crate) fn new(here: Option<HomeRef<'a>>) -> PollLock<'a> {
        PollLock { _home: here.map(HomeRef::acquire) }
    }
}

impl Owner {
    /// Acquires the lock of the engine's context, on any thread. Returns `None` while the engine is
    /// detached: then it has no requests.
    pub(crate) fn acquire(&self) -> Option<ContextGuard<'_>> {
        loop {
            let context = self.get()?;
            let guard = context.acquire();
            // The engine leaves its context only under that context's lock.
            if self.get().is_some_and(|current| ptr::eq(current, context)) {
                return Some(guard);
            }
        }
    }
}
