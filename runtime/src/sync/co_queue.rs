//! A condition to wait for, with a [`CoMutex`](super::CoMutex) around what it is about (rule S2).

use std::fmt;

use super::co_mutex::CoMutexGuard;
use super::wait_queue::{Gone, WaitQueue};
use crate::coroutine::Cancelled;
use crate::coroutine::waiting::Waiting;

/// Where coroutines wait until something they share has changed. They are woken in the order in which they came.
///
/// ```
/// use coralio_runtime::{AioContext, CoMutex, CoQueue, spawn};
/// use std::rc::Rc;
///
/// AioContext::run(|_ctx| {
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
#[doc(alias = "qemu_co_queue_wait")]
pub struct CoQueue {
    line: WaitQueue,
}

impl CoQueue {
    /// A queue in which nobody waits.
    pub const fn new() -> CoQueue {
        CoQueue { line: WaitQueue::new(()) }
    }

    /// Gives the mutex up, waits to be woken, and takes the mutex again. No wake that comes after the mutex was given up
    /// is missed. Neither cancelling nor a timeout ends the wait: see [`wait_cancellable`](Self::wait_cancellable).
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// Yields.
    #[track_caller]
    pub fn wait<'a, T: ?Sized>(&self, guard: CoMutexGuard<'a, T>) -> CoMutexGuard<'a, T> {
        let mutex = guard.mutex();
        self.line.wait(self.line.lock(), (), self.waiting(), move || drop(guard), |gone| self.gone(gone));
        mutex.lock()
    }

    /// As [`wait`](Self::wait), unless the coroutine is cancelled meanwhile, or a timeout around this is over.
    ///
    /// # Errors
    ///
    /// [`Cancelled`]; the mutex is not taken again then.
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
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
        let line = self.line.lock();
        self.line
            .wait_cancellable(line, (), self.waiting(), move || drop(guard), |gone| self.gone(gone))
            .map_err(|()| Cancelled)?;
        // The wake was for this one: to fail now would lose it.
        Ok(mutex.lock())
    }

    /// One goes away that waited: a wake that was for it is for the next.
    fn gone(&self, gone: Gone<'_, (), ()>) {
        match gone {
            Gone::Left(_) => {}
            Gone::Granted(()) => _ = self.wake_one(),
        }
    }

    fn waiting(&self) -> Waiting {
        Waiting::CoQueue(std::ptr::from_ref(self).addr())
    }

    /// Wakes the one that has waited longest. Returns whether there was one.
    ///
    /// # Control
    ///
    /// Never switches. It runs when the running coroutine yields, or else in its loop's next round.
    #[track_caller]
    pub fn wake_one(&self) -> bool {
        let next = self.line.lock().grant_first();
        match next {
            Some(waker) => {
                waker.wake_later();
                true
            }
            None => false,
        }
    }

    /// Wakes all that wait now, in the order in which they came.
    ///
    /// # Control
    ///
    /// Never switches. They run when the running coroutine yields, or else in their loops' next rounds.
    #[track_caller]
    pub fn wake_all(&self) {
        // One on another thread may come to wait again meanwhile: it stands at the end, and is not woken twice.
        // In a statement of its own: in the head of the loop the line would stay locked.
        let waiting = self.line.lock().len();
        for _ in 0..waiting {
            self.wake_one();
        }
    }
}

impl Default for CoQueue {
    fn default() -> CoQueue {
        CoQueue::new()
    }
}

impl fmt::Debug for CoQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoQueue").finish_non_exhaustive()
    }
}
