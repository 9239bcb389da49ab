//! The engine's guards against its historic failures, as a type parameter.
//!
//! [`Current`] is what everybody runs on, and the only policy defined here. A test that wants to
//! see a historic bug defines its own, with one guard out, and runs the same engine on it: so it is
//! the production code that fails, a user's build cannot contain the failure, and the guards cost
//! nothing.
//!
//! | guard | without it |
//! |---|---|
//! | [`NOTIFIER`](Policy::NOTIFIER) | the loop sleeps while a completion is there |
//! | [`ON_COMPLETION`](Policy::ON_COMPLETION) | a coroutine is entered on top of itself (H1, H2) |
//! | [`CURSOR`](Policy::CURSOR) | a nested poll waits for what the outer reap holds (H4) |
//! | [`COUNTS`](Policy::COUNTS) | a nested poll finds the queue full that has room |
//! | [`REAP_LOCKS`](Policy::REAP_LOCKS) | two threads take the same completion (H3) |
//! | [`AFTER_REAP`](Policy::AFTER_REAP) | recursion without end (H10), or a follow-up that never goes (H11) |
//! | [`NOT_TAKEN`](Policy::NOT_TAKEN) | a wedge (H5, H6), or a request lost |
//! | [`UNPLUG_COUNTS`](Policy::UNPLUG_COUNTS) | requests wait for a plug that is gone (H7) |
//! | [`ON_CANCEL`](Policy::ON_CANCEL) | the kernel writes what it no longer has (H12) |
//! | [`ON_SHORT`](Policy::ON_SHORT) | a part of a file is taken for all of it (H11) |

#![allow(unsafe_code)]

/// What ends the loop's sleep (rule E1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notifier {
    /// A completion, among other things.
    Wakes,
    /// Other things alone. Wrong: there may be none to come.
    Lost,
}

/// What a completion does to the coroutine whose request it is (rule E6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCompletion {
    /// Wakes it, unless it is entered: then it will find its result by itself.
    WakeUnlessEntered,
    /// Enters it at once, unless it is the coroutine that runs. Wrong: it may be entered beneath
    /// that one (rule H2).
    EnterUnlessCurrent,
    /// Enters it at once. Wrong: it may be the one that submits, and reaps (rule H1).
    Enter,
}

/// Where a reap keeps the completions that it has not come to (rule E5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// On the ring: a nested reap goes on there.
    Shared,
    /// In a batch of its own. Wrong: a nested poll may wait for ever for what the batch holds (rule
    /// H4).
    Private,
}

/// When a reap counts a request out of those in flight (rule E5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Before its coroutine runs.
    BeforeWaking,
    /// When that one has yielded or ended. Wrong: what it submits, and polls for, finds the queue
    /// full that has room.
    AfterWaking,
}

/// Who submits what those have queued whom a reap has woken (rule E8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReap {
    /// The loop, before its round is over.
    LoopSubmits,
    /// The reap. Wrong: a submit reaps, which submits, which reaps, without end (rule H10).
    ReapSubmits,
    /// Whoever reaps the next completion. Wrong: there may be none to come (rule H11).
    NobodySubmits,
}

/// What becomes of requests that the kernel did not take (rule E2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// An error fails the first one alone, and the rest is tried again. "Try again", and what a
    /// call did not take, waits for a completion; for the loop's next round, if none is to come.
    StayQueued,
    /// After an error the rest waits for a completion. Wrong: there may be none to come (rule H5).
    StuckAfterError,
    /// After "try again" all wait for a completion. Wrong: there may be none to come (rule H6).
    StuckAfterAgain,
    /// What a call did not take is gone from the queue. Wrong: its coroutines wait for ever.
    TailForgotten,
}

/// When a plug that goes is counted down (rule E3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnplugCounts {
    /// Always.
    Always,
    /// In one branch: unless the queue is full, and has to be submitted anyway. Wrong: later
    /// requests wait for a plug that is gone (rule H7).
    UnlessFull,
}

/// When a request that is cancelled in flight is over (rule E11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCancel {
    /// When it has completed.
    Waits,
    /// At once. Wrong: the kernel still has its memory (rule H12).
    ReturnsAtOnce,
}

/// What a read is that brings less than was asked for (rule E10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnShort {
    /// A part: the rest is asked for.
    AsksAgain,
    /// The end of the file. Wrong: it may be a signal, a full ring, or a limit of the device (rule
    /// H11).
    IsTheEnd,
}

/// Which guards the engine has. All constants: the compiler leaves out what is not chosen.
///
/// # Safety
///
/// Two of them are what soundness rests on; who takes them out answers for that.
///
/// - `REAP_LOCKS` false: two threads may complete the same request, and a buffer come back while
///   the kernel has it. The test that asks for it must keep the threads in step.
/// - `ON_CANCEL` other than [`OnCancel::Waits`]: the kernel may read and write a request's memory
///   after [`transfer`](crate::Engine::transfer) has returned. The test that asks for it must not
///   cancel a request but one whose memory is nobody's, never freed, and looked at through raw
///   pointers.
pub unsafe trait Policy: Send + Sync + 'static {
    /// What ends a sleep.
    const NOTIFIER: Notifier = Notifier::Wakes;
    /// What a completion does.
    const ON_COMPLETION: OnCompletion = OnCompletion::WakeUnlessEntered;
    /// Where completions wait that a reap has not come to.
    const CURSOR: Cursor = Cursor::Shared;
    /// When a completion counts.
    const COUNTS: Counts = Counts::BeforeWaking;
    /// Whether reaping from submit takes the context's lock (rule E9). Without it another thread
    /// may reap the same completions (rule H3).
    const REAP_LOCKS: bool = true;
    /// Who submits what a reap has brought.
    const AFTER_REAP: AfterReap = AfterReap::LoopSubmits;
    /// What becomes of requests that the kernel did not take.
    const NOT_TAKEN: NotTaken = NotTaken::StayQueued;
    /// When a plug that goes is counted.
    const UNPLUG_COUNTS: UnplugCounts = UnplugCounts::Always;
    /// When a cancelled request is over.
    const ON_CANCEL: OnCancel = OnCancel::Waits;
    /// What a short read is.
    const ON_SHORT: OnShort = OnShort::AsksAgain;
}

/// Whether requests may stay queued with nothing in flight that could wake them.
pub(crate) const fn gets_stuck<P: Policy>() -> bool {
    matches!(P::AFTER_REAP, AfterReap::NobodySubmits)
        || matches!(P::NOT_TAKEN, NotTaken::StuckAfterError | NotTaken::StuckAfterAgain)
}

/// All guards in.
#[derive(Clone, Copy, Debug)]
pub struct Current;

// SAFETY: it reaps under the lock, and waits for what it has cancelled.
unsafe impl Policy for Current {}
