//! Random programs of coroutines, locks, queues, timers and bottom halves. Each is run on the
//! library and predicted by a model of the rules; the two traces must be equal, event by event.
//!
//! ```text
//!   seed --generate--> program --run----> trace        equal, or the program is shrunk
//!                              --model--> trace        as long as the two differ
//! ```
//!
//! Each run of the suite checks the same ten thousand programs. For more programs, or others
//! (with both variables, as many programs from that seed):
//!
//! ```sh
//! CORALIO_PROPERTY_PROGRAMS=1000000 cargo test --release -p coralio-runtime --test properties
//! CORALIO_PROPERTY_SEED=0x7a cargo test -p coralio-runtime --test properties
//! ```
//!
//! Every event is predicted exactly, with three exceptions. Time: in the programs a timer has
//! either expired from the start or never expires; `times.rs` uses real times, and checks their
//! order. Idle bottom halves run after ten milliseconds: a run that takes that long is repeated.
//! The order in which a context drops callbacks at its end is not specified by a rule: they are
//! only counted. Some properties are checked without the model: a lock has one owner, every
//! closure, result and payload is dropped once, and at the end no lock is held and no coroutine
//! waits.
//!
//! Not proptest: a program is a function of one number, so that number replays it; shrinking
//! removes steps from the program itself, not from the random choices behind it; and generating,
//! predicting and running ten thousand programs, unoptimised, takes three seconds.
//!
//! Are the checks effective? Guards of the runtime were disabled one at a time, in a copy. The
//! first program that noticed, and the number of steps after shrinking:
//!
//! | rule | disabled guard or injected fault | seen by program | steps |
//! |---|---|---|---|
//! | W1 | coroutines woken by a coroutine run in reverse order | 36 | 4 |
//! | W1 | woken coroutines run in the next iteration, not from the same frame | 13 | 4 |
//! | W2 | a second claim is allowed | 36 | 4 |
//! | W3 | a wake while entered is dropped | 48 | 4 |
//! | W4 | the generation is not compared | 36 | 6 |
//! | W5 | at the end, coroutines woken by destructors are still scheduled | 3545 | aborts |
//! | C3 | the first enterer is missing in the chain | 6 | 2 |
//! | C5 | a coroutine scheduled from elsewhere may be entered | 6 | 4 |
//! | C8 | a coroutine woken by a panicking one is forgotten | 137 | 7 |
//! | C9 | the end unwinds the last coroutine first | 1 | 2 |
//! | C9 | a detached result is dropped only when the context ends | 20 | 5 |
//! | C8 | the payload of a detached coroutine is leaked | 41 | 3 |
//! | X1 | a poll does not report that timers fired | 17 | 4 |
//! | X1 | timers run before bottom halves | 1 | 3 |
//! | X2 | a nested iteration ignores work that the outer one has taken up | 183 | 4 |
//! | X2 | a nested iteration ignores coroutines woken by those below it | 101 | 6 |
//! | X2 | sometimes a running coroutine stays on the list, and runs again | 1162 | 9 |
//! | X3 | bottom halves run last in, first out | 8 | 2 |
//! | X3 | a cancelled bottom half runs | 15 | 6 |
//! | X3 | a plain schedule does not override an idle one | 107 | 2 |
//! | X3 | a bottom half that panicked is not put back | 80 | 2 |
//! | X7 | timers fire in reverse order of deadline | 94 | 7 |
//! | X7 | a timer armed in its own callback is not queued | 1 | 4 |
//! | S1 | a lock is free before it is handed over | 249 | 7 |
//! | S1 | a lock released in the loop enters the next owner immediately | 15 | 6 |
//! | S1, S2 | a grant to a coroutine that unwinds is not passed on | 206 | 7 |
//! | S1 | a cancelled waiter takes the lock all the same | 14 | 4 |
//! | S4 | a joining coroutine is not woken | 20 | 3 |
//! | S4 | a shield is ignored | 293 | 4 |
//! | S4 | a scope whose body panics does not cancel the others | 17 | 4 |
//! | S4 | a scope unwinds the last of its coroutines first | 831 | 6 |

mod generate;
mod last_word;
mod model;
mod program;
mod run;
mod shrink;
mod times;

#[path = "../common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic;
use std::sync::Once;
use std::time::{Duration, Instant};

use program::{Event, Outcome, Program, Step, What};

/// Number of programs in each run of the suite.
const PROGRAMS: usize = 10_000;

/// A trace that differs from the prediction.
struct Failure {
    predicted: Vec<Event>,
    seen: Vec<Event>,
}

/// Runs the program. Returns its trace and the model's if they differ.
fn failure(program: &Program) -> Option<Failure> {
    let predicted = model::predict(program);
    for _ in 0..5 {
        let begun = Instant::now();
        let seen = run::run(program, predicted.len() + 20);
        if seen == predicted {
            return None;
        }
        // The run took as long as the delay of an idle bottom half, which the model does not know.
        if !program.uses_idle() || begun.elapsed() < Duration::from_millis(9) {
            return Some(Failure { predicted, seen });
        }
    }
    None
}

/// Panics with a small program, if this one does not behave as the model predicts.
fn check(seed: u64) {
    last_word::is_about(seed);
    let program = generate::program(seed);
    if failure(&program).is_none() {
        return;
    }
    let small = shrink::shrink(program, |program| failure(program).is_some());
    let replay = format!("CORALIO_PROPERTY_SEED={seed:#x} cargo test -p coralio-runtime --test properties");
    match failure(&small) {
        Some(failure) => panic!("a program does not do what the model says; {replay}\n{}", story(&small, &failure)),
        None => panic!("a program does not always do the same; {replay}\n{small}"),
    }
}

/// Describes the common part of the two traces, and where they diverge.
fn story(program: &Program, failure: &Failure) -> String {
    let Failure { predicted, seen } = failure;
    let same = predicted.iter().zip(seen).take_while(|(predicted, seen)| predicted == seen).count();
    let next = |events: &[Event]| events.get(same).map_or("nothing more".to_string(), Event::to_string);
    let mut story = format!("shrunk to\n{program}with this history\n");
    for event in &predicted[..same] {
        writeln!(story, "    {event}").expect("a string takes all");
    }
    write!(story, "  then predicted\n    {}\n  but seen\n    {}\n", next(predicted), next(seen))
        .expect("a string takes all");
    story
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(number.unwrap_or_else(|error| panic!("invalid {variable}={text}: {error}")))
}

/// Silences the panic hook for panics within a program, which belong to it.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !run::is_running() {
                loud(info);
            }
        }));
    });
}

#[test]
fn programs_match_the_model() {
    // C1, C2, C3, C4, C5, C6, C7, C8, C9, C10, W1, W2, W3, W4, W5, X1, X2, X3, X7, S1, S2, S4: the
    // trace of a program follows from the rules
    hush();
    last_word::listen();
    let (seed, programs) = match (number("CORALIO_PROPERTY_SEED"), number("CORALIO_PROPERTY_PROGRAMS")) {
        (Some(seed), programs) => (seed, programs.unwrap_or(1)),
        (None, Some(programs)) => (0, programs),
        (None, None) => (0, common::scaled(PROGRAMS) as u64),
    };
    (0..programs).for_each(|index| check(seed.wrapping_add(index)));
    last_word::is_over();
}

/// Classifies a step's outcome.
fn kind(step: &Step, outcome: &Outcome) -> &'static str {
    match (step, outcome) {
        (_, Outcome::Refused(why) | Outcome::Fault(why)) if why.starts_with("recursive") => "recursive entry",
        (_, Outcome::Refused(why) | Outcome::Fault(why)) if why.ends_with("already scheduled") => {
            "entry of a scheduled one"
        }
        (_, Outcome::Refused(why) | Outcome::Fault(why)) if why.ends_with("ended") => "entry of an ended one",
        (_, Outcome::TimedOut) => "time is over",
        (Step::SleepForEver, Outcome::Cancelled) => "a sleep cancelled",
        (Step::LockCancellable(_), Outcome::Cancelled) => "a wait for a lock cancelled",
        (Step::WaitCancellable(..), Outcome::Cancelled) => "a wait in a queue cancelled",
        (Step::Wait(..) | Step::WaitCancellable(..), Outcome::Done) => "woken in a queue",
        (Step::WakeOne(_), Outcome::Said(true)) => "woke in a queue",
        (Step::Join(_), Outcome::Done) => "joined",
        (Step::Join(_), Outcome::Panicked(_)) => "joined one that panicked",
        (Step::Scope(..), Outcome::Done) => "a scope",
        (Step::Scope(..), Outcome::Panicked(_)) => "a scope with a panic",
        (Step::Schedule(_), Outcome::Said(false)) => "scheduled twice",
        (Step::EnterUnlessEntered(_), Outcome::Said(false)) => "left alone, being entered",
        (Step::Poll | Step::PollKicked, Outcome::Panicked(_)) => "a panic that came by in a poll",
        (Step::Poll | Step::PollKicked, Outcome::Said(true)) => "a nested poll with something to do",
        (Step::Wake(_) | Step::Cancel(_) | Step::Enter(_), Outcome::Panicked(_)) => "a panic of one that was entered",
        _ => "the rest",
    }
}

#[test]
fn generated_programs_cover_each_kind_of_step() {
    // The programs of one run, by the model alone: each kind of event happens often enough
    let mut counts = BTreeMap::new();
    for program in (0..2000).map(generate::program) {
        for Event(who, what) in model::predict(&program) {
            let program::Who::Co(id) = who else { continue };
            let kind = match what {
                What::Did(at, outcome) => kind(&program.coroutines[usize::from(id)][at], &outcome),
                What::Deferred(_) => "a destructor that does something",
                _ => continue,
            };
            *counts.entry(kind).or_insert(0) += 1;
        }
    }
    assert_eq!(counts.len(), 20, "{counts:#?}");
    for (kind, count) in counts {
        assert!(count >= 3, "{kind}: {count} times");
    }
}

#[test]
fn failing_program_is_shrunk() {
    // A deliberately wrong model must be shrunk to a small program
    let fails = |program: &Program| {
        let recursive = |Event(_, what): &Event| matches!(what, What::Did(_, Outcome::Refused(why)) if why.ends_with("thread > 'A' > 'B'"));
        model::predict(program).iter().any(recursive)
    };
    let program = (0..).map(generate::program).find(fails).expect("there is one");
    let small = shrink::shrink(program, fails);
    assert!(fails(&small));
    // Both are created, 'A' is run, it enters 'B', and that one enters 'A'.
    assert!(small.lists().flatten().count() <= 5, "{small}");
}
