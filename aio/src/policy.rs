//! The engine's guards against its historic failures, as a type parameter.
//!
//! [`Current`] is what everybody runs on, and the only policy defined here. A test that wants to see a historic bug
//! defines its own, with one guard out, and runs the same engine on it: so it is the production code that fails, a
//! user's build cannot contain the failure, and the guards cost nothing.

#![allow(unsafe_code)]

/// What a completion does to the coroutine whose request it is (rule E6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCompletion {
    /// Wakes it, unless it is entered: then it will find its result by itself.
    WakeUnlessEntered,
    /// Enters it at once, unless it is the coroutine that runs. Wrong: it may be entered beneath that one (rule H2).
    EnterUnlessCurrent,
    /// Enters it at once. Wrong: it may be the one that submits, and reaps (rule H1).
    Enter,
}

/// Where a reap keeps the completions that it has not come to (rule E5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// On the ring: a nested reap goes on there.
    Shared,
    /// In a batch of its own. Wrong: a nested poll may wait for ever for what the batch holds (rule H4).
    Private,
}

/// Which guards the engine has. All constants: the compiler leaves out what is not chosen.
///
/// # Safety
///
/// With `REAP_LOCKS` false, two threads may complete the same request, and a buffer come back while the kernel has it: the
/// test that asks for it must keep the threads in step.
pub unsafe trait Policy: Send + Sync + 'static {
    /// What a completion does.
    const ON_COMPLETION: OnCompletion = OnCompletion::WakeUnlessEntered;
    /// Where completions wait that a reap has not come to.
    const CURSOR: Cursor = Cursor::Shared;
    /// Whether reaping from submit takes the context's lock (rule E9). Without it another thread may reap the same
    /// completions (rule H3).
    const REAP_LOCKS: bool = true;
}

/// All guards in.
#[derive(Clone, Copy, Debug)]
pub struct Current;

// SAFETY: it reaps under the lock.
unsafe impl Policy for Current {}
