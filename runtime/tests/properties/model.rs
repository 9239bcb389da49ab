//! The behaviour of a program according to the rules, event by event.
//!
//! The model knows nothing of stacks, tickets or wait nodes. The thread's stack is the
//! interpreter's own stack: a coroutine can be left only while it is the innermost, so the state of
//! a suspended one is just its current step. Every wait is a condition that is rechecked whenever
//! the coroutine is resumed.
//!
//! This file: the stack of entered coroutines, and waking (C1 to C8, W1 to W4). `model/steps.rs`:
//! the outcome of each step. `waits.rs`: locks, queues, joins, scopes (S1, S2, S4). `rounds.rs`:
//! the loop (X1 to X3, X7). `end.rs`: the end (C9, W5).

mod end;
mod rounds;
mod state;
mod steps;
mod waits;

use std::collections::VecDeque;

use crate::program::{Event, Id, MOST, MUTEXES, Outcome, Program, QUEUES, Step, What, Who, name};
use rounds::{BottomHalf, Due, Timer};
use state::{Coroutine, Scope, State, Wait, Within};

/// The origin of a panic that propagates to the caller.
pub(crate) type Thrown = Who;

/// One `enter`, or one iteration of the loop, that has not returned.
struct Frame {
    /// `None`: the loop.
    running: Option<usize>,
    /// Coroutines woken by the running one: they run next, from here (W1).
    woken: VecDeque<usize>,
}

/// State of one executor of steps, until it is done.
#[derive(Clone, Default)]
struct Locals {
    held: [bool; MUTEXES],
    deferred: Vec<Step>,
}

#[derive(Default)]
struct Mutex {
    holder: Option<Who>,
    line: VecDeque<usize>,
}

pub(crate) struct Model<'p> {
    program: &'p Program,
    trace: Vec<Event>,
    cos: Vec<Coroutine>,
    frames: Vec<Frame>,
    /// Run in the next iteration, or in a nested one.
    ready: VecDeque<usize>,
    /// Taken up by an iteration that has not reached them.
    taken: VecDeque<usize>,
    /// Scheduled by `schedule` or from elsewhere, and not seen by the loop yet.
    calls: VecDeque<usize>,
    created: usize,
    locals: Vec<Locals>,
    mutexes: [Mutex; MUTEXES],
    queues: [VecDeque<usize>; QUEUES],
    bottom_halves: Vec<BottomHalf>,
    /// Bottom halves and one-shots to run in the next iteration, and those that an iteration has
    /// taken up.
    scheduled: VecDeque<Who>,
    taken_up: VecDeque<Who>,
    timers: Vec<Timer>,
    armed: Vec<Due>,
    due: VecDeque<Due>,
    armings: usize,
    shots: Vec<bool>,
    /// A panic unwinds the thread's own stack.
    unwinding: bool,
    ending: bool,
}

/// Predicts the trace of `program`.
pub(crate) fn predict(program: &Program) -> Vec<Event> {
    let mut model = Model {
        program,
        trace: Vec::new(),
        cos: program.coroutines.iter().map(|_| Coroutine::absent()).collect(),
        frames: Vec::new(),
        ready: VecDeque::new(),
        taken: VecDeque::new(),
        calls: VecDeque::new(),
        created: 0,
        locals: vec![Locals::default(); 5 * MOST],
        mutexes: Default::default(),
        queues: Default::default(),
        bottom_halves: program.bottom_halves.iter().map(|_| BottomHalf::default()).collect(),
        scheduled: VecDeque::new(),
        taken_up: VecDeque::new(),
        timers: program.timers.iter().map(|_| Timer::default()).collect(),
        armed: Vec::new(),
        due: VecDeque::new(),
        armings: 0,
        shots: vec![false; program.shots.len()],
        unwinding: false,
        ending: false,
    };
    let panicked = model.activate(Who::Main, &program.main);
    if let Err(thrown) = panicked {
        model.tell(Who::Main, What::Polled(Outcome::Panicked(thrown)));
    }
    model.drain();
    model.end();
    model.trace
}

fn co(index: usize) -> Who {
    Who::Co(Id::try_from(index).expect("there are few"))
}

impl Model<'_> {
    fn tell(&mut self, who: Who, what: What) {
        self.trace.push(Event(who, what));
    }

    fn locals(&mut self, who: Who) -> &mut Locals {
        let (kind, id) = match who {
            Who::Main => (0, 0),
            Who::Co(id) => (1, id),
            Who::Bh(id) => (2, id),
            Who::Timer(id) => (3, id),
            Who::Shot(id) => (4, id),
        };
        &mut self.locals[kind * MOST + usize::from(id)]
    }

    /// Returns the running coroutine; `None` in the loop and on the thread's own stack.
    fn running(&self) -> Option<usize> {
        self.frames.last()?.running
    }

    /// `thread > 'A' > loop > 'B'`
    fn chain(&self) -> String {
        let mut chain = "thread".to_string();
        for frame in &self.frames {
            match frame.running {
                Some(index) => chain += &format!(" > '{}'", label(index)),
                None => chain += " > loop",
            }
        }
        chain
    }

    /// C1: a new coroutine runs nothing yet.
    fn create(&mut self, index: usize) -> bool {
        if self.cos[index].state != State::Absent {
            return false;
        }
        self.created += 1;
        self.cos[index].serial = self.created;
        self.cos[index].state = State::Suspended;
        true
    }

    fn make_ready(&mut self, index: usize) {
        self.cos[index].state = State::Scheduled;
        self.ready.push_back(index);
    }

    /// Returns why the coroutine cannot be entered (C5).
    fn refusal(&self, index: usize) -> Option<String> {
        let name = label(index);
        match self.cos[index].state {
            State::Suspended if !self.cos[index].called => None,
            State::Suspended | State::Scheduled => Some(format!("cannot enter '{name}': already scheduled")),
            State::Entered => Some(format!("recursive entry of '{name}': {}", self.chain())),
            State::Finished | State::Ended | State::Absent => {
                Some("cannot enter a coroutine: it has ended".to_string())
            }
        }
    }

    /// C2, W1: the coroutine runs until it yields or ends, and then the ones that it woke, one
    /// after the other.
    fn enter(&mut self, first: usize) -> Result<(), Thrown> {
        self.frames.push(Frame { running: None, woken: VecDeque::new() });
        let mut next = Some(first);
        let mut passing = Ok(());
        while let Some(index) = next {
            self.top().running = Some(index);
            passing = self.resume(index);
            if passing.is_err() {
                break;
            }
            next = self.top().woken.pop_front();
        }
        // C8: a panic does not lose any woken coroutine.
        let frame = self.frames.pop().expect("pushed above");
        self.ready.extend(frame.woken);
        passing
    }

    fn top(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("within enter or a round")
    }

    fn resume(&mut self, index: usize) -> Result<(), Thrown> {
        let program = self.program;
        let this = &mut self.cos[index];
        this.state = State::Entered;
        this.called = false;
        if !this.begun {
            (this.begun, this.known) = (true, true);
            self.tell(co(index), What::Begins);
        }
        loop {
            let at = self.cos[index].at;
            let Some(step) = program.coroutines[index].get(at) else {
                self.tell(co(index), What::Ends);
                return self.finish(index, Ok(()));
            };
            match self.step(co(index), step) {
                Ok(Some(outcome)) => {
                    self.cos[index].at += 1;
                    self.tell(co(index), What::Did(at, outcome));
                }
                // C3: back to its latest enterer.
                Ok(None) => {
                    self.cos[index].state = State::Suspended;
                    // W3: woken meanwhile, it continues.
                    if std::mem::take(&mut self.cos[index].woken) {
                        self.make_ready(index);
                    }
                    return Ok(());
                }
                Err(thrown) => return self.finish(index, Err(thrown)),
            }
        }
    }

    /// C8: a spawned coroutine's panic is kept, any other propagates to the enterer.
    fn finish(&mut self, index: usize, outcome: Result<(), Thrown>) -> Result<(), Thrown> {
        self.drop_locals(co(index));
        self.tell(co(index), What::Dropped);
        if let Some(parent) = self.cos[index].parent {
            self.leave_scope(parent, outcome.err());
        }
        self.cos[index].state = State::Finished;
        if self.cos[index].spawned && !self.cos[index].detached {
            self.cos[index].outcome = Some(outcome);
            if let Some(joiner) = self.cos[index].joiner.take() {
                self.wake(joiner).expect("a running coroutine enters no other");
            }
            return Ok(());
        }
        self.top().running = None;
        self.cos[index].state = State::Ended;
        if self.cos[index].spawned {
            self.drop_result(index, outcome);
            return Ok(());
        }
        outcome
    }

    fn drop_result(&mut self, index: usize, outcome: Result<(), Thrown>) {
        if outcome.is_ok() {
            self.tell(co(index), What::ResultDropped);
        }
    }

    /// Drops the join handle.
    fn detach(&mut self, index: usize) {
        self.cos[index].detached = true;
        if self.cos[index].state == State::Finished {
            self.cos[index].state = State::Ended;
            let outcome = self.cos[index].outcome.take().expect("a finished one has an outcome");
            self.drop_result(index, outcome);
        }
    }

    /// W1, W3, W4. Propagates the panic of a coroutine that it enters.
    fn wake(&mut self, index: usize) -> Result<(), Thrown> {
        if self.ending {
            return Ok(());
        }
        match self.cos[index].state {
            State::Suspended if self.running().is_some() => {
                self.cos[index].state = State::Scheduled;
                self.top().woken.push_back(index);
            }
            // A destructor, while the loop's stack unwinds: it enters no coroutine.
            State::Suspended if self.unwinding => self.make_ready(index),
            State::Suspended => return self.enter(index),
            State::Entered => self.cos[index].woken = true,
            State::Scheduled | State::Finished | State::Ended | State::Absent => {}
        }
        Ok(())
    }

    /// S1: locks and queues do not enter coroutines.
    fn wake_later(&mut self, index: usize) {
        if self.cos[index].state == State::Suspended && self.running().is_none() && !self.ending {
            self.make_ready(index);
        } else {
            self.wake(index).expect("a running coroutine enters no other");
        }
    }

    /// Runs a list of steps that is not a coroutine's.
    fn activate(&mut self, who: Who, steps: &[Step]) -> Result<(), Thrown> {
        self.tell(who, What::Begins);
        let mut passing = Ok(());
        for (at, step) in steps.iter().enumerate() {
            match self.step(who, step) {
                Ok(outcome) => self.tell(who, What::Did(at, outcome.expect("only coroutines are suspended"))),
                Err(thrown) => {
                    passing = Err(thrown);
                    break;
                }
            }
        }
        if passing.is_ok() {
            self.tell(who, What::Ends);
        }
        let outer = std::mem::replace(&mut self.unwinding, passing.is_err());
        self.drop_locals(who);
        self.unwinding = outer;
        passing
    }

    /// Runs the deferred steps, last one first; then releases the held locks.
    fn drop_locals(&mut self, who: Who) {
        while let Some(step) = self.locals(who).deferred.pop() {
            let outcome = self.step(who, &step).expect("a deferred step does not panic");
            self.tell(who, What::Deferred(outcome.expect("a deferred step does not wait")));
        }
        for mutex in 0..MUTEXES {
            if std::mem::take(&mut self.locals(who).held[mutex]) {
                self.unlock(mutex);
            }
        }
    }
}

fn label(index: usize) -> &'static str {
    name(Id::try_from(index).expect("there are few"))
}
