//! A program: a few coroutines, bottom halves and timers, each with a list of steps, and a few
//! locks and queues. Any step may appear anywhere; its outcome where it does not fit is part of the
//! check.
//!
//! Plain data, generated from a seed by `generate.rs`, shrunk by `shrink.rs`, predicted by
//! `model.rs`, and run by `run.rs`.

use std::fmt;

pub(crate) type Id = u8;

pub(crate) const MUTEXES: usize = 2;
pub(crate) const QUEUES: usize = 2;
/// Maximum number of each kind.
pub(crate) const MOST: usize = 8;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Program {
    /// Steps on the thread's own stack, before it polls until nothing is due and ends the context.
    pub(crate) main: Vec<Step>,
    pub(crate) coroutines: Vec<Vec<Step>>,
    /// The steps of each one's first run, second run, and so on; later runs do nothing.
    pub(crate) bottom_halves: Vec<Vec<Vec<Step>>>,
    pub(crate) timers: Vec<Vec<Vec<Step>>>,
    /// The steps of each one-shot bottom half.
    pub(crate) shots: Vec<Vec<Step>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    Create(Id),
    Spawn(Id),
    DropHandle(Id),
    Join(Id),
    Enter(Id),
    /// As `Enter`, but the panic of the entered coroutine propagates.
    EnterThrough(Id),
    EnterUnlessEntered(Id),
    Wake(Id),
    /// By its waker, from another thread.
    WakeElsewhere(Id),
    Schedule(Id),
    Cancel(Id),
    /// Reads whether it is entered, and whether it has ended.
    Look(Id),
    Suspend,
    Yield,
    SleepNot,
    SleepForEver,
    CheckCancelled,
    Lock(Id),
    TryLock(Id),
    LockCancellable(Id),
    Unlock(Id),
    /// Reads whether a lock is free.
    Probe(Id),
    /// Waits in a queue, with a mutex that is held.
    Wait(Id, Id),
    WaitCancellable(Id, Id),
    WakeOne(Id),
    WakeAll(Id),
    BhSchedule(Id),
    BhIdle(Id),
    BhCancel(Id),
    BhDrop(Id),
    Shoot(Id),
    Arm(Id, When),
    Disarm(Id),
    TimerDrop(Id),
    Poll,
    /// `poll(true)` after a kick, so that it does not sleep.
    PollKicked,
    /// With these as children; its own body may then panic.
    Scope(Vec<Id>, bool),
    /// Runs when the locals of the executor are dropped.
    Defer(Box<Step>),
    Shield(Box<Step>),
    /// Within a timeout that expires immediately.
    Timeout(Box<Step>),
    Panic,
}

/// A past time, one of several; or a time that is never reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Past(u8),
    Never,
}

/// The executor or the subject of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Main,
    Co(Id),
    Bh(Id),
    Timer(Id),
    Shot(Id),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event(pub(crate) Who, pub(crate) What);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    Begins,
    /// The step at this index of its list is done, with this outcome.
    Did(usize, Outcome),
    Deferred(Outcome),
    /// It reached the end of its list.
    Ends,
    /// Its closure's captures are dropped.
    Dropped,
    ResultDropped,
    /// The thread's own stack polled, when its list was done.
    Polled(Outcome),
    /// A violation found without the model.
    Broken(&'static str),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Done,
    Said(bool),
    /// Whether it is entered, and whether it has ended.
    Seen(bool, bool),
    /// The coroutine does not exist yet or existed before, the lock is not held, or the handle is
    /// gone.
    Absent,
    /// It would block the thread.
    Unfit,
    /// An error, with its text.
    Refused(String),
    Cancelled,
    TimedOut,
    /// A panic, propagated or kept, with its origin.
    Panicked(Who),
    /// The library panicked, with this message.
    Fault(String),
}

pub(crate) fn name(coroutine: Id) -> &'static str {
    ["A", "B", "C", "D", "E", "F", "G", "H"][usize::from(coroutine)]
}

impl Step {
    /// Returns whether its outcome depends on how long idle bottom halves wait.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self, Step::BhIdle(_))
    }
}

impl Program {
    /// Returns all lists of steps.
    pub(crate) fn lists(&self) -> impl Iterator<Item = &Vec<Step>> {
        [&self.main]
            .into_iter()
            .chain(&self.coroutines)
            .chain(self.bottom_halves.iter().flatten())
            .chain(self.timers.iter().flatten())
            .chain(&self.shots)
    }

    /// As `lists`, mutable.
    pub(crate) fn lists_mut(&mut self) -> impl Iterator<Item = &mut Vec<Step>> {
        [&mut self.main]
            .into_iter()
            .chain(&mut self.coroutines)
            .chain(self.bottom_halves.iter_mut().flatten())
            .chain(self.timers.iter_mut().flatten())
            .chain(&mut self.shots)
    }

    pub(crate) fn uses_idle(&self) -> bool {
        self.lists().flatten().any(Step::is_idle)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Who::Main => f.write_str("main"),
            Who::Co(id) => f.write_str(name(id)),
            Who::Bh(id) => write!(f, "bottom half {id}"),
            Who::Timer(id) => write!(f, "timer {id}"),
            Who::Shot(id) => write!(f, "one-shot {id}"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.0, self.1)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, who: Who, steps: &[Step]| match steps {
            [] => Ok(()),
            _ => writeln!(f, "    {who}: {steps:?}"),
        };
        list(f, Who::Main, &self.main)?;
        for (id, steps) in (0..).zip(&self.coroutines) {
            list(f, Who::Co(id), steps)?;
        }
        for (id, runs) in (0..).zip(&self.bottom_halves) {
            runs.iter().try_for_each(|steps| list(f, Who::Bh(id), steps))?;
        }
        for (id, runs) in (0..).zip(&self.timers) {
            runs.iter().try_for_each(|steps| list(f, Who::Timer(id), steps))?;
        }
        for (id, steps) in (0..).zip(&self.shots) {
            list(f, Who::Shot(id), steps)?;
        }
        Ok(())
    }
}
