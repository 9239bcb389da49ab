//! A notification without a mutex or a value (rule S7).
//!
//! The permit and the number of `notify_waiters` calls, *the round*, are guarded by the wait
//! queue's lock. A waiter's node carries the round in which it joined: `notify_waiters` ends a
//! round, and wakes the waiters of earlier ones, which are at the head of the queue.

use std::fmt;

use crate::coroutine::{Cancelled, WaitReason};
use crate::sync::wait_queue::{Abandoned, IF_CANCELLED, WaitQueue};

/// Notifies coroutines of any number of contexts and threads of an event. It carries no value, and,
/// unlike a [`CoQueue`](crate::CoQueue), needs no mutex.
///
/// [`notify_one`](Self::notify_one) stores one permit if there is no waiter, so a notification
/// before the wait is not missed. [`notify_waiters`](Self::notify_waiters) wakes the waiters of
/// that time, and stores nothing; to check a condition and wait without a gap in between, use
/// [`wait_until`](Self::wait_until).
///
/// ```
/// use coralio::spawn;
/// use coralio::sync::Notify;
/// use std::cell::Cell;
/// use std::rc::Rc;
///
/// coralio::run(|| {
///     let shared = Rc::new((Cell::new(0), Notify::new()));
///     let waiter = spawn({
///         let shared = Rc::clone(&shared);
///         move || shared.1.wait_until(|| shared.0.get() == 3)
///     });
///     for _ in 0..3 {
///         shared.0.set(shared.0.get() + 1);
///         shared.1.notify_one();
///     }
///     assert_eq!(waiter.join().unwrap(), Ok(()));
/// });
/// ```
///
/// A wait for whatever comes next, and the end of all waits:
///
/// ```
/// use coralio::spawn;
/// use coralio::context::AioContext;
/// use coralio::sync::Notify;
/// use std::rc::Rc;
///
/// AioContext::run(|ctx| {
///     let notify = Rc::new(Notify::new());
///     let waiters = [(); 3].map(|()| {
///         let notify = Rc::clone(&notify);
///         spawn(move || notify.notified())
///     });
///     ctx.poll(false); // all three wait
///     notify.notify_waiters();
///     assert_eq!(waiters.map(|waiter| waiter.join().unwrap()), [Ok(()); 3]);
/// });
/// ```
#[derive(Default)]
pub struct Notify {
    queue: WaitQueue<Ticket, State>,
}

#[derive(Default)]
struct State {
    has_permit: bool,
    round: u64,
}

/// What a waiter's node carries.
#[derive(Default)]
struct Ticket {
    /// The round in which it joined the queue.
    round: u64,
    /// Notified by `notify_one`: if the waiter unwinds, the notification goes to another one.
    by_one: bool,
}

impl Notify {
    /// Creates a `Notify` without a permit.
    pub const fn new() -> Notify {
        Notify { queue: WaitQueue::new(State { has_permit: false, round: 0 }) }
    }

    /// Consumes the permit, or else suspends the coroutine until it is notified. Waiters are
    /// notified in order of arrival.
    ///
    /// # Errors
    ///
    /// [`Cancelled`], if the coroutine was cancelled or an enclosing timeout expired: then no
    /// notification was consumed. A permit is consumed even so.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn notified(&self) -> Result<(), Cancelled> {
        self.wait_since(None, self.waiting())
    }

    /// Waits until `condition` returns true: checks it immediately and after each notification. A
    /// notification after a check is not missed, even from another thread and by
    /// [`notify_waiters`](Self::notify_waiters).
    ///
    /// # Errors
    ///
    /// [`Cancelled`], if the condition is false and the coroutine was cancelled or an enclosing
    /// timeout expired.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn wait_until(&self, condition: impl FnMut() -> bool) -> Result<(), Cancelled> {
        self.wait_until_for(self.waiting(), condition)
    }

    /// Waits like `wait_until`; `reason` is recorded for messages.
    #[track_caller]
    pub(super) fn wait_until_for(
        &self,
        reason: WaitReason,
        mut condition: impl FnMut() -> bool,
    ) -> Result<(), Cancelled> {
        loop {
            let seen = self.queue.lock().state().round;
            if condition() {
                return Ok(());
            }
            self.wait_since(Some(seen), reason)?;
        }
    }

    /// Waits for a notification, unless there is a permit, or the round `seen` is over.
    #[track_caller]
    fn wait_since(&self, seen: Option<u64>, reason: WaitReason) -> Result<(), Cancelled> {
        let mut locked = self.queue.lock();
        let state = locked.state();
        if seen.is_some_and(|seen| seen != state.round) || std::mem::take(&mut state.has_permit) {
            return Ok(());
        }
        let ticket = Ticket { round: state.round, by_one: false };
        let notified = self.queue.wait(locked, ticket, reason, IF_CANCELLED, || (), |gone| self.gone(gone));
        notified.map(drop).map_err(|_| Cancelled)
    }

    /// Notifies the longest waiting coroutine; if there is none, stores a permit for the next
    /// [`notified`](Self::notified). At most one permit is stored. Callable from any thread, in a
    /// coroutine or not.
    #[track_caller]
    pub fn notify_one(&self) {
        loop {
            let mut locked = self.queue.lock();
            let round = locked.state().round;
            let Some(first) = locked.first() else {
                locked.state().has_permit = true;
                return;
            };
            // A waiter that `notify_waiters` on another thread is about to notify does not count.
            let is_overdue = first.round < round;
            first.by_one = !is_overdue;
            locked.wake_first();
            if !is_overdue {
                return;
            }
        }
    }

    /// Notifies all coroutines that wait at present, in order of arrival. Stores no permit. Callable
    /// from any thread, in a coroutine or not.
    #[track_caller]
    pub fn notify_waiters(&self) {
        let mut locked = self.queue.lock();
        locked.state().round += 1;
        self.queue.grant_all(locked, |locked| {
            let round = locked.state().round;
            locked.first().filter(|first| first.round < round)?;
            locked.grant_first()
        });
    }

    /// Handles a waiter that leaves.
    fn gone(&self, gone: Abandoned<'_, Ticket, State>) {
        match gone {
            Abandoned::Granted(Ticket { by_one: true, .. }) => self.notify_one(),
            Abandoned::Granted(_) | Abandoned::Left(_) => {}
        }
    }

    fn waiting(&self) -> WaitReason {
        WaitReason::Notify(std::ptr::from_ref(self).addr())
    }
}

impl fmt::Debug for Notify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notify").finish_non_exhaustive()
    }
}
