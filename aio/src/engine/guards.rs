//! The engine's guards against historic bugs, as a type parameter.
//!
//! [`AllGuards`] is the only implementation in the library. A test that reproduces a historic bug
//! implements [`Guards`] with one guard disabled, and runs the same engine with it. So the
//! production code itself fails in the test, a user's build cannot contain the bug, and the guards
//! cost nothing.
//!
//! | guard | without it |
//! |---|---|
//! | [`NOTIFIER`](Guards::NOTIFIER) | the loop sleeps although a completion is available |
//! | [`WAKE_GUARD`](Guards::WAKE_GUARD) | a coroutine is entered on top of itself |
//! | [`RING_CURSOR`](Guards::RING_CURSOR) | a nested poll waits for completions held by the outer reap |
//! | [`IN_FLIGHT_DECREMENT`](Guards::IN_FLIGHT_DECREMENT) | a nested poll sees a full queue that has room |
//! | [`REAP_LOCKS`](Guards::REAP_LOCKS) | two threads take the same completion |
//! | [`AFTER_REAP`](Guards::AFTER_REAP) | unbounded recursion, or a follow-up that is never submitted |
//! | [`PARTIAL_SUBMIT`](Guards::PARTIAL_SUBMIT) | a queue that is never submitted, or a lost request |
//! | [`UNPLUG_DECREMENT`](Guards::UNPLUG_DECREMENT) | requests wait for a plug that is gone |
//! | [`ON_CANCEL`](Guards::ON_CANCEL) | the kernel writes to memory that it no longer owns |
//! | [`SHORT_READ`](Guards::SHORT_READ) | a part of a file is taken for the whole |

// The rules behind the guards: NOTIFIER E1; WAKE_GUARD E6, H1, H2; RING_CURSOR E5, H4;
// IN_FLIGHT_DECREMENT E5; REAP_LOCKS E9, H3; AFTER_REAP E8, H10, H11; PARTIAL_SUBMIT E2, H5, H6;
// UNPLUG_DECREMENT E3, H7; ON_CANCEL E11, H12; SHORT_READ E10, H11.

#![allow(unsafe_code)]

/// Which events end the loop's sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notifier {
    /// Completions and other events.
    Wakes,
    /// Only other events. Wrong: there may be no other event.
    Lost,
}

/// How a completion resumes the coroutine that made the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeGuard {
    /// Wakes the coroutine, unless it is entered: an entered coroutine finds its result by itself.
    WakeUnlessEntered,
    /// Enters the coroutine immediately, unless it is the running one. Wrong: it may be entered
    /// further down the stack.
    EnterUnlessCurrent,
    /// Enters the coroutine immediately. Wrong: it may be the running one, which submits and reaps.
    None,
}

/// Where a reap keeps completions that it has not processed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingCursor {
    /// On the ring: a nested reap continues there.
    Shared,
    /// In a private batch. Wrong: a nested poll may wait forever for a completion in the batch.
    PerReap,
}

/// When a reap decrements the in-flight count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlightDecrement {
    /// Before the coroutine runs.
    BeforeWaking,
    /// After the coroutine has yielded or ended. Wrong: a coroutine that submits and polls sees a
    /// full queue, although the queue has room.
    AfterWaking,
}

/// Which code submits the requests queued by coroutines that a reap has woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReap {
    /// The loop, before the iteration ends.
    LoopSubmits,
    /// The reap. Wrong: submit reaps, which submits, which reaps, without bound.
    ReapSubmits,
    /// The reap of the next completion. Wrong: there may be no further completion.
    NobodySubmits,
}

/// Handling of requests that the backend did not accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartialSubmit {
    /// An error fails only the first request, and the rest is retried. After EAGAIN or a partial
    /// submit the remaining requests wait for a completion, or for the loop's next iteration if
    /// nothing is in flight.
    StayQueued,
    /// After an error the rest waits for a completion. Wrong: nothing may be in flight.
    WedgeOnError,
    /// After EAGAIN all requests wait for a completion. Wrong: nothing may be in flight.
    WedgeOnEagain,
    /// After a partial submit the remaining requests are dropped. Wrong: their coroutines wait
    /// forever.
    TailForgotten,
}

/// When dropping a plug decrements the plug depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnplugDecrement {
    /// Always.
    Always,
    /// Only if the queue is not full, since a full queue is submitted anyway. Wrong: later requests
    /// wait for a plug that is gone.
    OnlyWhenNotFull,
}

/// When a request cancelled in flight ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCancel {
    /// When its completion is reaped.
    Waits,
    /// Immediately. Wrong: the kernel still uses the request's memory.
    ReturnsAtOnce,
}

/// Interpretation of a short read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShortRead {
    /// A partial read: request the rest.
    AsksAgain,
    /// The end of the file. Wrong: the cause may be a signal, a full ring, or a device limit.
    TreatAsEof,
}

/// The engine's guards. All are constants: the compiler removes the branches not chosen.
///
/// # Safety
///
/// Two of the guards are needed for soundness. The risk without each of them, and what the test must
/// ensure instead:
///
/// - `REAP_LOCKS` false: two threads may complete the same request, and its buffer may return to
///   its owner while the kernel uses it. The test must synchronise the threads.
/// - `ON_CANCEL` other than [`OnCancel::Waits`]: the kernel may read and write a request's memory
///   after [`transfer`](crate::engine::Engine::transfer) has returned. The test must cancel only requests
///   whose memory has no owner, is never freed, and is accessed only through raw pointers.
pub unsafe trait Guards: Send + Sync + 'static {
    /// Which events end a sleep.
    const NOTIFIER: Notifier = Notifier::Wakes;
    /// How a completion resumes its coroutine.
    const WAKE_GUARD: WakeGuard = WakeGuard::WakeUnlessEntered;
    /// Where a reap keeps unprocessed completions.
    const RING_CURSOR: RingCursor = RingCursor::Shared;
    /// When a reap decrements the in-flight count.
    const IN_FLIGHT_DECREMENT: InFlightDecrement = InFlightDecrement::BeforeWaking;
    /// Whether reaping from submit takes the context's lock. Without it another thread may reap the
    /// same completions.
    const REAP_LOCKS: bool = true;
    /// Which code submits requests queued during a reap.
    const AFTER_REAP: AfterReap = AfterReap::LoopSubmits;
    /// Handling of requests that the backend did not accept.
    const PARTIAL_SUBMIT: PartialSubmit = PartialSubmit::StayQueued;
    /// When dropping a plug decrements the plug depth.
    const UNPLUG_DECREMENT: UnplugDecrement = UnplugDecrement::Always;
    /// When a cancelled request ends.
    const ON_CANCEL: OnCancel = OnCancel::Waits;
    /// Interpretation of a short read.
    const SHORT_READ: ShortRead = ShortRead::AsksAgain;
}

/// Whether requests may stay queued with nothing in flight to trigger the next submit.
pub(crate) const fn may_wedge<G: Guards>() -> bool {
    matches!(G::AFTER_REAP, AfterReap::NobodySubmits)
        || matches!(G::PARTIAL_SUBMIT, PartialSubmit::WedgeOnError | PartialSubmit::WedgeOnEagain)
}

/// Whether all guards of submit and reap are active.
pub(crate) const fn is_usual<G: Guards>() -> bool {
    matches!(G::WAKE_GUARD, WakeGuard::WakeUnlessEntered)
        && matches!(G::RING_CURSOR, RingCursor::Shared)
        && matches!(G::IN_FLIGHT_DECREMENT, InFlightDecrement::BeforeWaking)
        && matches!(G::AFTER_REAP, AfterReap::LoopSubmits)
        && matches!(G::PARTIAL_SUBMIT, PartialSubmit::StayQueued)
        && matches!(G::ON_CANCEL, OnCancel::Waits)
        && G::REAP_LOCKS
}

/// All guards active.
#[derive(Clone, Copy, Debug)]
pub struct AllGuards;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for AllGuards {}
