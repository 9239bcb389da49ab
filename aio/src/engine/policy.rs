//! The engine's guards against historic bugs, as a type parameter.
//!
//! [`Current`] is used everywhere and is the only policy defined here. A test that reproduces a
//! historic bug defines its own policy without one guard and runs the same engine on it. So the
//! production code itself fails in the test, a user's build cannot contain the bug, and the guards
//! cost nothing.
//!
//! | guard | without it |
//! |---|---|
//! | [`NOTIFIER`](Policy::NOTIFIER) | the loop sleeps although a completion is available |
//! | [`ON_COMPLETION`](Policy::ON_COMPLETION) | a coroutine is entered on top of itself |
//! | [`CURSOR`](Policy::CURSOR) | a nested poll waits for completions held by the outer reap |
//! | [`COUNTS`](Policy::COUNTS) | a nested poll sees a full queue that has room |
//! | [`REAP_LOCKS`](Policy::REAP_LOCKS) | two threads take the same completion |
//! | [`AFTER_REAP`](Policy::AFTER_REAP) | unbounded recursion, or a follow-up that is never submitted |
//! | [`NOT_TAKEN`](Policy::NOT_TAKEN) | a wedged queue, or a lost request |
//! | [`UNPLUG_COUNTS`](Policy::UNPLUG_COUNTS) | requests wait for a plug that is gone |
//! | [`ON_CANCEL`](Policy::ON_CANCEL) | the kernel writes to memory that it no longer owns |
//! | [`ON_SHORT`](Policy::ON_SHORT) | part of a file is taken for all of it |

// The rules behind the guards: NOTIFIER E1; ON_COMPLETION E6, H1, H2; CURSOR E5, H4; COUNTS E5;
// REAP_LOCKS E9, H3; AFTER_REAP E8, H10, H11; NOT_TAKEN E2, H5, H6; UNPLUG_COUNTS E3, H7;
// ON_CANCEL E11, H12; ON_SHORT E10, H11.

#![allow(unsafe_code)]

/// Which events end the loop's sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notifier {
    /// Completions, among others.
    Wakes,
    /// Only other events. Wrong: there may be none.
    Lost,
}

/// How a completion resumes the coroutine that made the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCompletion {
    /// Wakes it, unless it is entered: it then finds its result by itself.
    WakeUnlessEntered,
    /// Enters it immediately, unless it is the running coroutine. Wrong: it may be entered further
    /// down the stack.
    EnterUnlessCurrent,
    /// Enters it immediately. Wrong: it may be the coroutine that submits and reaps.
    Enter,
}

/// Where a reap keeps completions that it has not processed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// On the ring: a nested reap continues there.
    Shared,
    /// In a private batch. Wrong: a nested poll may wait forever for a completion in the batch.
    Private,
}

/// When a reap decrements the in-flight count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Before the coroutine runs.
    BeforeWaking,
    /// After the coroutine has yielded or ended. Wrong: if it submits and polls, it sees a full
    /// queue that has room.
    AfterWaking,
}

/// Which code submits the requests queued by coroutines that a reap has woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReap {
    /// The loop, before the iteration ends.
    LoopSubmits,
    /// The reap. Wrong: submit reaps, which submits, which reaps, without bound.
    ReapSubmits,
    /// The reap of the next completion. Wrong: there may be none.
    NobodySubmits,
}

/// Handling of requests that the backend did not accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// An error fails only the first request, and the rest is retried. After EAGAIN or a partial
    /// submit the remaining requests wait for a completion, or for the loop's next iteration if
    /// nothing is in flight.
    StayQueued,
    /// After an error the rest waits for a completion. Wrong: there may be none.
    StuckAfterError,
    /// After EAGAIN all requests wait for a completion. Wrong: there may be none.
    StuckAfterAgain,
    /// After a partial submit the remaining requests are dropped. Wrong: their coroutines wait
    /// forever.
    TailForgotten,
}

/// When dropping a plug decrements the plug depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnplugCounts {
    /// Always.
    Always,
    /// Only if the queue is not full, since a full queue is submitted anyway. Wrong: later requests
    /// wait for a plug that is gone.
    UnlessFull,
}

/// When a request cancelled in flight ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCancel {
    /// When its completion is reaped.
    Waits,
    /// Immediately. Wrong: the kernel still uses its memory.
    ReturnsAtOnce,
}

/// Interpretation of a short read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShort {
    /// A partial read: request the rest.
    AsksAgain,
    /// The end of the file. Wrong: the cause may be a signal, a full ring, or a device limit.
    IsTheEnd,
}

/// The engine's guards. All are constants: the compiler removes the branches not chosen.
///
/// # Safety
///
/// Soundness depends on two of the guards; an implementation that removes one must ensure:
///
/// - `REAP_LOCKS` false: two threads may complete the same request, and its buffer may return to
///   its owner while the kernel uses it. The test must synchronise the threads.
/// - `ON_CANCEL` other than [`OnCancel::Waits`]: the kernel may read and write a request's memory
///   after [`transfer`](crate::Engine::transfer) has returned. The test must cancel only requests
///   whose memory has no owner, is never freed, and is accessed only through raw pointers.
pub unsafe trait Policy: Send + Sync + 'static {
    /// Which events end a sleep.
    const NOTIFIER: Notifier = Notifier::Wakes;
    /// How a completion resumes its coroutine.
    const ON_COMPLETION: OnCompletion = OnCompletion::WakeUnlessEntered;
    /// Where a reap keeps unprocessed completions.
    const CURSOR: Cursor = Cursor::Shared;
    /// When a reap decrements the in-flight count.
    const COUNTS: Counts = Counts::BeforeWaking;
    /// Whether reaping from submit takes the context's lock. Without it another thread may reap the
    /// same completions.
    const REAP_LOCKS: bool = true;
    /// Which code submits requests queued during a reap.
    const AFTER_REAP: AfterReap = AfterReap::LoopSubmits;
    /// Handling of requests that the backend did not accept.
    const NOT_TAKEN: NotTaken = NotTaken::StayQueued;
    /// When dropping a plug decrements the plug depth.
    const UNPLUG_COUNTS: UnplugCounts = UnplugCounts::Always;
    /// When a cancelled request ends.
    const ON_CANCEL: OnCancel = OnCancel::Waits;
    /// Interpretation of a short read.
    const ON_SHORT: OnShort = OnShort::AsksAgain;
}

/// Whether requests may stay queued with nothing in flight to trigger the next submit.
pub(crate) const fn gets_stuck<P: Policy>() -> bool {
    matches!(P::AFTER_REAP, AfterReap::NobodySubmits)
        || matches!(P::NOT_TAKEN, NotTaken::StuckAfterError | NotTaken::StuckAfterAgain)
}

/// All guards active.
#[derive(Clone, Copy, Debug)]
pub struct Current;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Policy for Current {}
