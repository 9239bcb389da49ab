//! The context's lock: recursive, held by the loop while it dispatches and given up whole while it sleeps (rule X8).
//!
//! The home thread takes the mutex when its first guard is made, and releases it when the last is dropped, in whichever
//! order; between the two a guard is a count. The loop holds one while it dispatches, so what coroutines do under the lock
//! costs next to nothing. By the same count a coroutine that yields with the lock is found out where it happens.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::{mem, ptr};

use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

use crate::home::Home;
use crate::report::report;

use super::AioContext;
use super::shared::Shared;

#[derive(Default)]
pub(crate) struct ContextLock {
    mutex: ReentrantMutex<()>,
    /// Guards that the home thread has. Read and written by that thread alone, by plain loads and stores.
    home_guards: AtomicU32,
    /// Guards of the foreign thread that has the lock, if one has: written by that thread alone, under it.
    foreign_guards: AtomicU32,
    /// *eras*: a foreign thread that gives this lock up in the midst begins an era, and returns to the one before when it has
    /// the lock back. A foreign guard is good in the era that it was made in: elsewhere the lock may not be held for it. The
    /// current era and the newest: written under the lock. An era becomes current again only by the return of the one thread
    /// that left it, so a guard never meets its own era while another thread has the lock. Relaxed: under the lock they are in
    /// order, and a guard that is dropped without it finds another era in any order.
    era: AtomicU64,
    newest_era: AtomicU64,
    /// The home, while the loop sleeps without the lock. Written under it, and followed under it alone.
    away: AtomicPtr<Home>,
}

impl ContextLock {
    /// How many guards the home thread has. On the home thread.
    #[inline]
    pub(crate) fn depth(&self) -> u32 {
        self.home_guards.load(Ordering::Relaxed)
    }

    // Out of line: in the loop, where speed counts, the lock is held already.
    #[inline(never)]
    fn lock(&self) {
        mem::forget(self.mutex.lock());
    }

    /// # Safety
    ///
    /// This thread has called `lock` once more than `unlock`.
    #[inline(never)]
    unsafe fn unlock(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.mutex.force_unlock() };
    }

    #[inline]
    fn set_depth(&self, depth: u32) {
        self.home_guards.store(depth, Ordering::Relaxed);
    }
}

/// The context's lock, held. Dropping it releases it once.
///
/// A coroutine must drop it before it does anything that suspends: else that panics.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ContextGuard<'a> {
    shared: &'a Shared,
    /// `None`: it was made by the home thread, and is a count.
    foreign: Option<Foreign<'a>>,
    _not_send: PhantomData<*const ()>,
}

/// A guard of another thread than home: one of the mutex, and when it was made (*eras*).
struct Foreign<'a> {
    era: u64,
    _mutex: ReentrantMutexGuard<'a, ()>,
}

impl Drop for ContextGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(foreign) = &self.foreign {
            self.shared.foreign_dropped(foreign.era);
        } else {
            self.shared.dropped_at_home();
        }
    }
}

/// As [`ContextGuard`], where it is known that this is the home thread: a count. For authors of engines.
#[must_use = "the lock is released when the guard is dropped"]
pub struct HomeGuard<'a> {
    shared: &'a Shared,
    _not_send: PhantomData<*const ()>,
}

impl Drop for HomeGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.shared.dropped_at_home();
    }
}

impl std::fmt::Debug for HomeGuard<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HomeGuard")
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
    /// A blocking poll on the home thread, and [`poll_while`](Self::poll_while) on any thread, release the lock while they
    /// sleep, whichever guards the caller holds. So a guard protects nothing across such a call.
    ///
    /// The loop holds the lock while it runs coroutines and handlers. So a coroutine or handler must not block on a thread
    /// that wants this lock, be it by a `std` mutex, a channel or a join: both would wait forever. A coroutine waits by
    /// what suspends it and leaves the thread to the loop: [`CoMutex`](crate::CoMutex), [`channel`](crate::channel()),
    /// [`reschedule`](Self::reschedule).
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
        let lock = self.shared.lock.mutex.try_lock()?;
        match self.shared.home() {
            // Locked already; what is left is to count.
            Some(_) => Some(self.shared.acquire()),
            None => Some(self.shared.foreign_guard(lock)),
        }
    }
}

impl Shared {
    #[inline]
    fn dropped_at_home(&self) {
        let depth = self.lock.depth().wrapping_sub(1);
        self.lock.set_depth(depth);
        // One comparison for both: that it was the last, and that the count was 0 before.
        if depth as i32 <= 0 {
            self.last_dropped(depth);
        }
    }

    #[cold]
    fn last_dropped(&self, depth: u32) {
        if depth != 0 {
            // The loop had given the lock up: the count would no longer say who holds it.
            report(format_args!("coralio: a guard of the context's lock was dropped while the loop slept without it"));
            std::process::abort();
        }
        self.tell_lock(false);
        // SAFETY: *counted*: the mutex was locked when the count left 0, and not unlocked since; guards do not leave their
        // thread, so this is the thread that locked it.
        unsafe { self.lock.unlock() };
    }

    #[inline(never)]
    fn foreign_dropped(&self, era: u64) {
        if self.lock.era.load(Ordering::Relaxed) != era {
            report(format_args!(
                "coralio: a guard of a context's lock was dropped while `poll_while` had given the lock up, or was made then and \
                 dropped later; drop it before the coroutine that took it is suspended"
            ));
            std::process::abort();
        }
        let left = self.lock.foreign_guards.load(Ordering::Relaxed) - 1;
        self.lock.foreign_guards.store(left, Ordering::Relaxed);
        if left == 0 {
            self.tell_lock(false);
        }
    }

    fn tell_lock(&self, taken: bool) {
        if let Some(tracer) = &self.tracer {
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
            None => self.foreign_guard(self.lock.mutex.lock()),
        }
    }

    fn foreign_guard<'a>(&'a self, mutex: ReentrantMutexGuard<'a, ()>) -> ContextGuard<'a> {
        let guards = self.lock.foreign_guards.load(Ordering::Relaxed);
        self.lock.foreign_guards.store(guards + 1, Ordering::Relaxed);
        if guards == 0 {
            self.tell_lock(true);
        }
        let foreign = Foreign { era: self.lock.era.load(Ordering::Relaxed), _mutex: mutex };
        ContextGuard { shared: self, foreign: Some(foreign), _not_send: PhantomData }
    }

    // Out of line, as `ContextLock::lock`.
    #[inline(never)]
    fn first_taken(&self) {
        self.lock.lock();
        self.tell_lock(true);
    }

    /// As `acquire`, where the caller knows that this is the home thread.
    #[inline]
    pub(crate) fn acquire_at_home(&self) -> HomeGuard<'_> {
        self.count_at_home();
        HomeGuard { shared: self, _not_send: PhantomData }
    }

    #[inline]
    fn count_at_home(&self) {
        let depth = self.lock.depth();
        if depth == 0 {
            self.first_taken();
        }
        self.lock.set_depth(depth + 1);
    }

    /// Runs `f` without the lock, however often the home thread holds it, and takes it back as often.
    pub(crate) fn unlocked<R>(&self, _home: &Home, f: impl FnOnce() -> R) -> R {
        struct Retake<'a>(&'a Shared, u32);
        impl Drop for Retake<'_> {
            fn drop(&mut self) {
                if self.1 > 0 {
                    self.0.lock.lock();
                    self.0.tell_lock(true);
                }
                self.0.lock.set_depth(self.1);
            }
        }
        let lock = &self.lock;
        let depth = lock.depth();
        lock.set_depth(0);
        if depth > 0 {
            self.tell_lock(false);
            // SAFETY: *counted*: this thread has locked it once. The guards that are counted lie further down this very
            // stack, and are not used before `Retake` has locked it again.
            unsafe { lock.unlock() };
        }
        let _retake = Retake(self, depth);
        f()
    }

    /// As `unlocked`, for a sleep of the loop, which has the lock. Until that is over the home is nobody's on this thread,
    /// whatever `f` calls: so another thread that takes the lock may look at it (*away*).
    pub(crate) fn asleep<R>(&self, home: &Home, f: impl FnOnce() -> R) -> R {
        struct Back<'a>(&'a ContextLock);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                self.0.away.store(ptr::null_mut(), Ordering::Relaxed);
            }
        }
        assert!(self.lock.depth() > 0, "the loop has the lock when it goes to sleep");
        // Relaxed: read and written under the lock.
        self.lock.away.store(ptr::from_ref(home).cast_mut(), Ordering::Relaxed);
        let _back = Back(&self.lock);
        // Hidden until the lock is taken back: before that, whoever has it may be looking.
        home.hidden(|| self.unlocked(home, f))
    }

    /// The home of this context, for another thread to look at while the loop sleeps; `None` while it does not.
    pub(crate) fn away<'a>(&self, guard: &'a ContextGuard<'_>) -> Option<&'a Home> {
        assert!(guard.foreign.is_some() && ptr::eq(guard.shared, self), "another thread has this context's lock");
        // SAFETY: *away*: set only while its thread sleeps in `asleep`, where it touches nothing of the home and which it
        // cannot leave without the lock that the guard holds. A thread that stops that one meanwhile only reads (*read only*, in
        // `interrupt.rs`), as this one does.
        unsafe { self.lock.away.load(Ordering::Relaxed).as_ref() }
    }

    /// Whether the loop sleeps, or has slept and waits for the lock. Without the lock it is a hint.
    pub(crate) fn is_away(&self) -> bool {
        !self.lock.away.load(Ordering::Relaxed).is_null()
    }

    /// As `unlocked`, on another thread than home.
    pub(crate) fn unlocked_by_foreigner<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Retake<'a>(&'a ContextLock, u32, u64);
        impl Drop for Retake<'_> {
            fn drop(&mut self) {
                let Retake(lock, guards, era) = *self;
                (0..guards).for_each(|_| lock.lock());
                // Some may have been made meanwhile, and forgotten.
                lock.foreign_guards.store(lock.foreign_guards.load(Ordering::Relaxed) + guards, Ordering::Relaxed);
                lock.era.store(era, Ordering::Relaxed);
            }
        }
        let lock = &self.lock;
        if !lock.mutex.is_owned_by_current_thread() {
            return f();
        }
        let guards = lock.foreign_guards.load(Ordering::Relaxed);
        let era = lock.era.load(Ordering::Relaxed);
        let next = lock.newest_era.load(Ordering::Relaxed) + 1;
        lock.newest_era.store(next, Ordering::Relaxed);
        lock.era.store(next, Ordering::Relaxed);
        lock.foreign_guards.store(0, Ordering::Relaxed);
        for _ in 0..guards {
            // SAFETY: *counted*: this thread has locked it so often. The guards are of another of the *eras*, and are not
            // dropped before `Retake` has locked it again.
            unsafe { lock.unlock() };
        }
        let _retake = Retake(lock, guards, era);
        f()
    }
}
