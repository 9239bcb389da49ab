//! The context's lock: recursive, held by the loop while it dispatches, released fully while it
//! sleeps (rule X8).
//!
//! The home thread locks the mutex for its first guard, and unlocks it when the last is dropped, in
//! any order; in between, a guard is a count. The loop holds one while it dispatches, so acquiring
//! the lock in a coroutine costs next to nothing. The same count detects a coroutine that yields
//! with the lock, at the yield.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::{mem, ptr};

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

use crate::context::{AioContext, LocalContext, SharedContext};
use crate::sys::{opaque_debug, report};

#[derive(Default)]
pub(crate) struct ContextLock {
    mutex: ReentrantMutex<()>,
    /// Number of guards of the foreign thread that holds the lock, if one does. Written by that
    /// thread only, under the lock.
    off_home_guards: AtomicU32,
    /// *eras*: a foreign thread that releases this lock fully while it has guards begins an era,
    /// and restores the previous one when it reacquires the lock. A foreign guard is valid only in
    /// the era in which it was made: in another era the lock may be held by another thread. The
    /// current era and the newest one; written under the lock. An era becomes current again only
    /// when the one thread that left it returns, so a guard never finds its own era while another
    /// thread holds the lock. Relaxed: accesses under the lock are ordered by it, and a guard that
    /// is dropped without the lock finds a different era in any order.
    epoch: AtomicU64,
    newest_epoch: AtomicU64,
    /// The home, while the loop sleeps without the lock. Written, and dereferenced, under the lock
    /// only.
    sleeping_home: AtomicPtr<LocalContext>,
}

impl ContextLock {
    // Out of line: in the loop, where speed matters, the lock is held already.
    #[inline(never)]
    fn lock(&self) {
        mem::forget(self.mutex.lock());
    }

    /// # Safety
    ///
    /// This thread has called `lock` once more often than `unlock`.
    #[inline(never)]
    unsafe fn unlock(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.mutex.force_unlock() };
    }
}

/// A guard of the context's lock. Dropping it releases the lock once.
///
/// A coroutine must drop its guards before it suspends; suspending with one panics.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ContextGuard<'a> {
    shared: &'a SharedContext,
    /// `None`: a guard of the home thread, which is a count.
    foreign: Option<OffHomeGuard<'a>>,
    _not_send: PhantomData<*const ()>,
}

/// A guard of a foreign thread: a guard of the mutex, and the era in which it was made (*eras*).
struct OffHomeGuard<'a> {
    epoch: u64,
    _mutex: ReentrantMutexGuard<'a, ()>,
}

impl Drop for ContextGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(foreign) = &self.foreign {
            self.shared.off_home_dropped(foreign.epoch);
        } else {
            self.shared.dropped_at_home();
        }
    }
}

impl ContextGuard<'_> {
    /// Returns whether this is a guard of `shared`, whose lock its thread holds now (*eras*).
    pub(crate) fn holds(&self, shared: &SharedContext) -> bool {
        let epoch = shared.lock.epoch.load(Ordering::Relaxed);
        ptr::eq(self.shared, shared) && self.foreign.as_ref().is_none_or(|foreign| foreign.epoch == epoch)
    }
}

/// As [`ContextGuard`], for callers known to be on the home thread: a count. For authors of
/// engines.
#[must_use = "the lock is released when the guard is dropped"]
pub struct HomeLockGuard<'a> {
    shared: &'a SharedContext,
    _not_send: PhantomData<*const ()>,
}

impl Drop for HomeLockGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.shared.dropped_at_home();
    }
}

impl AioContext {
    /// Acquires the context's lock, blocking while another thread holds it. Recursive.
    ///
    /// A foreign thread that holds the lock may [`poll`](Self::poll) without blocking.
    ///
    /// A blocking poll on the home thread, and [`poll_while`](Self::poll_while) on any thread,
    /// release the lock while they sleep, whatever guards the caller holds. So a guard protects
    /// nothing across such a call.
    ///
    /// The loop holds the lock while it runs coroutines and handlers. So a coroutine or handler
    /// must not block on a thread that needs this lock, be it through a `std` mutex, a channel or a
    /// join: that deadlocks. Coroutines wait with primitives that suspend them and leave the thread
    /// to the loop: [`CoMutex`](crate::CoMutex), [`channel`](crate::channel::bounded),
    /// [`run_on`](Self::run_on).
    ///
    /// # Control
    ///
    /// May block the thread.
    #[doc(alias = "aio_context_acquire")]
    pub fn acquire(&self) -> ContextGuard<'_> {
        self.shared.acquire()
    }

    /// Acquires the context's lock, unless another thread holds it.
    pub fn try_acquire(&self) -> Option<ContextGuard<'_>> {
        let lock = self.shared.lock.mutex.try_lock()?;
        match self.shared.home() {
            // Locked already; only the count is missing.
            Some(_) => Some(self.shared.acquire()),
            None => Some(self.shared.off_home_guard(lock)),
        }
    }
}

impl SharedContext {
    #[inline]
    fn dropped_at_home(&self) {
        let depth = self.scheduler.lock_depth().wrapping_sub(1);
        self.scheduler.set_lock_depth(depth);
        // One comparison covers both cases: the last guard, and a count that was 0 before.
        if depth as i32 <= 0 {
            self.last_dropped(depth);
        }
    }

    #[cold]
    fn last_dropped(&self, depth: u32) {
        if depth != 0 {
            // The loop had released the lock: the count would no longer match its owner.
            report(format_args!("coralio: context lock guard dropped while the loop slept without the lock"));
            std::process::abort();
        }
        self.trace_lock(false);
        // SAFETY: *counted*: the mutex was locked when the count left 0, and not unlocked since;
        // guards do not leave their thread, so this is the thread that locked it.
        unsafe { self.lock.unlock() };
    }

    #[inline(never)]
    fn off_home_dropped(&self, epoch: u64) {
        if self.lock.epoch.load(Ordering::Relaxed) != epoch {
            report(format_args!(
                "coralio: context lock guard dropped outside the lock epoch it was created in: `poll_while` had \
                 released the lock meanwhile; drop the guard before its coroutine is suspended"
            ));
            std::process::abort();
        }
        let left = self.lock.off_home_guards.load(Ordering::Relaxed) - 1;
        self.lock.off_home_guards.store(left, Ordering::Relaxed);
        if left == 0 {
            self.trace_lock(false);
        }
    }

    fn trace_lock(&self, taken: bool) {
        if let Some(tracer) = &self.scheduler.tracer {
            tracer.lock(taken);
        }
    }

    #[inline]
    pub(crate) fn acquire(&self) -> ContextGuard<'_> {
        match self.home() {
            Some(_) => {
                self.count_at_home();
                ContextGuard { shared: self, foreign: None, _not_send: PhantomData }
            }
            None => self.off_home_guard(self.lock.mutex.lock()),
        }
    }

    // Out of line: the home thread acquires far more often.
    #[inline(never)]
    fn off_home_guard<'a>(&'a self, mutex: ReentrantMutexGuard<'a, ()>) -> ContextGuard<'a> {
        let guards = self.lock.off_home_guards.load(Ordering::Relaxed);
        self.lock.off_home_guards.store(guards + 1, Ordering::Relaxed);
        if guards == 0 {
            self.trace_lock(true);
        }
        let foreign = OffHomeGuard { epoch: self.lock.epoch.load(Ordering::Relaxed), _mutex: mutex };
        ContextGuard { shared: self, foreign: Some(foreign), _not_send: PhantomData }
    }

    // Out of line, like `ContextLock::lock`.
    #[inline(never)]
    fn first_taken(&self) {
        self.lock.lock();
        self.trace_lock(true);
    }

    /// As `acquire`, for callers known to be on the home thread.
    #[inline]
    pub(crate) fn acquire_at_home(&self) -> HomeLockGuard<'_> {
        self.count_at_home();
        HomeLockGuard { shared: self, _not_send: PhantomData }
    }

    #[inline]
    fn count_at_home(&self) {
        let depth = self.scheduler.lock_depth();
        if depth == 0 {
            self.first_taken();
        }
        self.scheduler.set_lock_depth(depth + 1);
    }

    /// Runs `f` with the lock released fully, and reacquires it as often as the home thread held
    /// it.
    #[inline]
    pub(crate) fn unlocked<R>(&self, _home: &LocalContext, f: impl FnOnce() -> R) -> R {
        struct Retake<'a>(&'a SharedContext, u32);
        impl Drop for Retake<'_> {
            fn drop(&mut self) {
                if self.1 > 0 {
                    self.0.lock.lock();
                    self.0.trace_lock(true);
                }
                self.0.scheduler.set_lock_depth(self.1);
            }
        }
        let lock = &self.lock;
        let depth = self.scheduler.lock_depth();
        self.scheduler.set_lock_depth(0);
        if depth > 0 {
            self.trace_lock(false);
            // SAFETY: *counted*: this thread has locked it once. The counted guards lie further
            // down this very stack, and are not used before `Retake` has locked it again.
            unsafe { lock.unlock() };
        }
        let _retake = Retake(self, depth);
        f()
    }

    /// As `unlocked`, for a sleep of the loop, which holds the lock. Until the sleep ends, no code
    /// on this thread can access the home, whatever `f` calls; so another thread that takes the
    /// lock may read it (*away*).
    #[inline]
    pub(crate) fn asleep<R>(&self, home: &LocalContext, f: impl FnOnce() -> R) -> R {
        struct Back<'a>(&'a ContextLock);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                self.0.sleeping_home.store(ptr::null_mut(), Ordering::Relaxed);
            }
        }
        assert!(self.scheduler.lock_depth() > 0, "the loop holds the lock when it goes to sleep");
        // Relaxed: accessed under the lock.
        self.lock.sleeping_home.store(ptr::from_ref(home).cast_mut(), Ordering::Relaxed);
        let _back = Back(&self.lock);
        // Hidden until the lock is reacquired: until then its owner may be reading the home.
        home.with_context_hidden(|| self.unlocked(home, f))
    }

    /// Returns the home of this context, for another thread to read while the loop sleeps; `None`
    /// while it is awake.
    pub(crate) fn sleeping_home<'a>(&self, guard: &'a ContextGuard<'_>) -> Option<&'a LocalContext> {
        assert!(guard.foreign.is_some() && ptr::eq(guard.shared, self), "another thread holds this context's lock");
        // SAFETY: *away*: set only while its thread sleeps in `asleep`, where it does not access
        // the home, and which it cannot leave without the lock that the guard holds. A thread that
        // stops the home thread meanwhile only reads (*read only*, in `interrupt.rs`), as this one
        // does.
        unsafe { self.lock.sleeping_home.load(Ordering::Relaxed).as_ref() }
    }

    /// Returns whether the loop sleeps, or has slept and waits for the lock. Only a hint without
    /// the lock.
    pub(crate) fn is_sleeping(&self) -> bool {
        !self.lock.sleeping_home.load(Ordering::Relaxed).is_null()
    }

    /// As `unlocked`, on a foreign thread.
    pub(crate) fn unlocked_off_home<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Retake<'a>(&'a ContextLock, u32, u64);
        impl Drop for Retake<'_> {
            fn drop(&mut self) {
                let Retake(lock, guards, epoch) = *self;
                (0..guards).for_each(|_| lock.lock());
                // Guards may have been made meanwhile, and leaked.
                lock.off_home_guards.store(lock.off_home_guards.load(Ordering::Relaxed) + guards, Ordering::Relaxed);
                lock.epoch.store(epoch, Ordering::Relaxed);
            }
        }
        let lock = &self.lock;
        if !lock.mutex.is_owned_by_current_thread() {
            return f();
        }
        let guards = lock.off_home_guards.load(Ordering::Relaxed);
        let epoch = lock.epoch.load(Ordering::Relaxed);
        let next = lock.newest_epoch.load(Ordering::Relaxed) + 1;
        lock.newest_epoch.store(next, Ordering::Relaxed);
        lock.epoch.store(next, Ordering::Relaxed);
        lock.off_home_guards.store(0, Ordering::Relaxed);
        for _ in 0..guards {
            // SAFETY: *counted*: this thread has locked it `guards` times. The guards belong to
            // another of the *eras*, and are not dropped before `Retake` has locked it again.
            unsafe { lock.unlock() };
        }
        let _retake = Retake(lock, guards, epoch);
        f()
    }
}

opaque_debug!(HomeLockGuard<'a>, ContextGuard<'a>);
