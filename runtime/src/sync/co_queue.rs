//! A condition variable for coroutines, used with a [`CoMutex`](super::CoMutex) around the shared
//! state (rule S2).

use std::fmt;

use crate::coroutine::{Cancelled, WaitReason};
use crate::sync::co_mutex::CoMutexGuard;
use crate::sync::wait_queue::{Abandoned, EndsEarly, IF_CANCELLED, WaitQueue};

/// A condition variable: coroutines wait until shared state has changed. They are woken in order of
/// arrival.
///
/// ```
/// use coralio::spawn;
/// use coralio::sync::{CoMutex, CoQueue};
/// use std::rc::Rc;
///
/// coralio::run(|| {
///     let shared = Rc::new((CoMutex::new(None), CoQueue::new()));
///     let reader = spawn({
///         let shared = Rc::clone(&shared);
///         move || {
///             let mut value = shared.0.lock();
///             while value.is_none() {
///                 value = shared.1.wait(value);
///             }
///             value.unwrap()
///         }
///     });
///     let writer = spawn(move || {
///         *shared.0.lock() = Some(7);
///         shared.1.wake_one();
///     });
///     writer.join().unwrap();
///     assert_eq!(reader.join().unwrap(), 7);
/// });
/// ```
#[derive(Default)]
#[doc(alias = "qemu_co_queue_wait")]
pub struct CoQueue {
    queue: WaitQueue,
}

impl CoQueue {
    /// Creates a queue without waiters.
    pub const fn new() -> CoQueue {
        CoQueue { queue: WaitQueue::new(()) }
    }

    /// Releases the mutex, waits to be woken, and locks the mutex again. A wake after the release
    /// of the mutex is never missed. Neither cancellation nor a timeout ends the wait: see
    /// [`wait_cancellable`](Self::wait_cancellable).
    ///
    /// # Control
    ///
    /// Yields.
    #[track_caller]
    pub fn wait<'a, T: ?Sized>(&self, guard: CoMutexGuard<'a, T>) -> CoMutexGuard<'a, T> {
        let mutex = guard.mutex();
        _ = self.wait_for_wake(guard, None);
        mutex.lock()
    }

    /// Waits like [`wait`](Self::wait), but ends early if the coroutine is cancelled or an
    /// enclosing timeout expires.
    ///
    /// ```
    /// use coralio::{spawn, timeout};
    /// use coralio::context::AioContext;
    /// use coralio::sync::{CoMutex, CoQueue};
    /// use coralio::task::{Cancelled, TimedOut};
    /// use std::time::Duration;
    ///
    /// AioContext::run(|_ctx| {
    ///     let task = spawn(|| {
    ///         let (ready, queue) = (CoMutex::new(false), CoQueue::new());
    ///         let wait = || {
    ///             let mut is_ready = ready.lock();
    ///             while !*is_ready {
    ///                 is_ready = queue.wait_cancellable(is_ready)?;
    ///             }
    ///             Ok::<_, Cancelled>(())
    ///         };
    ///         assert_eq!(timeout(Duration::from_millis(1), wait), Err(TimedOut));
    ///     });
    ///     task.join().unwrap();
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// [`Cancelled`]; the mutex is then not locked again.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn wait_cancellable<'a, T: ?Sized>(
        &self,
        guard: CoMutexGuard<'a, T>,
    ) -> Result<CoMutexGuard<'a, T>, Cancelled> {
        let mutex = guard.mutex();
        self.wait_for_wake(guard, IF_CANCELLED).map_err(|()| Cancelled)?;
        // The wake was granted to this waiter: failing now would lose it.
        Ok(mutex.lock())
    }

    #[track_caller]
    fn wait_for_wake<T: ?Sized>(&self, guard: CoMutexGuard<'_, T>, ends_early: EndsEarly) -> Result<(), ()> {
        let reason = WaitReason::CoQueue(std::ptr::from_ref(self).addr());
        self.queue.wait(self.queue.lock(), (), reason, ends_early, move || drop(guard), |gone| self.gone(gone))
    }

    /// Handles a waiter that leaves: a wake granted to it goes to the next one.
    fn gone(&self, gone: Abandoned<'_, (), ()>) {
        match gone {
            Abandoned::Left(_) => {}
            Abandoned::Granted(()) => _ = self.wake_one(),
        }
    }

    /// Wakes the longest waiting coroutine. Returns whether there was one.
    #[track_caller]
    pub fn wake_one(&self) -> bool {
        self.queue.lock().wake_first()
    }

    /// Wakes all current waiters, in order of arrival.
    #[track_caller]
    pub fn wake_all(&self) {
        // A woken waiter on another thread may wait again meanwhile: it queues at the end, and is
        // not woken twice. A separate statement: in the head of the loop the queue would stay
        // locked.
        let waiting = self.queue.lock().len();
        for _ in 0..waiting {
            self.wake_one();
        }
    }
}

impl fmt::Debug for CoQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoQueue").finish_non_exhaustive()
    }
}
