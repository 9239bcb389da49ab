//! The state of a coroutine in the model.

use super::Thrown;

#[derive(Clone, Copy, PartialEq)]
pub(super) enum State {
    /// Not created.
    Absent,
    Suspended,
    /// On one of the model's lists.
    Scheduled,
    Entered,
    /// The result waits for the join handle.
    Finished,
    Ended,
}

/// Where in its step a suspended coroutine is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Wait {
    /// It has yielded after a timeout that is over.
    TimedOut,
    /// At the beginning of the step.
    None,
    /// It continues whenever it is resumed.
    Resumed,
    SleepsForEver,
    InLine(usize),
    InQueue(usize),
    Joins(usize),
    InScope,
}

/// The construct around a step.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Within {
    Nothing,
    Shield,
    Timeout,
}

#[derive(Default)]
pub(super) struct Scope {
    pub(super) members: Vec<usize>,
    pub(super) left: usize,
    pub(super) cancelled: bool,
    /// Its own body's panic, or else the first one of an unjoined child.
    pub(super) panic: Option<Thrown>,
}

pub(super) struct Coroutine {
    pub(super) state: State,
    /// Its number in the order of creation.
    pub(super) serial: usize,
    /// Others have a handle to enter and wake it.
    pub(super) known: bool,
    /// It has a join handle, which keeps its panic.
    pub(super) spawned: bool,
    pub(super) detached: bool,
    /// The program still has the join handle.
    pub(super) handle: bool,
    pub(super) joiner: Option<usize>,
    pub(super) outcome: Option<Result<(), Thrown>>,
    pub(super) parent: Option<usize>,
    pub(super) scope: Scope,
    pub(super) begun: bool,
    pub(super) at: usize,
    pub(super) wait: Wait,
    pub(super) within: Within,
    /// A timeout around its step cut a wait short.
    pub(super) timed_out: bool,
    /// Woken while entered.
    pub(super) woken: bool,
    /// Scheduled by `schedule` or from elsewhere, and has not run since.
    pub(super) called: bool,
    pub(super) cancelled: bool,
}

impl Coroutine {
    pub(super) fn absent() -> Coroutine {
        Coroutine {
            state: State::Absent,
            serial: 0,
            known: false,
            spawned: false,
            detached: false,
            handle: false,
            joiner: None,
            outcome: None,
            parent: None,
            scope: Scope::default(),
            begun: false,
            at: 0,
            wait: Wait::None,
            within: Within::Nothing,
            timed_out: false,
            woken: false,
            called: false,
            cancelled: false,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Finished | State::Ended)
    }
}
