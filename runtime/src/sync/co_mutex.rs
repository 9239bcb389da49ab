//! A mutex that suspends the coroutine, not the thread (rule S1).
//!
//! One word decides while there are no waiters: free, held, or held with waiters. The wait queue is
//! touched only under contention, and the waiters bit is changed only under the queue's lock. So an
//! unlock that finds the bit clear knows that there are no waiters; one that finds it set locks the
//! queue, and hands the lock to the first waiter without ever making it free: no later arrival can
//! overtake. The next owner is woken, not entered on top of the releaser (rule W1), so hand-overs
//! do not grow the stack.

#![allow(unsafe_code)]

mod owned;

use crate::atomic::{AtomicU32, Ordering};
use crate::coroutine::{Cancelled, LockOwner, WaitReason};
use crate::sync::wait_queue::{Abandoned, EndsEarly, IF_CANCELLED, WaitQueue};
use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

pub use owned::{OwnedCoMutexGuard, SharedMutex};

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and there are waiters. Set and cleared only under the queue's lock.
const HELD_WITH_LINE: u32 = 3;

/// A fair mutex around a value, for coroutines of any number of contexts and threads.
///
/// ```
/// use coralio::{spawn, yield_now};
/// use coralio::sync::CoMutex;
/// use std::rc::Rc;
///
/// coralio::run(|| {
///     let total = Rc::new(CoMutex::new(0));
///     let tasks: Vec<_> = (0..10)
///         .map(|_| {
///             let total = Rc::clone(&total);
///             spawn(move || {
///                 let mut total = total.lock();
///                 let before = *total;
///                 yield_now(); // the lock is kept
///                 *total = before + 1;
///             })
///         })
///         .collect();
///     for task in tasks {
///         task.join().unwrap();
///     }
///     assert_eq!(Rc::into_inner(total).unwrap().into_inner(), 10);
/// });
/// ```
#[doc(alias = "qemu_co_mutex_lock")]
pub struct CoMutex<T: ?Sized> {
    state: AtomicU32,
    owner: LockOwner,
    queue: WaitQueue,
    value: UnsafeCell<T>,
}

// SAFETY: the lock gives the value to one coroutine at a time, on any thread: so the value is sent.
unsafe impl<T: ?Sized + Send> Send for CoMutex<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send> Sync for CoMutex<T> {}

impl<T> CoMutex<T> {
    /// Creates an unlocked mutex around `value`.
    pub const fn new(value: T) -> CoMutex<T> {
        CoMutex {
            state: AtomicU32::new(FREE),
            owner: LockOwner::new(),
            queue: WaitQueue::new(()),
            value: UnsafeCell::new(value),
        }
    }

    /// Returns the value.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> CoMutex<T> {
    /// Locks the mutex; suspends the coroutine while another one holds it. First come, first
    /// served. Neither cancellation nor a timeout ends the wait: see
    /// [`lock_cancellable`](Self::lock_cancellable).
    ///
    /// # Panics
    ///
    /// If the coroutine holds the lock already: it counts as the owner until the guard is dropped,
    /// wherever the guard was moved.
    ///
    /// # Control
    ///
    /// May yield.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> CoMutexGuard<'_, T> {
        match self.try_lock() {
            Some(guard) => guard,
            None => {
                self.wait(None).expect("only an early end is an error");
                self.held()
            }
        }
    }

    /// Locks like [`lock`](Self::lock), but ends the wait early if the coroutine is cancelled or an
    /// enclosing timeout expires.
    ///
    /// ```
    /// use coralio::{spawn, timeout};
    /// use coralio::context::AioContext;
    /// use coralio::sync::CoMutex;
    /// use coralio::task::TimedOut;
    /// use std::rc::Rc;
    /// use std::time::Duration;
    ///
    /// AioContext::run(|_ctx| {
    ///     let mutex = Rc::new(CoMutex::new(1));
    ///     let guard = mutex.lock();
    ///     let waits = spawn({
    ///         let mutex = Rc::clone(&mutex);
    ///         move || timeout(Duration::from_millis(1), || mutex.lock_cancellable().map(|value| *value))
    ///     });
    ///     assert_eq!(waits.join().unwrap(), Err(TimedOut));
    ///     drop(guard);
    ///     assert_eq!(*Rc::into_inner(mutex).unwrap().get_mut(), 1); // exclusive: needs no lock
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. A lock that is free is acquired nevertheless.
    ///
    /// # Panics
    ///
    /// As [`lock`](Self::lock).
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn lock_cancellable(&self) -> Result<CoMutexGuard<'_, T>, Cancelled> {
        if let Some(guard) = self.try_lock() {
            return Ok(guard);
        }
        self.wait(IF_CANCELLED).map_err(|()| Cancelled)?;
        Ok(self.held())
    }

    /// Locks the mutex if it is free.
    #[inline]
    #[track_caller]
    pub fn try_lock(&self) -> Option<CoMutexGuard<'_, T>> {
        // Acquire pairs with the release in `unlock`.
        self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(self.held())
    }

    /// Creates the guard for a lock taken by the caller.
    #[inline]
    #[track_caller]
    fn held(&self) -> CoMutexGuard<'_, T> {
        self.owner.record();
        CoMutexGuard { mutex: self, _not_send: PhantomData }
    }

    /// Takes the lock, or queues for it.
    #[cold]
    #[track_caller]
    fn wait(&self, ends_early: EndsEarly) -> Result<(), ()> {
        // Checked before the queue is locked: a panic calls the panic hook, which is foreign code.
        self.owner.panic_if_self("CoMutex");
        let locked = self.queue.lock();
        loop {
            // Under the queue's lock. Either the owner is gone, and the lock is taken here; or the
            // waiters bit is set while the owner still holds the lock, and its unlock will reach
            // the queue.
            let taken = self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_ok() {
                return Ok(());
            }
            // Relaxed: this bit makes the fast unlock fail. That unlock then takes the queue's
            // lock, and sees everything done under it.
            match self.state.compare_exchange(HELD, HELD_WITH_LINE, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) | Err(HELD_WITH_LINE) => break,
                Err(_) => {}
            }
        }
        self.queue.wait(locked, (), WaitReason::CoMutex(&self.owner), ends_early, || (), |gone| self.gone(gone))
    }

    /// Handles a waiter that leaves.
    fn gone(&self, gone: Abandoned<'_, (), ()>) {
        match gone {
            // If no waiter is left, the next unlock finds that out.
            Abandoned::Left(_) => {}
            Abandoned::Granted(()) => self.unlock(),
        }
    }

    /// Releases the lock, or hands it to the first waiter.
    #[inline]
    fn unlock(&self) {
        self.owner.clear();
        // Release pairs with the acquires of the next owner.
        if self.state.compare_exchange(HELD, FREE, Ordering::Release, Ordering::Relaxed).is_err() {
            self.hand_over();
        }
    }

    #[cold]
    fn hand_over(&self) {
        let mut locked = self.queue.lock();
        let next = locked.grant_first();
        if next.is_none() {
            // All waiters have left.
            self.state.store(FREE, Ordering::Release);
        } else if locked.is_empty() {
            // The new owner has no waiters behind it. The grant itself synchronized the value.
            self.state.store(HELD, Ordering::Relaxed);
        }
        drop(locked);
        if let Some(next) = next {
            // From a destructor, so it must not enter the waiter.
            next.wake_later();
        }
    }

    /// Returns the value without locking: the exclusive borrow proves that the lock is not held.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T: Default> Default for CoMutex<T> {
    fn default() -> CoMutex<T> {
        CoMutex::new(T::default())
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for CoMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(guard) => f.debug_struct("CoMutex").field("value", &&*guard).finish(),
            None => f.debug_struct("CoMutex").field("value", &format_args!("<locked>")).finish(),
        }
    }
}

/// The locked mutex. May be held while the coroutine is suspended. Dropping it unlocks.
#[must_use = "dropping the guard releases the lock"]
pub struct CoMutexGuard<'a, T: ?Sized> {
    mutex: &'a CoMutex<T>,
    _not_send: PhantomData<*const ()>,
}

impl<'a, T: ?Sized> CoMutexGuard<'a, T> {
    /// Returns the mutex that this guard locks.
    pub(super) fn mutex(&self) -> &'a CoMutex<T> {
        self.mutex
    }
}

// SAFETY: a shared guard gives only shared access to the value.
unsafe impl<T: ?Sized + Sync> Sync for CoMutexGuard<'_, T> {}

impl<T: ?Sized> Deref for CoMutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ?Sized> DerefMut for CoMutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock, and is borrowed exclusively.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: ?Sized> Drop for CoMutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.mutex.unlock();
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for CoMutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
