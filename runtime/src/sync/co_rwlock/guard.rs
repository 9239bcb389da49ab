//! What one has who reads or writes, and how a reader goes on to write and a writer to read.

#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use super::{CoRwLock, LINE, READER, Share, WRITER};
use crate::atomic::Ordering;
use crate::coroutine::waiting::Waiting;

/// The lock, held to read; others may read too. It may be kept while its coroutine is suspended.
#[must_use = "the lock is given up when the guard is dropped"]
pub struct CoRwReadGuard<'a, T: ?Sized> {
    lock: &'a CoRwLock<T>,
    _not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives shared access to the value only.
unsafe impl<T: ?Sized + Sync> Sync for CoRwReadGuard<'_, T> {}

impl<'a, T: ?Sized> CoRwReadGuard<'a, T> {
    /// For a share that the caller has taken.
    #[inline]
    pub(super) fn new(lock: &'a CoRwLock<T>) -> CoRwReadGuard<'a, T> {
        CoRwReadGuard { lock, _not_send: PhantomData }
    }

    /// Goes on to write: at once, if no other reads and none waits. Otherwise it gives its share up and stands in line like
    /// anyone; so two that upgrade at the same time do not wait for each other, and *what was read may have changed*
    /// when this returns, since others may have written meanwhile. [`try_upgrade`](Self::try_upgrade) never lets them.
    /// Neither cancelling nor a timeout ends the wait.
    ///
    /// # Panics
    ///
    /// Outside a coroutine, if it would have to wait; the share is given up then too.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    #[doc(alias = "qemu_co_rwlock_upgrade")]
    pub fn upgrade(self) -> CoRwWriteGuard<'a, T> {
        // Not in a closure: that would be the place that messages show.
        match self.try_upgrade() {
            Ok(writing) => writing,
            Err(reading) => {
                let lock = reading.lock;
                drop(reading);
                lock.take(Share::Write, Waiting::Upgrade(&lock.holder));
                lock.writing()
            }
        }
    }

    /// Goes on to write, if no other reads and none waits; what was read has not changed then.
    ///
    /// # Errors
    ///
    /// Others read, or wait: the guard as it was.
    ///
    /// # Control
    ///
    /// Never switches.
    #[track_caller]
    pub fn try_upgrade(self) -> Result<CoRwWriteGuard<'a, T>, CoRwReadGuard<'a, T>> {
        // Acquire pairs with the releases of others that have read.
        match self.lock.state.compare_exchange(READER, WRITER, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(ManuallyDrop::new(self).lock.writing()),
            Err(_) => Err(self),
        }
    }
}

impl<T: ?Sized> Deref for CoRwReadGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: a share is held by this guard, so nobody writes.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for CoRwReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.give_up(Share::Read);
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for CoRwReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// The lock, held to write. It may be kept while its coroutine is suspended.
#[must_use = "the lock is given up when the guard is dropped"]
pub struct CoRwWriteGuard<'a, T: ?Sized> {
    lock: &'a CoRwLock<T>,
    _not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives shared access to the value only.
unsafe impl<T: ?Sized + Sync> Sync for CoRwWriteGuard<'_, T> {}

impl<'a, T: ?Sized> CoRwWriteGuard<'a, T> {
    /// For the lock, which the caller has taken to write.
    #[inline]
    pub(super) fn new(lock: &'a CoRwLock<T>) -> CoRwWriteGuard<'a, T> {
        CoRwWriteGuard { lock, _not_send: PhantomData }
    }

    /// Goes on to read only. Nobody writes in between; readers that are first in line get in too.
    ///
    /// # Control
    ///
    /// Never switches. They run when the running coroutine yields, or else in their loops' next rounds.
    #[doc(alias = "qemu_co_rwlock_downgrade")]
    #[track_caller]
    pub fn downgrade(self) -> CoRwReadGuard<'a, T> {
        let lock = ManuallyDrop::new(self).lock;
        lock.holder.clear();
        // Release pairs with the acquires of whoever reads next.
        if lock.state.fetch_add(READER - WRITER, Ordering::Release) & LINE != 0 {
            lock.let_in(lock.line.lock());
        }
        lock.reading()
    }
}

impl<T: ?Sized> Deref for CoRwWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held by this guard, to write.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for CoRwWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held by this guard, to write, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for CoRwWriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.holder.clear();
        self.lock.give_up(Share::Write);
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for CoRwWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
