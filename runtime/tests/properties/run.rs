//! Runs the program on the library itself.
//!
//! Values captured by a closure record an event when they are dropped. Each lock's value is its owner, so that two
//! owners are detected without the model; leftovers are checked at the end, too.

mod outcome;
mod steps;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Instant;

use coralio_runtime::{AioContext, BottomHalf, CoMutex, CoMutexGuard, CoQueue, Coroutine, JoinHandle, Timer};

use crate::program::{Event, Id, MUTEXES, Outcome, Program, QUEUES, Step, What, Who};
use outcome::{caught, outcome_of};

thread_local! {
    /// Callbacks of the loop access it here: they must be `Send`, and it is not.
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

struct World {
    program: Program,
    context: AioContext,
    /// Timers armed for the past are armed for just before this.
    start: Instant,
    trace: RefCell<Vec<Event>>,
    /// A run with more events than this does not terminate.
    most: usize,
    /// No rule specifies the order in which a context drops callbacks at its end.
    closing: Cell<bool>,
    closures: Cell<i32>,
    payloads: Cell<i32>,
    begun: Vec<Cell<bool>>,
    shot: Vec<Cell<bool>>,
    coroutines: RefCell<Vec<Option<Coroutine>>>,
    handles: RefCell<Vec<Option<JoinHandle<Mark>>>>,
    mutexes: [CoMutex<Option<Who>>; MUTEXES],
    queues: [CoQueue; QUEUES],
    bottom_halves: RefCell<Vec<Option<BottomHalf>>>,
    timers: RefCell<Vec<Option<Timer>>>,
}

fn world() -> Rc<World> {
    WORLD.with_borrow(|world| Rc::clone(world.as_ref().expect("a program runs")))
}

/// Returns whether this thread runs a program: panics then belong to it.
pub(crate) fn is_running() -> bool {
    WORLD.with_borrow(Option::is_some)
}

/// Logs when it is dropped.
struct Mark(Who, What);

impl Mark {
    fn new(who: Who, what: What) -> Mark {
        let world = world();
        world.closures.set(world.closures.get() + 1);
        Mark(who, what)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // If leaked, it may be dropped after the end, and was counted as leaked.
        let Some(world) = WORLD.with_borrow(Option::clone) else { return };
        world.closures.set(world.closures.get() - 1);
        if !(world.closing.get() && matches!(self.0, Who::Bh(_) | Who::Timer(_) | Who::Shot(_))) {
            world.trace.borrow_mut().push(Event(self.0, self.1.clone()));
        }
    }
}

/// The payload of the program's own panics.
struct Thrown(Who);

impl Thrown {
    fn go(who: Who) -> ! {
        let world = world();
        world.payloads.set(world.payloads.get() + 1);
        resume_unwind(Box::new(Thrown(who)))
    }
}

impl Drop for Thrown {
    fn drop(&mut self) {
        if let Some(world) = WORLD.with_borrow(Option::clone) {
            world.payloads.set(world.payloads.get() - 1);
        }
    }
}

/// A lock held by `Who`. `None`: released.
struct Held<'w>(Option<CoMutexGuard<'w, Option<Who>>>);

impl<'w> Held<'w> {
    fn new(mut guard: CoMutexGuard<'w, Option<Who>>, who: Who) -> Held<'w> {
        if guard.replace(who).is_some() {
            world().tell(who, What::Broken("two have one lock"));
        }
        Held(Some(guard))
    }

    /// Releases the lock for a wait in a queue.
    fn give(mut self) -> CoMutexGuard<'w, Option<Who>> {
        let mut guard = self.0.take().expect("given away once");
        *guard = None;
        guard
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(guard) = &mut self.0 {
            **guard = None;
        }
    }
}

/// State of one executor of steps. Dropped top to bottom.
struct Locals<'w> {
    deferred: Deferred<'w>,
    held: [Option<Held<'w>>; MUTEXES],
}

struct Deferred<'w>(&'w World, Who, Vec<Step>);

impl Drop for Deferred<'_> {
    fn drop(&mut self) {
        let &mut Deferred(world, who, ref mut steps) = self;
        while let Some(step) = steps.pop() {
            let outcome = world.step(who, &step, &mut Locals::new(world, who));
            world.trace.borrow_mut().push(Event(who, What::Deferred(outcome)));
        }
    }
}

impl<'w> Locals<'w> {
    fn new(world: &'w World, who: Who) -> Locals<'w> {
        Locals { deferred: Deferred(world, who, Vec::new()), held: [const { None }; MUTEXES] }
    }
}

/// Returns the trace of `program`. A run of more than `most` events is cut short.
pub(crate) fn run(program: &Program, most: usize) -> Vec<Event> {
    /// Clears the world on every way out.
    struct Gone;
    impl Drop for Gone {
        fn drop(&mut self) {
            let world = WORLD.take();
            drop(world);
        }
    }
    let _gone = Gone;
    let ran = catch_unwind(AssertUnwindSafe(|| {
        // The trace shows which coroutines are left at the end; reports would repeat that in
        // thousands of lines.
        let context = AioContext::builder().report_unwound(false).report_deadlocks_after(None);
        let ran = context.run(|context| {
            WORLD.set(Some(Rc::new(World::new(program.clone(), context.clone(), most))));
            world().register();
            world().main();
            world().closing.set(true);
        });
        ran.expect("a context can be created");
    }));
    let world = world();
    if let Err(payload) = ran {
        world.trace.borrow_mut().push(Event(Who::Main, What::Polled(outcome_of(payload))));
    }
    world.check_what_is_left();
    world.trace.take()
}

impl World {
    fn new(program: Program, context: AioContext, most: usize) -> World {
        fn none<T>(count: usize) -> RefCell<Vec<Option<T>>> {
            RefCell::new((0..count).map(|_| None).collect())
        }
        let count = program.coroutines.len();
        World {
            context,
            start: Instant::now(),
            trace: RefCell::default(),
            most,
            closing: Cell::new(false),
            closures: Cell::new(0),
            payloads: Cell::new(0),
            begun: vec![Cell::new(false); count],
            shot: vec![Cell::new(false); program.shots.len()],
            coroutines: none(count),
            handles: none(count),
            mutexes: [const { CoMutex::new(None) }; MUTEXES],
            queues: [const { CoQueue::new() }; QUEUES],
            bottom_halves: none(program.bottom_halves.len()),
            timers: none(program.timers.len()),
            program,
        }
    }

    fn register(&self) {
        for (id, slot) in (0..).zip(self.bottom_halves.borrow_mut().iter_mut()) {
            *slot = Some(self.context.new_bottom_half(callback(Who::Bh(id))).unwrap());
        }
        for (id, slot) in (0..).zip(self.timers.borrow_mut().iter_mut()) {
            *slot = Some(self.context.new_timer(callback(Who::Timer(id))).unwrap());
        }
    }

    fn tell(&self, who: Who, what: What) {
        let mut trace = self.trace.borrow_mut();
        if trace.len() > self.most {
            drop(trace);
            panic!("it does not end");
        }
        trace.push(Event(who, what));
    }

    fn main(&self) {
        let ran = catch_unwind(AssertUnwindSafe(|| self.activate(Who::Main, &self.program.main)));
        if let Err(payload) = ran {
            self.tell(Who::Main, What::Polled(outcome_of(payload)));
        }
        loop {
            let outcome = caught(|| Outcome::Said(self.context.poll(false)));
            let idle = outcome == Outcome::Said(false);
            self.tell(Who::Main, What::Polled(outcome));
            if idle {
                return;
            }
        }
    }

    fn activate(&self, who: Who, steps: &[Step]) {
        self.tell(who, What::Begins);
        let mut locals = Locals::new(self, who);
        for (at, step) in steps.iter().enumerate() {
            let outcome = self.step(who, step, &mut locals);
            self.tell(who, What::Did(at, outcome));
        }
        self.tell(who, What::Ends);
    }

    /// Checks that nothing is left at the end.
    fn check_what_is_left(&self) {
        let broken = |what| self.trace.borrow_mut().push(Event(Who::Main, What::Broken(what)));
        if self.mutexes.iter().any(|mutex| mutex.try_lock().is_none()) {
            broken("a lock is held at the end");
        }
        if self.queues.iter().any(CoQueue::wake_one) {
            broken("a waiter is left in a queue at the end");
        }
        if self.closures.get() != 0 {
            broken("a closure or a result was not dropped, or twice");
        }
        if self.payloads.get() != 0 {
            broken("a payload was not dropped, or twice");
        }
        let ended = |it: &Option<Coroutine>| it.is_none_or(Coroutine::has_ended);
        if !self.coroutines.borrow().iter().all(ended) {
            broken("a coroutine has not ended at the end");
        }
    }
}

/// The closure of a coroutine.
fn body(id: Id) -> impl FnOnce() + 'static {
    let mark = Mark::new(Who::Co(id), What::Dropped);
    move || {
        let _mark = mark;
        let world = world();
        let index = usize::from(id);
        world.coroutines.borrow_mut()[index] = Coroutine::current();
        world.activate(Who::Co(id), &world.program.coroutines[index]);
    }
}

fn with_result(id: Id) -> impl FnOnce() -> Mark + 'static {
    let body = body(id);
    move || {
        body();
        Mark::new(Who::Co(id), What::ResultDropped)
    }
}

/// The callback of a bottom half or a timer, run by run.
fn callback(who: Who) -> impl FnMut() + Send + 'static {
    let mark = Mark::new(who, What::Dropped);
    let mut count = 0;
    move || {
        let (_, world) = (&mark, world());
        let program = &world.program;
        let steps = match who {
            Who::Bh(id) => program.bottom_halves[usize::from(id)].get(count),
            Who::Timer(id) => program.timers[usize::from(id)].get(count),
            Who::Shot(id) => program.shots.get(usize::from(id)),
            Who::Main | Who::Co(_) => unreachable!("not called by the loop"),
        };
        count += 1;
        world.activate(who, steps.map_or(&[][..], Vec::as_slice));
    }
}
