//! A coroutine as others than its own thread have it: to be woken, and nothing else.

use std::fmt;
use std::marker::PhantomData;
use std::panic::Location;
use std::sync::Arc;

use crate::context::shared::Shared;
use crate::context::wake::Arrival;
use crate::home::Home;
use crate::trace::Wake;

use super::control::{Control, CoroutineId};
use super::ticket::Claim;
use super::{Coroutine, ScheduleError};

/// Wakes a coroutine from wherever it is.
#[derive(Clone)]
pub struct Waker {
    pub(super) id: CoroutineId,
    pub(super) shared: Arc<Shared>,
}

impl Waker {
    /// Makes the coroutine run again: as [`Coroutine::wake`] on its home thread; from elsewhere, in the next round of
    /// its loop, which is notified. For a coroutine that has ended it does nothing.
    ///
    /// # Panics
    ///
    /// With the coroutine's panic, if it is entered here and panics.
    ///
    /// # Control
    ///
    /// May enter the coroutine, on its home thread.
    #[track_caller]
    pub fn wake(&self) {
        match Home::current() {
            Some(home) if Arc::ptr_eq(&home.shared, &self.shared) => home.wake(self.id),
            // It is on the list already: one wake does for both.
            _ => drop(schedule(&self.shared, self.id)),
        }
    }

    /// Asks the coroutine to end soon, as [`Coroutine::cancel`]; from any thread.
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
        if self.id.block.ticket.cancel(self.id.generation) {
            self.wake();
        }
    }

    /// As [`wake`](Self::wake), for destructors: enters nobody.
    #[track_caller]
    pub(crate) fn wake_later(&self) {
        match Home::current() {
            Some(home) if Arc::ptr_eq(&home.shared, &self.shared) => home.wake_later(self.id),
            _ => drop(schedule(&self.shared, self.id)),
        }
    }

    /// Makes the coroutine run in the next round of its loop, also from its home thread.
    ///
    /// # Errors
    ///
    /// It is scheduled already (rule W2).
    ///
    /// # Control
    ///
    /// Never switches.
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

/// A coroutine as an I/O engine keeps it with a request: plain data, for any thread. What can be done with it, its
/// context does: [`AtHome`](crate::AtHome) and [`AioContext::schedule`](crate::AioContext::schedule).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub(super) id: CoroutineId,
}

impl Token {
    #[inline]
    pub(crate) fn of(id: CoroutineId) -> Token {
        Token { id }
    }

    #[inline]
    pub(crate) fn block(self) -> &'static Control {
        self.id.block
    }

    /// Whether it is of that context, and has not ended.
    #[inline]
    pub(crate) fn lives_in(self, shared: &Shared) -> bool {
        self.id.block.context() == shared.id() && self.id.is_live()
    }

    #[inline]
    pub(crate) fn coroutine(self) -> Coroutine {
        Coroutine { id: self.id, _home: PhantomData }
    }

    /// Wakes it: at once at home, in its loop's next round from elsewhere.
    ///
    /// # Control
    ///
    /// May enter it.
    #[track_caller]
    pub(crate) fn wake(self, shared: &Shared) {
        match shared.home().filter(|_| self.lives_in(shared)) {
            Some(home) => home.wake(self.id),
            None => self.schedule(shared),
        }
    }

    #[track_caller]
    pub(crate) fn schedule(self, shared: &Shared) {
        if self.lives_in(shared) {
            // It is on the list already: one wake does for both.
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
pub(super) fn schedule(shared: &Shared, id: CoroutineId) -> Result<(), ScheduleError> {
    let here = Location::caller();
    match id.block.schedule(id.generation, here) {
        Claim::Mine => {
            if let Some(tracer) = &shared.tracer {
                tracer.wake(id, Wake::Scheduled, here);
            }
            // One that is handed back: the context has ended, and nobody runs it any more.
            if shared.arrivals.push(Arrival::Wake(id)).is_ok() {
                shared.wake_loop();
            }
            Ok(())
        }
        Claim::Taken => Err(ScheduleError { first: id.block.scheduled_at(), second: here }),
        Claim::Ended => Ok(()),
    }
}
