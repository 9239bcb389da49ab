//! Wakes: a suspended coroutine runs now, when the running one yields, or in the loop's next
//! iteration (rule W1).

use std::panic::Location;
use std::thread;

use crate::coroutine::{ControlBlock, CoroutineId, State};
use crate::scheduler::Scheduler;
use crate::trace::Wake;

impl Scheduler {
    /// Wakes a coroutine of this thread (rule W1).
    ///
    /// # Control
    ///
    /// Enters the coroutine if none is running; otherwise it runs when the running one yields or
    /// ends.
    #[track_caller]
    pub(crate) fn wake(&self, id: CoroutineId) {
        if !id.is_live() || self.ending.get() {
            return;
        }
        let local = self.local(id.block);
        match local.state.get() {
            State::Suspended => self.wake_suspended(id.block),
            // It is made ready when it suspends.
            State::Entered => {
                local.woken.set(true);
                self.trace_wake(id.block, Wake::AlreadyEntered);
            }
            State::Scheduled | State::Finished | State::Free => {}
        }
    }

    /// Wakes like [`wake`](Self::wake), but never enters the coroutine, so that destructors can call
    /// it. The coroutine runs when the running one yields or ends, or else in the loop's next
    /// iteration.
    #[track_caller]
    pub(crate) fn wake_later(&self, id: CoroutineId) {
        let suspended = id.is_live() && self.local(id.block).state.get() == State::Suspended;
        if suspended && self.running.get().is_none() && !self.ending.get() {
            self.trace_wake(id.block, Wake::Scheduled);
            self.make_ready(id.block, Location::caller());
        } else {
            self.wake(id);
        }
    }

    /// Wakes like [`wake`](Self::wake), for a waker that has already stored the result where the
    /// coroutine checks before it suspends (rule E6).
    ///
    /// # Control
    ///
    /// May enter the coroutine.
    #[inline]
    #[track_caller]
    pub(crate) fn wake_unless_entered(&self, block: &'static ControlBlock) {
        match self.local(block).state.get() {
            State::Entered => self.left_entered(block),
            State::Suspended if !self.ending.get() => self.wake_suspended(block),
            State::Suspended | State::Scheduled | State::Finished | State::Free => {}
        }
    }

    /// Traces that a wake did nothing, because the coroutine is entered.
    #[inline]
    #[track_caller]
    pub(crate) fn left_entered(&self, block: &'static ControlBlock) {
        if self.has_tracer {
            self.trace_wake(block, Wake::AlreadyEntered);
        }
    }

    // Out of line: a request that completes within its submit finds its coroutine entered.
    #[inline(never)]
    #[track_caller]
    fn wake_suspended(&self, block: &'static ControlBlock) {
        if self.has_tracer {
            let how = match self.running.get() {
                Some(_) => Wake::Deferred,
                None if thread::panicking() => Wake::Scheduled,
                None => Wake::Immediate,
            };
            self.trace_wake(block, how);
        }
        match self.frame() {
            Some(frame) if self.running.get().is_some() => {
                block.set_scheduled_at(Location::caller());
                self.local(block).state.set(State::Scheduled);
                frame.deferred.push(block);
            }
            // Woken by a destructor while this thread unwinds: the coroutine, if entered here,
            // could not be suspended.
            _ if thread::panicking() => self.make_ready(block, Location::caller()),
            _ => self.enter(block),
        }
    }

    /// Traces the wake, if there is an event log.
    #[cold]
    #[track_caller]
    fn trace_wake(&self, block: &'static ControlBlock, how: Wake) {
        if let Some(tracer) = &self.shared.tracer {
            tracer.wake(block.id().traced(), how, Location::caller());
        }
    }

    /// Schedules a suspended coroutine for the loop's next iteration, or a nested one.
    #[inline]
    pub(crate) fn make_ready(&self, block: &'static ControlBlock, at: &'static Location<'static>) {
        let local = self.local(block);
        debug_assert_eq!(local.state.get(), State::Suspended);
        block.set_scheduled_at(at);
        local.state.set(State::Scheduled);
        self.ready.push(block);
    }
}
