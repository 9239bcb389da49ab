//! Timeouts and sleeps.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ptr;
use std::time::{Duration, Instant};

use crate::context::{Action, LocalContext, Timer};
use crate::coroutine::{Cancelled, Deadline, LocalState, WaitReason};

/// The error of a [`timeout`] that expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl std::error::Error for TimedOut {}

impl From<TimedOut> for io::Error {
    /// Of kind `TimedOut`.
    fn from(error: TimedOut) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, error)
    }
}

/// Runs `f` with a time limit: when the limit expires, waits in `f` end early with [`Cancelled`],
/// as if the coroutine had been cancelled, and once `f` has returned, `timeout` returns
/// [`TimedOut`]. Timeouts nest; the outermost expired one reports the error.
///
/// ```
/// use coralio::{sleep, spawn, timeout};
/// use coralio::task::TimedOut;
/// use std::time::Duration;
///
/// coralio::run(|| {
///     let task = spawn(|| timeout(Duration::from_millis(1), || sleep(Duration::from_secs(3600))));
///     assert_eq!(task.join().unwrap(), Err(TimedOut));
/// });
/// ```
///
/// # Errors
///
/// [`TimedOut`], if a wait in `f` was cut short by this timeout, regardless of the value that `f`
/// returned. Otherwise the value of `f` is returned, even if `f` took longer. So no value is lost:
/// a wait whose message, permit or lock arrives just as the time expires either succeeds, and this
/// returns `Ok`, or has no effect. A waiting [scope](crate::scope()) cancels its coroutines when
/// the time expires, which counts as a wait that was cut short.
///
/// A coroutine that `f` joins is cancelled as well when the time expires, also one of another thread
/// ([`RemoteJoinHandle::join`](crate::RemoteJoinHandle::join)), since joining consumes the handle: it
/// continues detached, with waits that end early. Nothing else that `f` waits for is cancelled. To
/// wait for a limited time and then wait again, poll the handle: `block_on(&mut handle)`.
///
/// The coroutine yields before this returns [`TimedOut`], so that a loop of timeouts with a
/// duration of zero does not starve others.
///
/// # Panics
///
/// Outside a coroutine.
///
/// # Control
///
/// As `f`; may yield.
#[track_caller]
pub fn timeout<T>(duration: Duration, f: impl FnOnce() -> T) -> Result<T, TimedOut> {
    let home = LocalContext::expect("a timeout");
    run_until(home, home.scheduler.shared.clock.now().checked_add(duration), f)
}

/// Runs `f` with a time limit as [`timeout`] does; the limit is a time of the context's clock, see
/// [`AioContext::now`](crate::AioContext::now).
///
/// ```
/// use coralio::{sleep, spawn};
/// use coralio::context::AioContext;
/// use coralio::task::{TimedOut, timeout_at};
/// use std::time::Duration;
///
/// AioContext::run(|ctx| {
///     let deadline = ctx.now() + Duration::from_millis(10);
///     let task = spawn(move || {
///         timeout_at(deadline, || sleep(Duration::from_millis(1)))??; // steps with one deadline
///         timeout_at(deadline, || sleep(Duration::from_secs(3600)))??;
///         Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
///     });
///     assert!(task.join().unwrap().unwrap_err().is::<TimedOut>());
/// });
/// ```
///
/// # Errors
///
/// As [`timeout`].
///
/// # Panics
///
/// Outside a coroutine.
///
/// # Control
///
/// As `f`; may yield.
#[track_caller]
pub fn timeout_at<T>(deadline: Instant, f: impl FnOnce() -> T) -> Result<T, TimedOut> {
    run_until(LocalContext::expect("a timeout"), Some(deadline), f)
}

/// Runs `f` until `deadline`; `None` is beyond the clock's range.
#[track_caller]
fn run_until<T>(home: &LocalContext, deadline: Option<Instant>, f: impl FnOnce() -> T) -> Result<T, TimedOut> {
    struct Off<'a>(&'a LocalState, &'a Deadline);
    impl Drop for Off<'_> {
        fn drop(&mut self) {
            debug_assert!(ptr::eq(self.0.deadlines.get(), self.1), "*deadlines nest*");
            self.0.deadlines.set(self.1.outer);
        }
    }
    let scheduler = &home.scheduler;
    let block = scheduler.running().expect("timeout outside a coroutine: spawn one");
    let local = scheduler.local(block);
    let Some(deadline) = deadline else { return Ok(f()) };
    let frame = Deadline { deadline, hit: Cell::new(false), outer: local.deadlines.get() };
    local.deadlines.set(&frame);
    let off = Off(local, &frame);
    let timer = Timer::start(deadline, Action::Wake(block.id()), &home.context.shared);
    let value = f();
    drop(timer);
    drop(off);
    if !frame.hit.get() {
        return Ok(value);
    }
    drop(value);
    // A wait that was cut short immediately has not suspended: without this, a loop of such
    // timeouts would starve the thread.
    if scheduler.can_suspend() {
        scheduler.reschedule();
    }
    Err(TimedOut)
}

/// Waits until `duration` has passed. A coroutine is suspended meanwhile; on the thread's own
/// stack, the loop runs meanwhile.
///
/// Always yields, even if the duration is zero or the coroutine was cancelled: other ready
/// coroutines run first. The exception is a destructor on an unwinding stack, which cannot yield:
/// there, a sleep returns immediately, with the error unless its deadline has passed.
///
/// # Errors
///
/// [`Cancelled`], if the coroutine was cancelled or an enclosing timeout has expired.
///
/// # Panics
///
/// Outside a context.
///
/// # Control
///
/// Yields; on the thread's own stack, may enter.
#[track_caller]
pub fn sleep(duration: Duration) -> Result<(), Cancelled> {
    let home = LocalContext::expect("sleep");
    wait_for_time(home, home.scheduler.shared.clock.now().checked_add(duration))
}

/// Waits until `deadline`, a time of the context's clock: see
/// [`AioContext::now`](crate::AioContext::now). Otherwise as [`sleep`]; always yields.
///
/// # Errors
///
/// As [`sleep`].
///
/// # Panics
///
/// Outside a context.
///
/// # Control
///
/// Yields; on the thread's own stack, may enter.
#[track_caller]
pub fn sleep_until(deadline: Instant) -> Result<(), Cancelled> {
    wait_for_time(LocalContext::expect("sleep"), Some(deadline))
}

/// Waits until `deadline`; `None` is beyond the clock's range, so for ever.
#[track_caller]
fn wait_for_time(home: &LocalContext, deadline: Option<Instant>) -> Result<(), Cancelled> {
    let scheduler = &home.scheduler;
    let clock = &scheduler.shared.clock;
    let is_over = || deadline.is_some_and(|deadline| clock.now() >= deadline);
    let Some(block) = scheduler.running() else {
        // A sleep that is over needs no timer, only the turn of the others.
        let until = deadline.filter(|_| !is_over());
        let _timer = until.map(|deadline| Timer::start(deadline, Action::Nothing, &home.context.shared));
        loop {
            home.context.poll(!is_over());
            if is_over() {
                return Ok(());
            }
        }
    };
    if is_over() || scheduler.is_cancelled(block) {
        // No timer is needed, only a turn for the others.
        if scheduler.can_suspend() {
            scheduler.reschedule();
        }
        return if is_over() { Ok(()) } else { Err(scheduler.cut_short(block)) };
    }
    let wake = Action::Wake(block.id());
    let _timer = deadline.map(|deadline| Timer::start(deadline, wake, &home.context.shared));
    scheduler.try_suspend_for(WaitReason::Sleep)?;
    scheduler.suspend_until(WaitReason::Sleep, || is_over().then_some(()))
}
