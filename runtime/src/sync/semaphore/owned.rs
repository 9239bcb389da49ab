//! Permits that keep their semaphore alive (rule S10).

use std::fmt;
use std::ops::Deref;

use crate::coroutine::Cancelled;
use crate::sync::semaphore::Semaphore;

/// One or several permits, acquired together, with the pointer to their semaphore: an `Rc`, an
/// `Arc` or a `&'static`. Dropping it, on any thread, returns the permits.
///
/// ```
/// use coralio::spawn;
/// use coralio::sync::Semaphore;
/// use std::rc::Rc;
///
/// coralio::run(|| {
///     let slots = Rc::new(Semaphore::new(2));
///     let server = spawn(move || {
///         for request in 0..5 {
///             let slot = Semaphore::acquire_owned(Rc::clone(&slots)); // at most two at a time
///             drop(spawn(move || {
///                 println!("request {request}");
///                 drop(slot);
///             }));
///         }
///         slots.acquire_many(2).forget(); // all have ended
///     });
///     server.join().unwrap();
/// });
/// ```
///
/// Several permits together, or none without waiting:
///
/// ```
/// use coralio::context::AioContext;
/// use coralio::sync::Semaphore;
/// use std::sync::Arc;
///
/// AioContext::run(|_ctx| {
///     let slots = Arc::new(Semaphore::new(3));
///     let two = Semaphore::acquire_many_owned(Arc::clone(&slots), 2);
///     let third = Semaphore::acquire_owned_cancellable(Arc::clone(&slots)).unwrap();
///     assert!(Semaphore::try_acquire_owned(Arc::clone(&slots)).is_none());
///     drop((two, third));
///     assert_eq!(slots.available(), 3);
/// });
/// ```
#[must_use = "dropping the permit returns it to the semaphore"]
pub struct OwnedPermit<S: Deref<Target = Semaphore>> {
    semaphore: S,
    count: usize,
}

impl Semaphore {
    /// Acquires a permit as [`acquire`](Self::acquire) does, with a pointer to the semaphore: the
    /// permit can be moved to a spawned coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn acquire_owned<S: Deref<Target = Semaphore>>(semaphore: S) -> OwnedPermit<S> {
        Semaphore::acquire_many_owned(semaphore, 1)
    }

    /// Acquires permits as [`acquire_many`](Self::acquire_many) does, with a pointer to the
    /// semaphore.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn acquire_many_owned<S: Deref<Target = Semaphore>>(semaphore: S, count: usize) -> OwnedPermit<S> {
        semaphore.acquire_many(count).forget();
        OwnedPermit { semaphore, count }
    }

    /// Acquires a permit as [`acquire_cancellable`](Self::acquire_cancellable) does, with a pointer
    /// to the semaphore.
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. An available permit is acquired even so.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn acquire_owned_cancellable<S: Deref<Target = Semaphore>>(semaphore: S) -> Result<OwnedPermit<S>, Cancelled> {
        semaphore.acquire_cancellable()?.forget();
        Ok(OwnedPermit { semaphore, count: 1 })
    }

    /// Acquires a permit as [`try_acquire`](Self::try_acquire) does, with a pointer to the
    /// semaphore.
    pub fn try_acquire_owned<S: Deref<Target = Semaphore>>(semaphore: S) -> Option<OwnedPermit<S>> {
        semaphore.try_acquire()?.forget();
        Some(OwnedPermit { semaphore, count: 1 })
    }
}

impl<S: Deref<Target = Semaphore>> OwnedPermit<S> {
    /// Drops the pointer without returning the permits: they are used up, or will be
    /// [added](Semaphore::add_permits) elsewhere.
    pub fn forget(mut self) {
        // Adds nothing when it is dropped.
        self.count = 0;
    }
}

impl<S: Deref<Target = Semaphore>> Drop for OwnedPermit<S> {
    fn drop(&mut self) {
        self.semaphore.add_permits(self.count);
    }
}

impl<S: Deref<Target = Semaphore>> fmt::Debug for OwnedPermit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedPermit").field("count", &self.count).finish_non_exhaustive()
    }
}
