//! Reports a failed run: shrinks its tape, and describes how to reproduce it.

use std::env;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::thread;

use crate::backend::simulated::tape::{Choice, Tape, Text};

use super::panic_hook::SilentPanics;
use super::run::Outcome;
use super::shrink::shrink;
use super::{Sim, Simulation};

/// A failed run, and how to reproduce it. `Display` gives the full report.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The original failure: of the seed, or of the given tape.
    pub message: String,
    /// The failure of the shrunk tape. Usually the same; shrinking may have found a different one.
    pub shrunk_message: String,
    /// The seed, if there was one.
    pub seed: Option<u64>,
    /// The number of the run, counted from 1.
    pub run: u64,
    /// The shrunk tape: for [`Simulation::tape`].
    pub tape: String,
    /// The number of choices on the tape that are not 0.
    pub nonzero_choices: usize,
    /// The fingerprint of the original run.
    pub fingerprint: u64,
    /// The last events of the run of the shrunk tape.
    pub log: String,
    /// Whether the replay of the tape passed.
    pub is_flaky: bool,
}

/// Maximum number of shrinking runs for an endless run: each may take as long as the first.
const MAX_ENDLESS: u32 = 20;
/// A longer tape is not printed if a seed makes the same run.
const LONGEST_TAPE: usize = 4000;

fn values(choices: &[Choice]) -> Vec<u32> {
    choices.iter().map(|choice| choice.value).collect()
}

impl Simulation {
    /// Shrinks the tape of a failed run, and replays it once more to record the log.
    #[cold]
    pub(super) fn failed(
        &self,
        seed: Option<u64>,
        run: u64,
        outcome: Outcome,
        f: &dyn Fn(&Sim) -> io::Result<()>,
    ) -> Box<Failure> {
        let first = values(&outcome.choices);
        let (tape, told) = {
            let _quiet = SilentPanics::new();
            let fails = |tape: &[u32]| {
                let outcome = self.one(Tape::replay(tape.to_vec()), false, f);
                outcome.failure.is_some().then(|| values(&outcome.choices))
            };
            let is_steady = fails(&first).is_some();
            let most = match is_steady {
                true if outcome.endless => self.max_shrink_runs.min(MAX_ENDLESS),
                true => self.max_shrink_runs,
                false => 0,
            };
            let (tape, _) = shrink(first, most, fails);
            let told = self.one(Tape::replay(tape.clone()), true, f);
            (tape, told)
        };
        let message = outcome.failure.unwrap_or_default();
        Box::new(Failure::new(message, outcome.fingerprint, seed, run, &tape, told))
    }

    /// Replays a given tape.
    pub(super) fn replay(&self, tape: Vec<u32>, f: &dyn Fn(&Sim) -> io::Result<()>) -> Result<(), Box<Failure>> {
        let told = self.one(Tape::replay(tape.clone()), true, f);
        let Some(message) = told.failure.clone() else { return Ok(()) };
        Err(Box::new(Failure::new(message, told.fingerprint, None, 1, &tape, told)))
    }
}

impl Failure {
    /// `told` is the run of the shrunk `tape`.
    fn new(message: String, fingerprint: u64, seed: Option<u64>, run: u64, tape: &[u32], told: Outcome) -> Failure {
        Failure {
            is_flaky: told.failure.is_none(),
            shrunk_message: told.failure.unwrap_or_else(|| message.clone()),
            message,
            seed,
            run,
            tape: Text(tape).to_string(),
            nonzero_choices: tape.iter().filter(|&&choice| choice != 0).count(),
            fingerprint,
            log: told.log,
        }
    }
}

/// Returns the command that repeats the run: that of a test, which is recognised by its thread's
/// name or by Cargo's test program; otherwise the command of this program.
fn command(thread: Option<&str>, program: &Path, args: impl Iterator<Item = String>) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%".contains(c);
    let quoted = |arg: String| match !arg.is_empty() && arg.chars().all(is_plain) {
        true => arg,
        false => format!("'{}'", arg.replace('\'', r"'\''")),
    };
    match thread.filter(|&name| name != "main") {
        // Without `--exact`, tests whose names contain this test's name would run too.
        Some(test) => format!("cargo test {test} -- --exact"),
        None if program.parent().is_some_and(|folder| folder.ends_with("deps")) => "cargo test".into(),
        None => args.map(quoted).collect::<Vec<_>>().join(" "),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { message, shrunk_message, seed, run, tape, nonzero_choices, fingerprint, log, is_flaky } = self;
        match seed {
            Some(seed) => writeln!(f, "seed {seed} fails (run {run}, fingerprint {fingerprint:016x}): {message}")?,
            None => writeln!(f, "a tape fails (run {run}, fingerprint {fingerprint:016x}): {message}")?,
        }
        if *is_flaky {
            writeln!(
                f,
                "the same tape did not fail again: the run is not deterministic; does it depend on time, addresses, \
                 HashMap order or another thread?"
            )?;
        }
        let is_short = tape.len() <= LONGEST_TAPE || seed.is_none();
        let shown = if is_short { tape.as_str() } else { "too long to print" };
        writeln!(f, "shrunk tape with {nonzero_choices} choices other than 0: {shown}")?;
        if shrunk_message != message {
            writeln!(f, "the shrunk tape fails with: {shrunk_message}")?;
        }
        let program = env::current_exe().unwrap_or_default();
        let command = command(thread::current().name(), &program, env::args());
        let tape = is_short.then(|| format!("CORALIO_SIM_TAPE='{tape}'"));
        let ways = tape.into_iter().chain(seed.map(|seed| format!("CORALIO_SIM_SEED={seed}")));
        for (way, start) in ways.zip(["reproduce:", "       or:"]) {
            writeln!(f, "{start} {way} {command}")?;
        }
        write!(f, "events:\n{log}")
    }
}

impl Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_that_of_the_test_or_program() {
        // E17: a failure in a program names the program, one in a test the test
        let of = |thread, program: &str| {
            command(
                thread,
                Path::new(program),
                ["target/debug/search", "--seed", "it's 1"].map(String::from).into_iter(),
            )
        };
        let program = r"target/debug/search --seed 'it'\''s 1'";
        assert_eq!(of(Some("main"), "/x/target/debug/search"), program);
        assert_eq!(of(None, "/x/target/debug/search"), program);
        assert_eq!(of(Some("log::survives"), "/x/target/debug/deps/log-1"), "cargo test log::survives -- --exact");
        assert_eq!(of(Some("main"), "/x/target/debug/deps/log-1"), "cargo test");
    }
}
