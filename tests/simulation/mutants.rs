//! Does it bite? The production engine with one guard out at a time, and how many seeds it takes until a run fails.
//!
//! `cargo test --test simulation mutants -- --nocapture` prints the table that `tests/README.md` has. Three are not for a search of
//! this kind, and have their tests in `regressions/`: H3 takes two threads; H7 costs time alone, as the loop submits what is
//! plugged before it sleeps; H10 shows in the depth of the stack.

use std::process::Command;

use crate::program::{self, Size};
use crate::{harsh, small};
use coralio_aio::policy::{AfterReap, Counts, Cursor, NotTaken, OnCancel, OnCompletion, OnShort, Policy};

/// Defines policies that have one guard out.
macro_rules! mutants {
    ($($name:ident: $guard:ident = $value:expr, $type:ty;)*) => {
        $(struct $name;

        // SAFETY: it reaps under the lock. What `program` cancels reads into memory that is leaked, and the simulated kernel leaves
        // alone what changes while it has it.
        unsafe impl Policy for $name {
            const $guard: $type = $value;
        })*
    };
}

mutants! {
    EntersAnyone: ON_COMPLETION = OnCompletion::Enter, OnCompletion;
    EntersOthers: ON_COMPLETION = OnCompletion::EnterUnlessCurrent, OnCompletion;
    Batches: CURSOR = Cursor::Private, Cursor;
    CountsLate: COUNTS = Counts::AfterWaking, Counts;
    StuckAfterError: NOT_TAKEN = NotTaken::StuckAfterError, NotTaken;
    StuckAfterAgain: NOT_TAKEN = NotTaken::StuckAfterAgain, NotTaken;
    DropsTheTail: NOT_TAKEN = NotTaken::TailForgotten, NotTaken;
    NobodySubmits: AFTER_REAP = AfterReap::NobodySubmits, AfterReap;
    ShortIsTheEnd: ON_SHORT = OnShort::IsTheEnd, OnShort;
    CancelReturns: ON_CANCEL = OnCancel::ReturnsAtOnce, OnCancel;
}

fn search<P: Policy>() {
    let size = Size { workers: 4, steps: 5 };
    let told = (0..2000).inspect(|seed| eprintln!("seed {seed}"));
    let found = small().policy::<P>().faults(harsh()).most_shrinking(0).search(told, |sim| program::run(sim, size));
    // Some come to their end here, and others in the unwinding of what they have left, where no panic may pass.
    panic!("{}", found.err().map_or("2000 seeds, and none fails".into(), |failure| failure.message));
}

/// Guards, what is wrong without them, and by what that is found.
const MUTANTS: [(fn(), &str, &str); 10] = [
    (search::<EntersAnyone>, "H1: a completion enters its coroutine, whoever runs", "recursive entry"),
    (search::<EntersOthers>, "H2: any but the one that runs", "recursive entry"),
    (search::<Batches>, "H4: a reap takes its completions along", "deadlock: all wait"),
    (search::<CountsLate>, "E5: counted after the callback", "deadlock: all wait"),
    (search::<StuckAfterError>, "H5: the first one fails, and the rest is left", "nobody will submit them"),
    (search::<StuckAfterAgain>, "H6: \"try again\", with nothing in flight", "nobody will submit them"),
    (search::<DropsTheTail>, "E2: the tail of a partial submit is dropped", "deadlock: all wait"),
    (search::<NobodySubmits>, "H11: nobody submits the follow-up", "nobody will submit them"),
    (search::<ShortIsTheEnd>, "H11: a short read is the end of the file", "left == right"),
    (search::<CancelReturns>, "H12: cancel returns before the kernel is done", "changed while the kernel had it"),
];

const CHOICE: &str = "CORALIO_TEST_MUTANT";

#[test]
#[ignore = "run by each_guard_that_is_out_is_found, in a process of its own: with a guard out it may abort"]
fn search_if_asked() {
    // E17: one of them.
    if let Ok(number) = std::env::var(CHOICE) {
        MUTANTS[number.parse::<usize>().unwrap()].0();
    }
}

#[test]
fn each_guard_that_is_out_is_found() {
    // H1, H2, H4, H5, H6, H11, H12, E2, E5, E17: within some seeds each, by a failure that is its own.
    for (number, (_, what, by)) in MUTANTS.iter().enumerate() {
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["mutants::search_if_asked", "--exact", "--ignored", "--nocapture"])
            .env(CHOICE, number.to_string())
            .env("RUST_BACKTRACE", "0")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        let seeds = said.lines().filter(|line| line.starts_with("seed ")).count();
        assert!(!run.status.success() && said.contains(by), "{what}, after {seeds} seeds:\n{said}");
        eprintln!("| {what} | {seeds} | `{by}` |");
    }
}
