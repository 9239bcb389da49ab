//! A lock that suspends the coroutine, not the thread (rule S1).
//!
//! One word decides as long as nobody waits: free, held, or held with a line. The line is touched only when there is
//! contention, and the bit that says so is changed under the line's lock alone. So the unlock that finds the bit clear
//! knows that nobody waits; the one that finds it set takes the line, and hands the lock to the first in it without ever
//! making it free: nobody who comes later can overtake. The next holder is woken, not entered on top of the releaser
//! (rule W1), so hand-overs do not grow the stack.

#![allow(unsafe_code)]

use crate::atomic::{AtomicU32, Ordering};
use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use super::wait_queue::{Gone, WaitQueue};
use crate::coroutine::Cancelled;
use crate::coroutine::waiting::{Holder, Waiting};

const FREE: u32 = 0;
const HELD: u32 = 1;
/// Held, and somebody is in line. Set and cleared under the line's lock alone.
const HELD_WITH_LINE: u32 = 3;

/// A fair lock around a value, for coroutines of any number of contexts and threads.
///
/// ```
/// use coralio_runtime::{AioContext, CoMutex, spawn, yield_now};
/// use std::rc::Rc;
///
/// AioContext::run(|_ctx| {
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
    holder: Holder,
    line: WaitQueue,
    value: UnsafeCell<T>,
}

// SAFETY: the lock gives the value to one coroutine at a time, whichever thread that is on: so the value is sent.
unsafe impl<T: ?Sized + Send> Send for CoMutex<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send> Sync for CoMutex<T> {}

impl<T> CoMutex<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> CoMutex<T> {
        CoMutex {
            state: AtomicU32::new(FREE),
            holder: Holder::new(),
            line: WaitQueue::new(()),
            value: UnsafeCell::new(value),
        }
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> CoMutex<T> {
    /// Takes the lock; suspends the coroutine while another one has it. First come, first served. Neither cancelling nor a
    /// timeout ends the wait: see [`lock_cancellable`](Self::lock_cancellable).
    ///
    /// # Panics
    ///
    /// If the coroutine has the lock already, which it does until the guard is dropped, wherever that was moved to. Outside a
    /// coroutine, if it would have to wait.
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
                self.wait(false).unwrap_or_else(|Cancelled| unreachable!("this wait is not cancelled"));
                self.held()
            }
        }
    }

    /// As [`lock`](Self::lock), unless the coroutine is cancelled meanwhile, or a timeout around this is over.
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. A lock that is free is taken all the same.
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
        self.wait(true)?;
        Ok(self.held())
    }

    /// Takes the lock if it is free.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    #[track_caller]
    pub fn try_lock(&self) -> Option<CoMutexGuard<'_, T>> {
        // Acquire pairs with the release in `unlock`.
        self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(self.held())
    }

    /// The lock was taken, by the caller.
    #[inline]
    #[track_caller]
    fn held(&self) -> CoMutexGuard<'_, T> {
        self.holder.note();
        CoMutexGuard { mutex: self, _not_send: PhantomData }
    }

    /// Takes the lock, or stands in line for it.
    #[cold]
    #[track_caller]
    fn wait(&self, cancellable: bool) -> Result<(), Cancelled> {
        // Without the line's lock: to panic is to run somebody else's hook.
        self.holder.refuse_self("CoMutex");
        let line = self.line.lock();
        loop {
            // Under the line's lock. Either the holder is gone, and the lock is taken here; or the line bit is set while
            // it still holds, and its unlock will come to the line.
            let taken = self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
            if taken.is_ok() {
                return Ok(());
            }
            // Relaxed: the unlock that fails because of this takes the line's lock, and sees what is done under it.
            match self.state.compare_exchange(HELD, HELD_WITH_LINE, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) | Err(HELD_WITH_LINE) => break,
                Err(_) => {}
            }
        }
        let waiting = Waiting::CoMutex(&self.holder);
        if cancellable {
            self.line.wait_cancellable(line, (), waiting, || (), |gone| self.gone(gone)).map_err(|()| Cancelled)
        } else {
            self.line.wait(line, (), waiting, || (), |gone| self.gone(gone));
            Ok(())
        }
    }

    /// One goes away that waited.
    fn gone(&self, gone: Gone<'_, (), ()>) {
        match gone {
            // If nobody is left in line, the next unlock finds that out.
            Gone::Left(_) => {}
            Gone::Granted(()) => self.unlock(),
        }
    }

    /// Gives the lock up, or hands it to the first in line.
    ///
    /// # Control
    ///
    /// Never switches. The next holder runs when the running coroutine yields, or else in its loop's next round.
    #[inline]
    fn unlock(&self) {
        self.holder.clear();
        // Release pairs with the acquires of whoever takes it next.
        if self.state.compare_exchange(HELD, FREE, Ordering::Release, Ordering::Relaxed).is_err() {
            self.hand_over();
        }
    }

    #[cold]
    fn hand_over(&self) {
        let mut line = self.line.lock();
        let next = line.grant_first();
        if next.is_none() {
            // Those in line have unwound.
            self.state.store(FREE, Ordering::Release);
        } else if line.is_empty() {
            // The new holder finds nobody behind it. The grant itself carried the value over.
            self.state.store(HELD, Ordering::Relaxed);
        }
        drop(line);
        if let Some(next) = next {
            // From a destructor, so it enters nobody.
            next.wake_later();
        }
    }

    /// The value, without locking: the borrow shows that nobody else has the lock.
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

/// The lock, held. It may be kept while its coroutine is suspended. Dropping it hands the lock on.
#[must_use = "the lock is given up when the guard is dropped"]
pub struct CoMutexGuard<'a, T: ?Sized> {
    mutex: &'a CoMutex<T>,
    _not_send: PhantomData<*const ()>,
}

impl<'a, T: ?Sized> CoMutexGuard<'a, T> {
    /// The lock that this guard holds.
    pub(super) fn mutex(&self) -> &'a CoMutex<T> {
        self.mutex
    }
}

// SAFETY: a shared guard gives shared access to the value only.
unsafe impl<T: ?Sized + Sync> Sync for CoMutexGuard<'_, T> {}

impl<T: ?Sized> Deref for CoMutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held by this guard.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ?Sized> DerefMut for CoMutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held by this guard, which is borrowed exclusively.
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
