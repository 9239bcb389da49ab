//! Generates a program from a seed. Each program uses only some kinds of steps, chosen anew: with
//! all kinds together, many faults would be masked.

use crate::program::{Id, MOST, MUTEXES, Program, QUEUES, Step, When};

/// SplitMix64: small, and any seed is a good one.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.draw() % count as u64).expect("less than count")
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// Kinds of steps with their weights.
const KINDS: [(Kind, usize); 15] = [
    (Kind::Begin, 2),
    (Kind::Enter, 4),
    (Kind::Wake, 4),
    (Kind::Schedule, 2),
    (Kind::Suspend, 5),
    (Kind::Join, 3),
    (Kind::Lock, 6),
    (Kind::Queue, 4),
    (Kind::Cancel, 4),
    (Kind::BottomHalf, 4),
    (Kind::Timer, 3),
    (Kind::Poll, 2),
    (Kind::Scope, 2),
    (Kind::Defer, 1),
    (Kind::Panic, 2),
];

#[derive(Clone, Copy)]
enum Kind {
    Begin,
    Enter,
    Wake,
    Schedule,
    Suspend,
    Join,
    Lock,
    Queue,
    Cancel,
    BottomHalf,
    Timer,
    Poll,
    Scope,
    Defer,
    Panic,
}

pub(crate) fn program(seed: u64) -> Program {
    let mut dice = Dice::new(seed);
    let mut menu = Vec::new();
    while menu.len() < 8 {
        for (kind, weight) in KINDS {
            if !dice.one_in(3) {
                menu.extend(std::iter::repeat_n(kind, weight));
            }
        }
    }
    let mut author = Author {
        menu,
        coroutines: 1 + dice.below(6),
        bottom_halves: dice.below(4),
        timers: dice.below(3),
        shots: dice.below(3),
        dice,
        may_wait: false,
        held: Vec::new(),
    };
    debug_assert!(author.coroutines <= MOST);
    author.program()
}

struct Author {
    dice: Dice,
    menu: Vec<Kind>,
    coroutines: usize,
    bottom_halves: usize,
    timers: usize,
    shots: usize,
    /// The list being generated is a coroutine's.
    may_wait: bool,
    /// Locks that it holds, if all its steps succeed.
    held: Vec<Id>,
}

impl Author {
    fn program(&mut self) -> Program {
        let mut main = Vec::new();
        for id in 0..self.coroutines {
            let id = Id::try_from(id).expect("there are few");
            match self.dice.below(4) {
                0 => {}
                1 => main.push(Step::Create(id)),
                _ => main.push(Step::Spawn(id)),
            }
        }
        main.extend(self.list(8));
        let (coroutines, bottom_halves, timers, shots) = (self.coroutines, self.bottom_halves, self.timers, self.shots);
        Program {
            main,
            bottom_halves: (0..bottom_halves).map(|_| self.runs()).collect(),
            timers: (0..timers).map(|_| self.runs()).collect(),
            shots: (0..shots).map(|_| self.list(4)).collect(),
            coroutines: {
                self.may_wait = true;
                (0..coroutines).map(|_| self.list(9)).collect()
            },
        }
    }

    fn runs(&mut self) -> Vec<Vec<Step>> {
        (0..=self.dice.below(3)).map(|_| self.list(4)).collect()
    }

    fn list(&mut self, most: usize) -> Vec<Step> {
        let len = self.dice.below(most + 1);
        self.held.clear();
        let mut steps = Vec::new();
        while steps.len() < len {
            self.write(&mut steps);
        }
        steps
    }

    fn of(&mut self, count: usize) -> Id {
        Id::try_from(self.dice.below(count.max(1))).expect("there are few")
    }

    /// Adds a step, or a few that belong together.
    fn write(&mut self, steps: &mut Vec<Step>) {
        let kind = self.menu[self.dice.below(self.menu.len())];
        let step = self.step(kind, steps);
        // Outside a coroutine it is an error; a few of those are enough.
        if waits(&step) && !self.may_wait && !self.dice.one_in(8) {
            return;
        }
        match step {
            Step::Lock(lock) | Step::TryLock(lock) | Step::LockCancellable(lock) => self.held.push(lock),
            Step::Unlock(lock) => self.held.retain(|&held| held != lock),
            _ => {}
        }
        let takes = matches!(step, Step::Lock(_) | Step::TryLock(_) | Step::LockCancellable(_));
        steps.push(match self.dice.below(12) {
            0 if waits(&step) => Step::Shield(Box::new(step)),
            1 if waits(&step) => Step::Timeout(Box::new(step)),
            _ => step,
        });
        // Lets other coroutines come to wait for it.
        if takes && self.may_wait && self.dice.one_in(2) {
            steps.push(self.pick(&[Step::Yield, Step::Yield, Step::Suspend, Step::Poll]));
        }
    }

    fn step(&mut self, kind: Kind, before: &mut Vec<Step>) -> Step {
        let co = self.of(self.coroutines);
        let queue = self.of(QUEUES);
        match kind {
            Kind::Begin => self.pick(&[Step::Create(co), Step::Spawn(co), Step::Spawn(co)]),
            Kind::Enter => self.pick(&[
                Step::Enter(co),
                Step::Enter(co),
                Step::EnterThrough(co),
                Step::EnterUnlessEntered(co),
                Step::Look(co),
            ]),
            Kind::Wake => Step::Wake(co),
            Kind::Schedule => self.pick(&[Step::Schedule(co), Step::Schedule(co), Step::WakeElsewhere(co)]),
            Kind::Suspend => self.pick(&[Step::Suspend, Step::Yield]),
            Kind::Join => self.pick(&[Step::Join(co), Step::Join(co), Step::DropHandle(co)]),
            Kind::Lock => match self.held.last() {
                Some(&held) if self.dice.one_in(2) => Step::Unlock(held),
                _ => {
                    let lock = self.of(MUTEXES);
                    self.pick(&[
                        Step::Lock(lock),
                        Step::Lock(lock),
                        Step::LockCancellable(lock),
                        Step::LockCancellable(lock),
                        Step::TryLock(lock),
                        Step::Unlock(lock),
                    ])
                }
            },
            Kind::Queue => {
                let lock = self.held.last().copied().unwrap_or_else(|| self.of(MUTEXES));
                let step = self.pick(&[
                    Step::Wait(queue, lock),
                    Step::Wait(queue, lock),
                    Step::WaitCancellable(queue, lock),
                    Step::WakeOne(queue),
                    Step::WakeOne(queue),
                    Step::WakeAll(queue),
                ]);
                if waits(&step) && self.may_wait && !self.held.contains(&lock) {
                    before.push(Step::Lock(lock));
                    self.held.push(lock);
                }
                step
            }
            Kind::Cancel => self.pick(&[
                Step::Cancel(co),
                Step::Cancel(co),
                Step::CheckCancelled,
                Step::SleepForEver,
                Step::SleepForEver,
                Step::SleepNot,
            ]),
            Kind::BottomHalf => {
                let (bh, shot) = (self.of(self.bottom_halves), self.of(self.shots));
                self.pick(&[
                    Step::BhSchedule(bh),
                    Step::BhSchedule(bh),
                    Step::BhSchedule(bh),
                    Step::BhIdle(bh),
                    Step::BhCancel(bh),
                    Step::BhDrop(bh),
                    Step::Shoot(shot),
                ])
            }
            Kind::Timer => {
                let (timer, past) = (self.of(self.timers), self.of(8));
                self.pick(&[
                    Step::Arm(timer, When::Past(past)),
                    Step::Arm(timer, When::Past(past)),
                    Step::Arm(timer, When::Past(past)),
                    Step::Arm(timer, When::Never),
                    Step::Disarm(timer),
                    Step::TimerDrop(timer),
                ])
            }
            Kind::Poll => self.pick(&[Step::Poll, Step::Poll, Step::PollKicked]),
            Kind::Scope => {
                let children = (0..1 + self.dice.below(3)).map(|_| self.of(self.coroutines)).collect();
                Step::Scope(children, self.dice.one_in(5))
            }
            Kind::Defer => {
                let (bh, lock) = (self.of(self.bottom_halves), self.of(MUTEXES));
                Step::Defer(Box::new(self.pick(&[
                    Step::Wake(co),
                    Step::Wake(co),
                    Step::WakeOne(queue),
                    Step::WakeAll(queue),
                    Step::Probe(lock),
                    Step::BhSchedule(bh),
                    Step::Spawn(co),
                    Step::Cancel(co),
                ])))
            }
            Kind::Panic => Step::Panic,
        }
    }

    fn pick(&mut self, steps: &[Step]) -> Step {
        steps[self.dice.below(steps.len())].clone()
    }
}

/// Returns whether the step may suspend a coroutine, or end early if the coroutine was cancelled.
fn waits(step: &Step) -> bool {
    matches!(
        step,
        Step::Suspend
            | Step::Yield
            | Step::SleepNot
            | Step::SleepForEver
            | Step::CheckCancelled
            | Step::Lock(_)
            | Step::LockCancellable(_)
            | Step::Wait(..)
            | Step::WaitCancellable(..)
            | Step::Join(_)
            | Step::Scope(..)
    )
}
