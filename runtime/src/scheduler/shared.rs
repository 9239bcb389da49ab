//! The part of a scheduler that all threads may access: its queue for other threads, and how its
//! loop is notified.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::Location;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::coroutine::{CoroutineId, ScheduleError, ScheduleOutcome};
use crate::scheduler::{NotifyState, RemoteEvent, RemoteQueue, Scheduler};
use crate::sys::{Clock, EventFd};
use crate::trace::{Span, SpanGuard, Tracer, Wake};

pub(crate) struct SharedScheduler {
    /// The clock used by timers.
    pub(crate) clock: Clock,
    /// The tracer of the event log, if there is one.
    pub(crate) tracer: Option<Tracer>,
    pub(crate) remote_queue: RemoteQueue,
    pub(crate) sleep: NotifyState,
    event_fd: EventFd,
    /// The home thread's number of guards of the context's lock: a coroutine must not suspend with
    /// one. Accessed by that thread only, with plain loads and stores.
    lock_depth: AtomicU32,
}

impl SharedScheduler {
    pub(crate) fn new(clock: Clock, tracer: Option<Tracer>) -> io::Result<Arc<SharedScheduler>> {
        Ok(Arc::new(SharedScheduler {
            clock,
            tracer,
            remote_queue: RemoteQueue::new(),
            sleep: NotifyState::new(),
            event_fd: EventFd::new()?,
            lock_depth: AtomicU32::new(0),
        }))
    }

    /// Returns a number that is unique among the contexts alive.
    #[inline]
    pub(crate) fn id(&self) -> usize {
        ptr::from_ref(self).addr()
    }

    /// Returns the scheduler, if this is its thread.
    #[inline]
    pub(crate) fn at_home<'a>(&self) -> Option<&'a Scheduler> {
        Scheduler::current().filter(|scheduler| ptr::eq(&*scheduler.shared, self))
    }

    /// Returns the descriptor that becomes readable when the loop is notified in its sleep.
    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.event_fd.as_fd()
    }

    #[inline]
    pub(crate) fn lock_depth(&self) -> u32 {
        self.lock_depth.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_lock_depth(&self, depth: u32) {
        self.lock_depth.store(depth, Ordering::Relaxed);
    }

    /// Opens a span in the event log; it closes when the value is dropped.
    #[inline]
    #[track_caller]
    pub(crate) fn span(&self, span: Span) -> Option<SpanGuard<'_>> {
        self.tracer.as_ref().map(|tracer| tracer.span(span))
    }

    /// Wakes the loop if it sleeps or is about to (rule X6). The work is already in a queue that
    /// the loop checks.
    pub(crate) fn wake_loop(&self) {
        if self.sleep.needs_kick() {
            self.event_fd.signal();
        }
    }

    /// As `wake_loop`, on a foreign thread. The home thread checks its queues before it sleeps, and
    /// need not be woken.
    pub(crate) fn wake_loop_of_another(&self) {
        if self.at_home().is_none() {
            self.wake_loop();
        }
    }

    /// Makes the current or the next blocking poll return (rule X6), since its caller's condition
    /// may have changed.
    pub(crate) fn notify(&self) {
        if self.sleep.notify() {
            self.event_fd.signal();
        }
    }

    /// Called when an iteration finds the notification among the events of epoll. If that is an
    /// iteration of another thread, the loop may have missed it, since an edge is reported once; so
    /// it is sent again.
    pub(crate) fn forward_notify(&self) {
        if self.sleep.is_kicked() {
            self.event_fd.signal();
        }
    }

    /// Calls `f` on the home thread, in the loop's next iteration; drops it if the context has
    /// ended.
    pub(crate) fn run_at_home(&self, f: Box<dyn FnOnce() + Send>) {
        match self.remote_queue.push(RemoteEvent::Run(f)) {
            Ok(()) => self.wake_loop(),
            Err(refused) => drop(refused),
        }
    }

    /// Wakes a coroutine of this context, but does not enter it here. From any thread.
    #[track_caller]
    pub(crate) fn wake_later(&self, id: CoroutineId) {
        match self.at_home() {
            Some(scheduler) => scheduler.wake_later(id),
            // An error means it is on the list already: one wake serves both calls.
            None => drop(self.schedule(id)),
        }
    }

    /// Schedules a coroutine of this context for the loop's next iteration. From any thread.
    #[track_caller]
    pub(crate) fn schedule(&self, id: CoroutineId) -> Result<(), ScheduleError> {
        let here = Location::caller();
        match id.block.word.claim(id.generation) {
            ScheduleOutcome::Claimed => {
                id.block.set_scheduled_at(here);
                if let Some(tracer) = &self.tracer {
                    tracer.wake(id.traced(), Wake::Scheduled, here);
                }
                // A rejected push means that the context has ended, and the coroutine will not run
                // again.
                if self.remote_queue.push(RemoteEvent::Wake(id)).is_ok() {
                    self.wake_loop();
                }
                Ok(())
            }
            ScheduleOutcome::AlreadyScheduled => Err(ScheduleError { first: id.block.scheduled_at(), second: here }),
            ScheduleOutcome::Stale => Ok(()),
        }
    }

    /// Wakes a coroutine of this context, if it lives: immediately at home, in the loop's next
    /// iteration from elsewhere.
    ///
    /// # Control
    ///
    /// May enter the coroutine.
    #[track_caller]
    pub(crate) fn wake(&self, id: CoroutineId) {
        match self.at_home() {
            Some(scheduler) => scheduler.wake(id),
            // An error means it is on the list already: one wake serves both calls.
            None => drop(self.schedule(id)),
        }
    }
}
