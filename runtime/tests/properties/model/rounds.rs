//! The loop: bottom halves in order of scheduling, timers in order of deadline, then ready
//! coroutines. Work that an iteration has taken up belongs to the context: a nested iteration
//! continues with it (X2).

use std::collections::VecDeque;

use crate::program::{Outcome, Step, What, When, Who};

use super::{Frame, Model, State, Thrown};

#[derive(Clone, Copy, Default, PartialEq)]
enum Plan {
    #[default]
    No,
    NextRound,
    /// In ten milliseconds, longer than any program takes.
    Idle,
}

#[derive(Default)]
pub(super) struct BottomHalf {
    plan: Plan,
    runs: bool,
    /// Number of runs so far.
    count: usize,
    deleted: bool,
}

#[derive(Default)]
pub(super) struct Timer {
    /// Armed while it ran: queued when it has returned.
    rearmed: Option<Due>,
    runs: bool,
    count: usize,
    deleted: bool,
}

/// One arming. Past times come before the present time; equal times are in order of arming.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    at: Time,
    arming: usize,
    what: Rings,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Time {
    Past(u8),
    Now,
    Never,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rings {
    Timer(u8),
    /// A timeout, which wakes its coroutine.
    Limit(usize),
}

impl Model<'_> {
    /// Polls on the thread's own stack until nothing is due.
    pub(super) fn drain(&mut self) {
        loop {
            let outcome = self.poll(false).map_or_else(Outcome::Panicked, Outcome::Said);
            let idle = outcome == Outcome::Said(false);
            self.tell(Who::Main, What::Polled(outcome));
            if idle {
                return;
            }
        }
    }

    /// X1. A kicked blocking poll does not sleep, but runs a second iteration.
    pub(super) fn poll(&mut self, kicked: bool) -> Result<bool, Thrown> {
        Ok(self.round()? || kicked && self.round()?)
    }

    fn round(&mut self) -> Result<bool, Thrown> {
        // Coroutines woken by coroutines further down the stack, which do not yield during this
        // iteration.
        for frame in self.frames.iter_mut().rev() {
            self.ready.append(&mut frame.woken);
        }
        self.frames.push(Frame { running: None, woken: VecDeque::new() });
        let progress = self.serve();
        self.frames.pop();
        progress
    }

    fn serve(&mut self) -> Result<bool, Thrown> {
        let mut progress = false;
        self.taken_up.append(&mut self.scheduled);
        while let Some(next) = self.taken_up.pop_front() {
            progress = true;
            match next {
                Who::Bh(id) => self.run_bottom_half(id)?,
                next => self.run_shot(next)?,
            }
        }
        progress |= self.run_timers()?;
        for index in std::mem::take(&mut self.calls) {
            // It may have run since.
            if self.cos[index].called && !self.cos[index].has_ended() {
                match self.cos[index].state {
                    State::Suspended => {
                        // Before coroutines that have yielded since.
                        self.cos[index].state = State::Scheduled;
                        self.taken.push_back(index);
                    }
                    State::Entered => self.cos[index].woken = true,
                    _ => {}
                }
            }
        }
        self.taken.append(&mut self.ready);
        while let Some(index) = self.taken.pop_front() {
            progress = true;
            self.enter(index)?;
        }
        Ok(progress)
    }

    /// X3.
    fn run_bottom_half(&mut self, id: u8) -> Result<(), Thrown> {
        let program = self.program;
        let index = usize::from(id);
        let this = &mut self.bottom_halves[index];
        (this.plan, this.runs) = (Plan::No, true);
        let steps = program.bottom_halves[index].get(this.count).map_or(&[][..], Vec::as_slice);
        this.count += 1;
        let ran = self.activate(Who::Bh(id), steps);
        let this = &mut self.bottom_halves[index];
        this.runs = false;
        if this.deleted {
            self.tell(Who::Bh(id), What::Dropped);
        } else if this.plan == Plan::NextRound {
            self.scheduled.push_back(Who::Bh(id));
        }
        ran
    }

    fn run_shot(&mut self, who: Who) -> Result<(), Thrown> {
        let program = self.program;
        let Who::Shot(id) = who else { unreachable!("only bottom halves are queued") };
        let ran = self.activate(who, &program.shots[usize::from(id)]);
        self.tell(who, What::Dropped);
        ran
    }

    fn run_timers(&mut self) -> Result<bool, Thrown> {
        self.armed.sort_unstable();
        let over = self.armed.partition_point(|due| due.at != Time::Never);
        self.due.extend(self.armed.drain(..over));
        let mut progress = false;
        while let Some(Due { what, .. }) = self.due.pop_front() {
            progress = true;
            match what {
                Rings::Limit(index) => self.wake(index)?,
                Rings::Timer(id) => self.run_timer(id)?,
            }
        }
        Ok(progress)
    }

    /// X7.
    fn run_timer(&mut self, id: u8) -> Result<(), Thrown> {
        let program = self.program;
        let index = usize::from(id);
        let this = &mut self.timers[index];
        this.runs = true;
        let steps = program.timers[index].get(this.count).map_or(&[][..], Vec::as_slice);
        this.count += 1;
        let ran = self.activate(Who::Timer(id), steps);
        let this = &mut self.timers[index];
        this.runs = false;
        let rearmed = this.rearmed.take();
        if this.deleted {
            self.tell(Who::Timer(id), What::Dropped);
        } else {
            self.armed.extend(rearmed);
        }
        ran
    }

    fn disarm(&mut self, what: Rings) {
        self.armed.retain(|due| due.what != what);
        self.due.retain(|due| due.what != what);
    }

    /// Begins a timeout.
    pub(super) fn arm_limit(&mut self, index: usize) {
        self.armings += 1;
        self.armed.push(Due { at: Time::Now, arming: self.armings, what: Rings::Limit(index) });
    }

    pub(super) fn disarm_limit(&mut self, index: usize) {
        self.disarm(Rings::Limit(index));
    }

    /// Executes steps on bottom halves and timers.
    pub(super) fn registration(&mut self, step: &Step) -> Result<Option<Outcome>, Thrown> {
        let there = match *step {
            Step::BhSchedule(id) | Step::BhIdle(id) | Step::BhCancel(id) | Step::BhDrop(id) => {
                self.bottom_halves.get(usize::from(id)).is_some_and(|this| !this.deleted)
            }
            Step::Arm(id, _) | Step::Disarm(id) | Step::TimerDrop(id) => {
                self.timers.get(usize::from(id)).is_some_and(|this| !this.deleted)
            }
            Step::Shoot(id) => self.shots.get(usize::from(id)).is_some_and(|shot| !shot),
            _ => unreachable!("another step"),
        };
        if !there {
            return Ok(Some(Outcome::Absent));
        }
        match *step {
            Step::Shoot(id) => {
                self.shots[usize::from(id)] = true;
                self.scheduled.push_back(Who::Shot(id));
            }
            Step::Arm(id, when) => self.arm(id, when),
            Step::Disarm(id) => {
                self.disarm(Rings::Timer(id));
                self.timers[usize::from(id)].rearmed = None;
            }
            Step::TimerDrop(id) => {
                self.disarm(Rings::Timer(id));
                let this = &mut self.timers[usize::from(id)];
                this.deleted = true;
                if !this.runs {
                    self.tell(Who::Timer(id), What::Dropped);
                }
            }
            _ => self.plan(step),
        }
        Ok(Some(Outcome::Done))
    }

    fn arm(&mut self, id: u8, when: When) {
        self.armings += 1;
        let at = match when {
            When::Past(which) => Time::Past(which),
            When::Never => Time::Never,
        };
        let due = Due { at, arming: self.armings, what: Rings::Timer(id) };
        self.disarm(due.what);
        match &mut self.timers[usize::from(id)] {
            this if this.runs => this.rearmed = Some(due),
            _ => self.armed.push(due),
        }
    }

    /// Changes the schedule of a bottom half.
    fn plan(&mut self, step: &Step) {
        let (Step::BhSchedule(id) | Step::BhIdle(id) | Step::BhCancel(id) | Step::BhDrop(id)) = *step else {
            unreachable!("another step")
        };
        let this = &mut self.bottom_halves[usize::from(id)];
        let before = this.plan;
        this.plan = match step {
            Step::BhSchedule(_) => Plan::NextRound,
            Step::BhIdle(_) if before == Plan::No => Plan::Idle,
            Step::BhIdle(_) => before,
            _ => Plan::No,
        };
        this.deleted |= matches!(step, Step::BhDrop(_));
        let (plan, runs, deleted) = (this.plan, this.runs, this.deleted);
        if plan == Plan::No {
            self.scheduled.retain(|&who| who != Who::Bh(id));
            self.taken_up.retain(|&who| who != Who::Bh(id));
        } else if plan == Plan::NextRound && before != Plan::NextRound && !runs {
            self.scheduled.push_back(Who::Bh(id));
        }
        if deleted && !runs {
            self.tell(Who::Bh(id), What::Dropped);
        }
    }
}
