//! Recording the owner of a lock, and refusing to wait for oneself.

use std::panic::Location;

use crate::coroutine::LockOwner;
use crate::scheduler::Scheduler;

impl LockOwner {
    /// Records that the running coroutine or thread took the lock.
    #[inline]
    #[track_caller]
    pub(crate) fn record(&self) {
        self.set(Scheduler::current().and_then(Scheduler::running), Location::caller());
    }

    /// Records that the lock was taken for a guard that may move to another coroutine: no coroutine
    /// counts as the owner.
    #[track_caller]
    pub(crate) fn record_movable(&self) {
        self.clear();
        self.set(None, Location::caller());
    }

    /// Panics if the running coroutine owns the lock: it would wait for itself (rule S6).
    #[track_caller]
    pub(crate) fn panic_if_self(&self, what: &str) {
        let (Some(scheduler), Some(owner)) = (Scheduler::current(), self.get()) else { return };
        let (Some(running), Some(holder)) = (scheduler.running(), owner.holder) else { return };
        if running.id() == holder {
            panic!(
                "{} locks a {what} that it already holds, taken at {}: it would wait for itself; drop the guard first",
                scheduler.local(running).label(),
                owner.at
            );
        }
    }
}
