//! Guards that keep their mutex alive (rule S10).

#![allow(unsafe_code)]

use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

use crate::coroutine::Cancelled;
use crate::sync::co_mutex::CoMutex;

/// A shared pointer to a [`CoMutex`]: an `Rc` or an `Arc`.
///
/// ```
/// use coralio::context::AioContext;
/// use coralio::sync::{CoMutex, OwnedCoMutexGuard, SharedMutex};
/// use std::sync::Arc;
///
/// /// Takes a counter out, to be put back by the drop of the guard.
/// fn take<M: SharedMutex<Value = u32>>(counter: M) -> OwnedCoMutexGuard<M> {
///     let mut guard = CoMutex::lock_owned(counter);
///     *guard += 1;
///     guard
/// }
///
/// AioContext::run(|_ctx| assert_eq!(*take(Arc::new(CoMutex::new(6))), 7));
/// ```
pub trait SharedMutex: sealed::Sealed {
    /// The value in the mutex.
    type Value: ?Sized;

    #[doc(hidden)]
    fn mutex(&self) -> &CoMutex<Self::Value>;
}

mod sealed {
    /// *one mutex*: `mutex` returns the same mutex at each call, wherever the pointer was moved.
    pub trait Sealed {}
}

impl<T: ?Sized> sealed::Sealed for Rc<CoMutex<T>> {}
impl<T: ?Sized> sealed::Sealed for Arc<CoMutex<T>> {}

impl<T: ?Sized> SharedMutex for Rc<CoMutex<T>> {
    type Value = T;

    fn mutex(&self) -> &CoMutex<T> {
        self
    }
}

impl<T: ?Sized> SharedMutex for Arc<CoMutex<T>> {
    type Value = T;

    fn mutex(&self) -> &CoMutex<T> {
        self
    }
}

/// The locked mutex, with the pointer to it. Dropping the guard unlocks, in any coroutine: with an
/// `Arc`, on any thread.
///
/// Since the guard may move, no coroutine counts as the owner of the lock. So a coroutine that locks
/// the mutex again while it keeps the guard does not panic, but waits for itself. The report of a
/// deadlock contains a waiter only if no other coroutine or thread can run, and shows the place
/// where the lock was taken in place of an owner.
///
/// ```
/// use coralio::{spawn, yield_now};
/// use coralio::sync::CoMutex;
/// use std::rc::Rc;
///
/// coralio::run(|| {
///     let words = Rc::new(CoMutex::new(vec!["one"]));
///     let mut guard = CoMutex::lock_owned(Rc::clone(&words));
///     let task = spawn(move || {
///         yield_now();
///         guard.push("two");
///     });
///     let reader = spawn(move || words.lock().len()); // waits for the guard's drop
///     assert_eq!(reader.join().unwrap(), 2);
///     task.join().unwrap();
/// });
/// ```
#[must_use = "dropping the guard releases the lock"]
pub struct OwnedCoMutexGuard<M: SharedMutex> {
    mutex: M,
    /// The guard gives access to the value itself: see `Sync`.
    _value: std::marker::PhantomData<*const M::Value>,
}

// SAFETY: the guard may unlock on another thread, and gives exclusive access to the value there: the
// pointer is `Send` only if the mutex is `Send` and `Sync`, and so the value `Send`.
unsafe impl<M: SharedMutex + Send> Send for OwnedCoMutexGuard<M> {}
// SAFETY: a shared guard gives only shared access to the value.
unsafe impl<M: SharedMutex<Value: Sync> + Sync> Sync for OwnedCoMutexGuard<M> {}

impl<T: ?Sized> CoMutex<T> {
    /// Locks the mutex as [`lock`](Self::lock) does, through an `Rc` or an `Arc`: the guard can be
    /// moved to a spawned coroutine.
    ///
    /// # Panics
    ///
    /// If the coroutine holds the lock by a guard of [`lock`](Self::lock).
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn lock_owned<M: SharedMutex<Value = T>>(mutex: M) -> OwnedCoMutexGuard<M> {
        mem::forget(mutex.mutex().lock());
        OwnedCoMutexGuard::of(mutex)
    }

    /// Locks as [`lock_cancellable`](Self::lock_cancellable) does, through an `Rc` or an `Arc`.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use coralio::sync::CoMutex;
    /// use std::rc::Rc;
    ///
    /// AioContext::run(|_ctx| {
    ///     let words = Rc::new(CoMutex::new(vec!["one"]));
    ///     let mut guard = CoMutex::lock_owned_cancellable(Rc::clone(&words)).unwrap();
    ///     guard.push("two");
    ///     assert!(CoMutex::try_lock_owned(Rc::clone(&words)).is_none());
    ///     drop(guard);
    ///     assert_eq!(CoMutex::try_lock_owned(words).unwrap().len(), 2);
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. A free lock is taken even so.
    ///
    /// # Panics
    ///
    /// As [`lock_owned`](Self::lock_owned).
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn lock_owned_cancellable<M: SharedMutex<Value = T>>(mutex: M) -> Result<OwnedCoMutexGuard<M>, Cancelled> {
        mem::forget(mutex.mutex().lock_cancellable()?);
        Ok(OwnedCoMutexGuard::of(mutex))
    }

    /// Locks the mutex through an `Rc` or an `Arc`, if it is free.
    #[track_caller]
    pub fn try_lock_owned<M: SharedMutex<Value = T>>(mutex: M) -> Option<OwnedCoMutexGuard<M>> {
        mem::forget(mutex.mutex().try_lock()?);
        Some(OwnedCoMutexGuard::of(mutex))
    }
}

impl<M: SharedMutex> OwnedCoMutexGuard<M> {
    /// Creates the guard of a lock that the caller has taken, whose guard it has forgotten.
    #[track_caller]
    fn of(mutex: M) -> OwnedCoMutexGuard<M> {
        mutex.mutex().owner.record_movable();
        OwnedCoMutexGuard { mutex, _value: std::marker::PhantomData }
    }
}

impl<M: SharedMutex> Deref for OwnedCoMutexGuard<M> {
    type Target = M::Value;

    fn deref(&self) -> &M::Value {
        // SAFETY: the guard holds the lock of this mutex (*one mutex*).
        unsafe { &*self.mutex.mutex().value.get() }
    }
}

impl<M: SharedMutex> DerefMut for OwnedCoMutexGuard<M> {
    fn deref_mut(&mut self) -> &mut M::Value {
        // SAFETY: as in `deref`, and the guard is borrowed exclusively.
        unsafe { &mut *self.mutex.mutex().value.get() }
    }
}

impl<M: SharedMutex> Drop for OwnedCoMutexGuard<M> {
    fn drop(&mut self) {
        self.mutex.mutex().unlock();
    }
}

impl<M: SharedMutex<Value: fmt::Debug>> fmt::Debug for OwnedCoMutexGuard<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
