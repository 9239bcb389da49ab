//! Waits that end early: cancellation is a flag, a timeout the same flag for the duration of one
//! closure.
//!
//! Waits for an event (time, a message, a descriptor, I/O) end early with [`Cancelled`] when the
//! coroutine is cancelled or an enclosing [`timeout`](crate::timeout) expires; waits for a lock do
//! so only in their `_cancellable` variants. The check ([`Scheduler::is_cancelled`]) is separate
//! from the commit ([`Scheduler::cut_short`]): in between, the wait may still succeed.

#![allow(unsafe_code)]

use crate::coroutine::{Cancelled, ControlBlock, Deadline, WaitReason};
use crate::scheduler::Scheduler;

/// Suspends the running coroutine as [`suspend`](crate::suspend) does, and records the reason.
///
/// # Control
///
/// Yields.
#[inline]
#[track_caller]
pub(crate) fn suspend_for(reason: WaitReason) {
    Scheduler::expect("suspending a coroutine").suspend_for(reason);
}

/// Suspends like [`suspend_for`], for waits that can fail: returns the error in a destructor on the
/// coroutine's own unwinding stack.
///
/// # Control
///
/// Yields.
#[inline]
#[track_caller]
pub(crate) fn try_suspend_for(reason: WaitReason) -> Result<(), Cancelled> {
    Scheduler::expect("suspending a coroutine").try_suspend_for(reason)
}

impl Scheduler {
    /// Returns whether waits of this coroutine end early: it was cancelled, or a timeout has
    /// expired. Has no side effect: the wait may still find that it has succeeded, and then the
    /// timeout must not be marked as hit.
    #[inline]
    pub(crate) fn is_cancelled(&self, block: &'static ControlBlock) -> bool {
        // Usually neither.
        (block.word.is_cancelled() || !self.local(block).deadlines.get().is_null()) && self.is_cancelled_now(block)
    }

    #[cold]
    fn is_cancelled_now(&self, block: &'static ControlBlock) -> bool {
        self.local(block).shields.get() == 0 && (block.word.is_cancelled() || self.expired_deadline(block).is_some())
    }

    /// Commits an operation of this coroutine to failure, and returns its error. The outermost
    /// expired timeout will return [`TimedOut`](crate::TimedOut). Called after
    /// [`is_cancelled`](Self::is_cancelled), once the operation can no longer succeed: it has left
    /// its queue, and nothing was granted to it (rule S4).
    #[cold]
    pub(crate) fn cut_short(&self, block: &'static ControlBlock) -> Cancelled {
        if self.local(block).shields.get() == 0 && !block.word.is_cancelled() {
            if let Some(frame) = self.expired_deadline(block) {
                frame.hit.set(true);
            }
        }
        Cancelled
    }

    /// Returns the outermost timeout of this coroutine whose deadline has passed.
    fn expired_deadline(&self, block: &'static ControlBlock) -> Option<&Deadline> {
        let now = self.shared.clock.now();
        let mut over = None;
        let mut next = self.local(block).deadlines.get();
        // SAFETY: *deadlines nest*: each lies in a frame of `timeout` on this coroutine's stack,
        // which unlinks it before it returns.
        while let Some(frame) = unsafe { next.as_ref() } {
            if frame.deadline <= now {
                over = Some(frame);
            }
            next = frame.outer;
        }
        over
    }

    /// Suspends the running coroutine until `look` returns a value, or until the wait is cut short
    /// with [`Cancelled`]. In a destructor on the coroutine's own unwinding stack, does not wait.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub(crate) fn suspend_until<R>(
        &self,
        reason: WaitReason,
        mut look: impl FnMut() -> Option<R>,
    ) -> Result<R, Cancelled> {
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if let Some(block) = self.running().filter(|block| self.is_cancelled(block)) {
                return Err(self.cut_short(block));
            }
            self.try_suspend_for(reason)?;
        }
    }
}
