//! Guards of the lock, and conversions between read and write access.

#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use crate::atomic::Ordering;
use crate::coroutine::WaitReason;
use crate::sync::co_rwlock::{CoRwLock, LINE, READER, Share, WRITER};

/// Read access to the lock, shared with other readers. May be held while the coroutine is
/// suspended.
#[must_use = "dropping the guard releases the lock"]
pub struct CoRwReadGuard<'a, T: ?Sized> {
    pub(super) lock: &'a CoRwLock<T>,
    pub(super) _not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives only shared access to the value.
unsafe impl<T: ?Sized + Sync> Sync for CoRwReadGuard<'_, T> {}

impl<'a, T: ?Sized> CoRwReadGuard<'a, T> {
    /// Converts read access to write access: immediately, if there is no other reader and no
    /// waiter. Otherwise releases the share and queues like any other writer; so two concurrent
    /// upgrades do not wait for each other, but *values that were read may have changed* when this
    /// returns, since others may have written meanwhile. [`try_upgrade`](Self::try_upgrade)
    /// excludes that. Neither cancellation nor a timeout ends the wait. The share is released even
    /// if this panics, since it would have to wait outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    #[doc(alias = "qemu_co_rwlock_upgrade")]
    pub fn upgrade(self) -> CoRwWriteGuard<'a, T> {
        // Not in a closure: messages would then show the closure as the location.
        match self.try_upgrade() {
            Ok(writing) => writing,
            Err(reading) => {
                let lock = reading.lock;
                drop(reading);
                lock.take(Share::Write, WaitReason::Upgrade(&lock.owner));
                lock.writing()
            }
        }
    }

    /// Converts to write access if there is no other reader and no waiter; the value has not
    /// changed meanwhile.
    ///
    /// # Errors
    ///
    /// Returns the unchanged guard if there are other readers or waiters.
    #[track_caller]
    pub fn try_upgrade(self) -> Result<CoRwWriteGuard<'a, T>, CoRwReadGuard<'a, T>> {
        // Acquire pairs with the releases of other readers.
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
        // SAFETY: the guard holds a share, so there is no writer.
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

/// Exclusive access to the lock. May be held while the coroutine is suspended.
#[must_use = "dropping the guard releases the lock"]
pub struct CoRwWriteGuard<'a, T: ?Sized> {
    pub(super) lock: &'a CoRwLock<T>,
    pub(super) _not_send: PhantomData<*const ()>,
}

// SAFETY: a shared guard gives only shared access to the value.
unsafe impl<T: ?Sized + Sync> Sync for CoRwWriteGuard<'_, T> {}

impl<'a, T: ?Sized> CoRwWriteGuard<'a, T> {
    /// Converts to read access, without a writer in between; readers at the head of the queue are
    /// admitted as well.
    #[doc(alias = "qemu_co_rwlock_downgrade")]
    #[track_caller]
    pub fn downgrade(self) -> CoRwReadGuard<'a, T> {
        let lock = ManuallyDrop::new(self).lock;
        lock.owner.clear();
        // Release pairs with the acquires of later readers.
        if lock.state.fetch_add(READER - WRITER, Ordering::Release) & LINE != 0 {
            lock.grant_waiting(lock.queue.lock());
        }
        lock.reading()
    }
}

impl<T: ?Sized> Deref for CoRwWriteGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock exclusively.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for CoRwWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock exclusively, and is itself borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for CoRwWriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.owner.clear();
        self.lock.give_up(Share::Write);
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for CoRwWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
