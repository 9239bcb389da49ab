//! A counting semaphore (rule S4).
//!
//! The count is guarded by the wait queue's lock. A release of permits admits waiters from the head
//! of the queue, in order, while the permits suffice; no later arrival is admitted before them,
//! however few permits it requests.

mod owned;

use std::fmt;
use std::mem::ManuallyDrop;

pub use owned::OwnedPermit;

use crate::coroutine::{Cancelled, WaitReason};
use crate::sync::wait_queue::{Abandoned, IF_CANCELLED, Locked, WaitQueue};

/// A counting semaphore for coroutines of any number of contexts and threads. First come, first
/// served: a waiter that requests many permits is not overtaken by one that requests few.
///
/// ```
/// use coralio::{spawn, yield_now};
/// use coralio::sync::Semaphore;
/// use std::cell::Cell;
/// use std::rc::Rc;
///
/// coralio::run(|| {
///     let shared = Rc::new((Semaphore::new(2), Cell::new(0)));
///     let tasks = [(); 5].map(|()| {
///         let shared = Rc::clone(&shared);
///         spawn(move || {
///             let (semaphore, running) = &*shared;
///             let _permit = semaphore.acquire();
///             running.set(running.get() + 1);
///             assert!(running.get() <= 2);
///             yield_now();
///             running.set(running.get() - 1);
///         })
///     });
///     for task in tasks {
///         task.join().unwrap();
///     }
///     assert_eq!(shared.0.available(), 2);
/// });
/// ```
pub struct Semaphore {
    /// Nodes carry the requested count; the state is the available count.
    queue: WaitQueue<usize, usize>,
}

impl Semaphore {
    /// Creates a semaphore with `permits` permits.
    pub const fn new(permits: usize) -> Semaphore {
        Semaphore { queue: WaitQueue::new(permits) }
    }

    /// Acquires a permit; suspends the coroutine until one is available. First come, first served.
    /// Neither cancellation nor a timeout ends the wait: see
    /// [`acquire_cancellable`](Self::acquire_cancellable).
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn acquire(&self) -> Permit<'_> {
        self.acquire_many(1)
    }

    /// Acquires `count` permits atomically, suspending until they are available. Requesting more
    /// than exist is not an error: permits may be added later.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    #[doc(alias = "co_get_from_shres")]
    pub fn acquire_many(&self, count: usize) -> Permit<'_> {
        if let Err(locked) = self.take(count) {
            _ = self.queue.wait(locked, count, self.waiting(), None, || (), |gone| self.gone(gone));
        }
        Permit { semaphore: self, count }
    }

    /// Acquires like [`acquire`](Self::acquire), but ends the wait early if the coroutine is
    /// cancelled or an enclosing timeout expires.
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. An available permit is acquired even so.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn acquire_cancellable(&self) -> Result<Permit<'_>, Cancelled> {
        self.acquire_many_cancellable(1)
    }

    /// Acquires like [`acquire_many`](Self::acquire_many), but ends the wait early if the coroutine
    /// is cancelled or an enclosing timeout expires.
    ///
    /// ```
    /// use coralio::{spawn, timeout};
    /// use coralio::context::AioContext;
    /// use coralio::sync::Semaphore;
    /// use coralio::task::TimedOut;
    /// use std::time::Duration;
    ///
    /// AioContext::run(|_ctx| {
    ///     let task = spawn(|| {
    ///         let slots = Semaphore::new(4);
    ///         let three = slots.acquire_many_cancellable(3).unwrap();
    ///         let limit = Duration::from_millis(1);
    ///         assert!(matches!(timeout(limit, || slots.acquire_many_cancellable(2).is_ok()), Err(TimedOut)));
    ///         drop(three);
    ///         assert!(slots.acquire_many_cancellable(2).is_ok());
    ///     });
    ///     task.join().unwrap();
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. Available permits are acquired even so.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn acquire_many_cancellable(&self, count: usize) -> Result<Permit<'_>, Cancelled> {
        if let Err(locked) = self.take(count) {
            let granted = self.queue.wait(locked, count, self.waiting(), IF_CANCELLED, || (), |gone| self.gone(gone));
            granted.map_err(|_| Cancelled)?;
        }
        Ok(Permit { semaphore: self, count })
    }

    /// Acquires a permit, if one is available and there are no waiters.
    pub fn try_acquire(&self) -> Option<Permit<'_>> {
        self.take(1).is_ok().then(|| Permit { semaphore: self, count: 1 })
    }

    /// Adds permits. Callable from any thread, in a coroutine or not.
    ///
    /// # Panics
    ///
    /// If the sum exceeds `usize::MAX`.
    #[track_caller]
    pub fn add_permits(&self, count: usize) {
        let mut locked = self.queue.lock();
        let Some(sum) = locked.state().checked_add(count) else {
            drop(locked);
            panic!(
                "cannot add {count} permits: more than a semaphore can count; are permits added that a guard also \
                 returns?"
            );
        };
        *locked.state() = sum;
        self.grant_waiting(locked);
    }

    /// Returns the number of available permits, which may change at any time.
    pub fn available(&self) -> usize {
        *self.queue.lock().state()
    }

    /// Acquires permits if there are no waiters; otherwise returns the locked queue, to join.
    fn take(&self, count: usize) -> Result<(), Locked<'_, usize, usize>> {
        let mut locked = self.queue.lock();
        match locked.state().checked_sub(count) {
            Some(rest) if locked.is_empty() => {
                *locked.state() = rest;
                Ok(())
            }
            _ => Err(locked),
        }
    }

    /// Admits the first waiters, while the permits suffice.
    #[track_caller]
    fn grant_waiting(&self, locked: Locked<'_, usize, usize>) {
        self.queue.grant_all(locked, |locked| {
            let wanted = *locked.first()?;
            *locked.state() = locked.state().checked_sub(wanted)?;
            locked.grant_first()
        });
    }

    /// Handles a waiter that leaves.
    fn gone(&self, gone: Abandoned<'_, usize, usize>) {
        match gone {
            // Waiters behind it may request less.
            Abandoned::Left(locked) => self.grant_waiting(locked),
            Abandoned::Granted(count) => self.add_permits(count),
        }
    }

    fn waiting(&self) -> WaitReason {
        WaitReason::Semaphore(std::ptr::from_ref(self).addr())
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("available", &self.available()).finish()
    }
}

/// One or several permits, acquired together. Dropping it, on any thread, returns them.
#[must_use = "dropping the permit returns it to the semaphore"]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    count: usize,
}

impl Permit<'_> {
    /// Drops the guard without returning the permits: they are used up, or will be
    /// [added](Semaphore::add_permits) elsewhere.
    pub fn forget(self) {
        _ = ManuallyDrop::new(self);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.semaphore.add_permits(self.count);
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("count", &self.count).finish_non_exhaustive()
    }
}
