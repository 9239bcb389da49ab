//! Handles to a coroutine for other threads: they can wake and cancel it, nothing else.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use crate::context::shared::SharedContext;
use crate::coroutine::control_block::{BlockRef, ControlBlock};
use crate::coroutine::error::ScheduleError;
use crate::coroutine::state_word::ScheduleOutcome;
use crate::scheduler::Home;
use crate::scheduler::remote_queue::RemoteEvent;
use crate::task::coroutine::Coroutine;
use crate::trace::Wake;

/// Wakes a coroutine from any thread.
#[derive(Clone)]
pub struct Waker {
    pub(crate) id: BlockRef,
    pub(crate) shared: Arc<SharedContext>,
}

impl Waker {
    /// Resumes the coroutine: as [`Coroutine::wake`] does on its home thread; from elsewhere, in
    /// the next iteration of its loop, which is notified. Does nothing if the coroutine has ended.
    ///
    /// # Panics
    ///
    /// Propagates a panic of the coroutine, if this call enters it.
    ///
    /// # Control
    ///
    /// May enter the coroutine, on its home thread.
    #[track_caller]
    pub fn wake(&self) {
        match Home::current() {
            Some(home) if Arc::ptr_eq(&home.shared, &self.shared) => home.wake(self.id),
            // An error means it is on the list already: one wake serves both calls.
            _ => drop(schedule(&self.shared, self.id)),
        }
    }

    /// Cancels the coroutine, as [`Coroutine::cancel`]; callable from any thread.
    ///
    /// # Panics
    ///
    /// As [`wake`](Self::wake).
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
        match Home::current() {
            Some(home) if Arc::ptr_eq(&home.shared, &self.shared) => home.wake_later(self.id),
            _ => drop(schedule(&self.shared, self.id)),
        }
    }

    /// Schedules the coroutine for the next iteration of its loop, also on its home thread.
    ///
    /// # Errors
    ///
    /// The coroutine is scheduled already.
    #[track_caller]
    pub fn schedule(&self) -> Result<(), ScheduleError> {
        schedule(&self.shared, self.id)
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").finish_non_exhaustive()
    }
}

/// A coroutine as an I/O engine stores it with a request: plain data, usable on any thread. Its
/// context acts on it: [`AtHome`](crate::AtHome) and
/// [`AioContext::schedule`](crate::AioContext::schedule).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub(crate) id: BlockRef,
}

impl Token {
    #[inline]
    pub(crate) fn of(id: BlockRef) -> Token {
        Token { id }
    }

    #[inline]
    pub(crate) fn block(self) -> &'static ControlBlock {
        self.id.block
    }

    /// Returns whether the coroutine belongs to the context of `shared` and has not ended.
    #[inline]
    pub(crate) fn lives_in(self, shared: &SharedContext) -> bool {
        self.id.block.context() == shared.id() && self.id.is_live()
    }

    #[inline]
    pub(crate) fn coroutine(self) -> Coroutine {
        Coroutine::of(self.id)
    }

    /// Wakes the coroutine: immediately at home, in its loop's next iteration from elsewhere.
    ///
    /// # Control
    ///
    /// May enter the coroutine.
    #[track_caller]
    pub(crate) fn wake(self, shared: &SharedContext) {
        match shared.home().filter(|_| self.lives_in(shared)) {
            Some(home) => home.wake(self.id),
            None => self.schedule(shared),
        }
    }

    #[track_caller]
    pub(crate) fn schedule(self, shared: &SharedContext) {
        if self.lives_in(shared) {
            // An error means it is on the list already: one wake serves both calls.
            let _ = schedule(shared, self.id);
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

#[track_caller]
pub(crate) fn schedule(shared: &SharedContext, id: BlockRef) -> Result<(), ScheduleError> {
    let here = Location::caller();
    match id.block.schedule(id.generation, here) {
        ScheduleOutcome::Claimed => {
            if let Some(tracer) = &shared.tracer {
                tracer.wake(id, Wake::Scheduled, here);
            }
            // A rejected push means that the context has ended, and the coroutine will not run
            // again.
            if shared.arrivals.push(RemoteEvent::Wake(id)).is_ok() {
                shared.wake_loop();
            }
            Ok(())
        }
        ScheduleOutcome::AlreadyScheduled => Err(ScheduleError { first: id.block.scheduled_at(), second: here }),
        ScheduleOutcome::Stale => Ok(()),
    }
}
