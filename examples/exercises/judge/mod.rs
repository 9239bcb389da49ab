//! The judges of the exercises. Each runs a solution on many simulated machines; a failing run is
//! shrunk, and drawn.
//!
//! All choices, also the judge's own (when a coroutine pauses, in which order requests complete),
//! come from the run's tape: so a failing run can be repeated.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use coralio::context::AioContext;
use coralio::coroutine::Coroutine;
use coralio::simulate::{Faults, Sim, Simulation};
use coralio::trace::Trace;
use coralio::{JoinHandle, yield_now};

pub mod cancel;
pub mod channel;
pub mod event;
pub mod log;
pub mod mutex;
pub mod once;
pub mod plug;
pub mod reap;
pub mod save;
pub mod submit;

/// The number of machines that a solution is run on.
const SEEDS: u64 = 300;

/// Why a solution is refused.
pub struct Refusal {
    /// A sentence on the failure.
    pub failure: String,
    /// The shrunk run, as text lanes.
    pub picture: String,
    /// The simulated kernel's log of the same run: its requests by file, changes of names, crashes.
    pub log: String,
    /// The shrunk run's choices, which repeat it.
    pub tape: String,
}

/// The number of runs, if all were correct; otherwise the failure.
pub type Judged = Result<u64, Refusal>;

/// Judges on machines without faults.
fn judge(run: impl Fn(&Sim)) -> Judged {
    judge_on(&Simulation::new().faults(Faults::none()), run)
}

/// Runs `run`, which panics if the solution is wrong, with each seed.
fn judge_on(machine: &Simulation, run: impl Fn(&Sim)) -> Judged {
    let run = |sim: &Sim| {
        run(sim);
        Ok(())
    };
    let machine = machine.clone().max_shrink_runs(300);
    machine.search(0..SEEDS, run).map_err(|failure| {
        let trace = Trace::new(10_000);
        let again = machine.trace(&trace).tape(&failure.tape).expect("a failure has a tape");
        FIRST_PANIC.take();
        let _same = again.search([0], run);
        let message = FIRST_PANIC.take().unwrap_or(failure.shrunk_message);
        Refusal {
            failure: in_plain_words(&message),
            picture: trace.recording().text(),
            log: failure.log,
            tape: failure.tape,
        }
    })
}

/// Returns the failure as a sentence about the solution.
fn in_plain_words(message: &str) -> String {
    if let Some(task) = message.strip_prefix("not yet implemented: ") {
        return format!("{HOLE}: {task}.");
    }
    let first_line = message.lines().next().unwrap_or_default();
    if !first_line.starts_with(STUCK) {
        return first_line.into();
    }
    // The report names each coroutine: `'A' waits for a lock, for 0ns, at ..`. The judge's `main`
    // is omitted, since it only waits for the others.
    let waits = message.lines().filter_map(|line| {
        let (name, rest) = line.trim().strip_prefix('\'')?.split_once("' waits for ")?;
        let reason = rest.split(", for ").next()?;
        (name != "main").then(|| format!("{name} waits for {reason}"))
    });
    format!("{}; and nothing will wake them.", waits.collect::<Vec<_>>().join(", "))
}

/// The beginning of the failure of an exercise that is not solved yet.
pub const HOLE: &str = "a hole is still to be filled";
/// The beginning of the message of a run that can make no progress.
const STUCK: &str = "deadlock";

thread_local! {
    /// The message of the first coroutine that has panicked in this run. The run itself may fail in
    /// another way, if other coroutines wait for that one.
    static FIRST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Creates a coroutine that the loop's next iteration enters.
fn spawn<T: 'static>(name: &'static str, f: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
    let f = || {
        catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| {
            if let Some(failure) = text(&*payload) {
                say(format!("WRONG: {failure}"));
                FIRST_PANIC.with_borrow_mut(|first| _ = first.get_or_insert(failure));
            }
            resume_unwind(payload)
        })
    };
    Coroutine::builder().name(name).spawn(f).expect("memory for a stack")
}

/// Returns the message of a panic; none for the unwinding at the end of a context.
fn text(payload: &(dyn Any + Send)) -> Option<String> {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
}

/// Waits for coroutines, and passes on their panics.
fn join<T>(all: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    all.into_iter().map(|one| one.join().unwrap_or_else(|payload| resume_unwind(payload))).collect()
}

/// Lets other coroutines run, up to `most` times.
fn pause(sim: &Sim, most: u32) {
    (0..sim.choose(most + 1)).for_each(|_| yield_now());
}

/// Writes a message into the picture.
#[track_caller]
fn say(what: impl std::fmt::Display) {
    if let Some(tracer) = AioContext::current().as_ref().and_then(AioContext::tracer) {
        tracer.mark(format!("\"{what}\""));
    }
}
