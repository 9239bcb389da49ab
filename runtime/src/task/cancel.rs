//! Ending early: cancellation as a flag.
//!
//! A coroutine is never torn down from outside. Cancelling sets a flag; waits for events and I/O
//! check it and return [`Cancelled`], which propagates like any error. A timeout is the same flag
//! for the duration of one closure, set by the clock. A shield masks both, for work that must be
//! finished.

use crate::coroutine::{Cancelled, LocalState};
use crate::scheduler::Scheduler;

/// Returns whether waits of the running coroutine end early: it was cancelled, or an enclosing
/// timeout has expired. False outside a coroutine.
///
/// Has no side effect: an expired timeout returns [`TimedOut`](crate::TimedOut) only if an
/// operation failed because of it. Code that stops early because of this function reports that
/// through its own result, or uses [`check_cancelled`].
pub fn is_cancelled() -> bool {
    Scheduler::current().is_some_and(|scheduler| scheduler.running().is_some_and(|block| scheduler.is_cancelled(block)))
}

/// Returns an error if the running coroutine is to end early: for long computations that never
/// wait.
///
/// # Errors
///
/// [`Cancelled`], if [`is_cancelled`]. An expired timeout then returns
/// [`TimedOut`](crate::TimedOut).
pub fn check_cancelled() -> Result<(), Cancelled> {
    let ending = Scheduler::current().and_then(|scheduler| Some((scheduler, scheduler.running()?)));
    match ending.filter(|(scheduler, block)| scheduler.is_cancelled(block)) {
        Some((scheduler, block)) => Err(scheduler.cut_short(block)),
        None => Ok(()),
    }
}

/// Runs `f` with cancellation and timeouts masked: for work that must be finished.
///
/// ```
/// use coralio::{sleep, spawn};
/// use coralio::context::AioContext;
/// use coralio::task::{Cancelled, shield};
/// use std::time::Duration;
///
/// AioContext::run(|ctx| {
///     let task = spawn(|| {
///         let waited = sleep(Duration::from_secs(3600));
///         assert_eq!(waited, Err(Cancelled));
///         shield(|| sleep(Duration::from_millis(1))).expect("this one is not cut short");
///     });
///     ctx.poll(false);
///     task.cancel();
///     task.join().unwrap();
/// });
/// ```
///
/// # Control
///
/// As `f`.
pub fn shield<T>(f: impl FnOnce() -> T) -> T {
    struct Lifted<'a>(&'a LocalState);
    impl Drop for Lifted<'_> {
        fn drop(&mut self) {
            self.0.shields.set(self.0.shields.get() - 1);
        }
    }
    let local = Scheduler::current().and_then(|scheduler| Some(scheduler.local(scheduler.running()?)));
    let _lifted = local.map(|local| {
        local.shields.set(local.shields.get() + 1);
        Lifted(local)
    });
    f()
}
