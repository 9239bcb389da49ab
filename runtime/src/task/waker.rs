//! Handles to a coroutine for other threads: they can wake and cancel it, nothing else.

use std::sync::Arc;

use crate::coroutine::{CoroutineId, ScheduleError};
use crate::scheduler::SharedScheduler;
use crate::sys::opaque_debug;

/// Wakes a coroutine from any thread.
#[derive(Clone)]
pub struct Waker {
    pub(crate) id: CoroutineId,
    pub(crate) shared: Arc<SharedScheduler>,
}

impl Waker {
    /// Resumes the coroutine: as [`Coroutine::wake`](crate::Coroutine::wake) does on its home
    /// thread; from elsewhere, in the next iteration of its loop, which is notified. Does nothing
    /// if the coroutine has ended.
    ///
    /// # Control
    ///
    /// May enter the coroutine, on its home thread.
    #[track_caller]
    pub fn wake(&self) {
        self.shared.wake(self.id);
    }

    /// Cancels the coroutine, as [`Coroutine::cancel`](crate::Coroutine::cancel); callable from any
    /// thread.
    ///
    /// # Control
    ///
    /// May enter the coroutine, on its home thread.
    #[track_caller]
    pub fn cancel(&self) {
        if self.id.block.word.cancel(self.id.generation) {
            self.wake();
        }
    }

    /// Wakes the coroutine like [`wake`](Self::wake), but never enters it: for destructors.
    #[track_caller]
    pub(crate) fn wake_later(&self) {
        self.shared.wake_later(self.id);
    }

    /// Cancels the coroutine like [`cancel`](Self::cancel), but never enters it: for destructors.
    #[track_caller]
    pub(crate) fn cancel_later(&self) {
        if self.id.block.word.cancel(self.id.generation) {
            self.wake_later();
        }
    }

    /// Schedules the coroutine for the next iteration of its loop, also on its home thread.
    ///
    /// # Errors
    ///
    /// The coroutine is scheduled already.
    #[track_caller]
    pub fn schedule(&self) -> Result<(), ScheduleError> {
        self.shared.schedule(self.id)
    }
}

opaque_debug!(Waker);
