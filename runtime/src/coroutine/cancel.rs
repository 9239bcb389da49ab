//! Ending early: cancellation as a flag, and time as a limit.
//!
//! Nothing is torn out of a coroutine. Cancelling sets a flag; waits for events and I/O look at it and return
//! [`Cancelled`], which goes up the stack as any error does. A timeout is the same flag for the time of one closure, set by
//! the clock. A shield puts both off, for what must be finished.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::ptr;
use std::time::Duration;

use crate::context::timer::Action;
use crate::home::Home;

use super::control::Own;
use super::waiting::{Limit, Waiting};
use super::{Cancelled, Token};

/// Whether waits of the running coroutine end early: it was cancelled, or a timeout around this is over. False outside a
/// coroutine.
///
/// # Control
///
/// Never switches.
pub fn is_cancelled() -> bool {
    Home::current().is_some_and(|home| home.running().is_some_and(|block| home.is_cancelled(block)))
}

/// An error if the running coroutine is to end early: for long computations, which wait for nothing.
///
/// # Errors
///
/// [`Cancelled`], if [`is_cancelled`].
///
/// # Control
///
/// Never switches.
pub fn check_cancelled() -> Result<(), Cancelled> {
    if is_cancelled() { Err(Cancelled) } else { Ok(()) }
}

/// Runs `f` as if the coroutine had not been cancelled, and no timeout were over: for what must be finished.
///
/// ```
/// use coralio_runtime::{AioContext, Cancelled, shield, sleep, spawn};
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
    struct Lifted<'a>(&'a Own);
    impl Drop for Lifted<'_> {
        fn drop(&mut self) {
            self.0.shields.set(self.0.shields.get() - 1);
        }
    }
    let own = Home::current().and_then(|home| Some(home.own(home.running()?)));
    let _lifted = own.map(|own| {
        own.shields.set(own.shields.get() + 1);
        Lifted(own)
    });
    f()
}

/// The time was over before what was to be done in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out")
    }
}

impl std::error::Error for TimedOut {}

/// Runs `f`, for so long at most: when the time is over, waits in it end early with [`Cancelled`], as if the coroutine had
/// been cancelled, and when `f` has returned because of that, so does this. Timeouts nest; the outermost one that is over
/// is the one that reports it.
///
/// ```
/// use coralio_runtime::{AioContext, TimedOut, sleep, spawn, timeout};
/// use std::time::Duration;
///
/// AioContext::run(|_ctx| {
///     let task = spawn(|| timeout(Duration::from_millis(1), || sleep(Duration::from_secs(3600))));
///     assert_eq!(task.join().unwrap(), Err(TimedOut));
/// });
/// ```
///
/// # Errors
///
/// [`TimedOut`], if a wait in `f` was cut short by this timeout, whatever `f` made of it. If none was, what `f` returned is
/// handed on, also when it took longer.
///
/// # Panics
///
/// Outside a coroutine.
///
/// # Control
///
/// As `f`.
pub fn timeout<T>(duration: Duration, f: impl FnOnce() -> T) -> Result<T, TimedOut> {
    struct Off<'a>(&'a Own, &'a Limit);
    impl Drop for Off<'_> {
        fn drop(&mut self) {
            debug_assert!(ptr::eq(self.0.limits.get(), self.1), "*limits nest*");
            self.0.limits.set(self.1.outer);
        }
    }
    let home = Home::expect("a timeout");
    let block = home.running().expect("a timeout is for a coroutine: spawn one");
    let own = home.own(block);
    let Some(deadline) = home.shared.clock.now().checked_add(duration) else { return Ok(f()) };
    let limit = Limit { deadline, hit: Cell::new(false), outer: own.limits.get() };
    own.limits.set(&limit);
    let off = Off(own, &limit);
    let timer = home.shared.timers.start(deadline, Action::Wake(Token::of(block.id())), &home.shared);
    let value = f();
    drop(timer);
    drop(off);
    if limit.hit.get() { Err(TimedOut) } else { Ok(value) }
}

/// Waits until so much time has passed. In a coroutine, that one is suspended meanwhile; on the thread's own stack, the
/// loop runs meanwhile.
///
/// # Errors
///
/// [`Cancelled`], if the coroutine was cancelled or a timeout around this is over.
///
/// # Panics
///
/// Outside a context.
///
/// # Control
///
/// May yield; on the thread's own stack, may enter.
#[track_caller]
pub fn sleep(duration: Duration) -> Result<(), Cancelled> {
    let home = Home::expect("sleep");
    // None: for ever, as far as clocks go.
    let clock = &home.shared.clock;
    let deadline = clock.now().checked_add(duration);
    let over = || deadline.is_some_and(|deadline| clock.now() >= deadline).then_some(());
    let block = home.running();
    let action = block.map_or(Action::Nothing, |block| Action::Wake(Token::of(block.id())));
    let _timer = deadline.map(|deadline| home.shared.timers.start(deadline, action, &home.shared));
    if block.is_some() {
        return home.suspend_until(Waiting::Sleep, over);
    }
    while over().is_none() {
        home.context.poll(true);
    }
    Ok(())
}
