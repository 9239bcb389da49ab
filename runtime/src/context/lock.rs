//! The context's lock: recursive, held by the loop while it dispatches and given up whole while it sleeps (rule X8).
//!
//! The home thread counts how often it holds it. By that a coroutine that yields with the lock is found out where it
//! happens, and a nested poll knows how often to let go before it sleeps.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::mem;

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

use crate::home::Home;

use super::AioContext;
use super::shared::Shared;

#[derive(Default)]
pub(crate) struct ContextLock(ReentrantMutex<()>);

/// The context's lock, held. Dropping it releases it once.
///
/// A coroutine must drop it before it does anything that suspends: else that panics.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ContextGuard<'a> {
    shared: &'a Shared,
    _lock: ReentrantMutexGuard<'a, ()>,
    _not_send: PhantomData<*const ()>,
}

impl Drop for ContextGuard<'_> {
    fn drop(&mut self) {
        // Looked up anew: a guard can outlive the home, if the context was cloned.
        if let Some(home) = self.shared.home() {
            home.lock_depth.set(home.lock_depth.get() - 1);
        }
    }
}

impl std::fmt::Debug for ContextGuard<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContextGuard")
    }
}

impl AioContext {
    /// Takes the context's lock; waits while another thread has it. The same thread may take it again.
    ///
    /// While a foreign thread has it, it may [`poll`](Self::poll) without blocking.
    ///
    /// # Control
    ///
    /// Never switches; may block the thread.
    #[doc(alias = "aio_context_acquire")]
    pub fn acquire(&self) -> ContextGuard<'_> {
        self.shared.acquire()
    }

    /// Takes the context's lock, unless another thread has it.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn try_acquire(&self) -> Option<ContextGuard<'_>> {
        self.shared.lock.0.try_lock().map(|lock| self.shared.guard(lock))
    }
}

impl Shared {
    #[inline]
    pub(crate) fn acquire(&self) -> ContextGuard<'_> {
        self.guard(self.lock.0.lock())
    }

    #[inline]
    fn guard<'a>(&'a self, lock: ReentrantMutexGuard<'a, ()>) -> ContextGuard<'a> {
        if let Some(home) = self.home() {
            home.lock_depth.set(home.lock_depth.get() + 1);
        }
        ContextGuard { shared: self, _lock: lock, _not_send: PhantomData }
    }

    /// Runs `f` without the lock, however often this thread holds it, and takes it back as often.
    pub(crate) fn unlocked<R>(&self, home: &Home, f: impl FnOnce() -> R) -> R {
        struct Retake<'a>(&'a Shared, u32);
        impl Drop for Retake<'_> {
            fn drop(&mut self) {
                for _ in 0..self.1 {
                    mem::forget(self.0.lock.0.lock());
                }
            }
        }
        let depth = home.lock_depth.get();
        for _ in 0..depth {
            // SAFETY: this thread holds the lock `depth` times, by guards that are forgotten or further down this very
            // stack: none of them is used before `Retake` has taken the lock as often again.
            unsafe { self.lock.0.force_unlock() };
        }
        let _retake = Retake(self, depth);
        f()
    }
}
