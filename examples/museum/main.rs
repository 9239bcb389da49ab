//! The museum of engine bugs: each is reproduced on the production engine, with one guard removed
//! by its type parameter.
//!
//! `museum` prints which version fails which workload. `museum --exhibit N` prints one failure,
//! followed by the same schedule with the guard in place; with `--trace FILE` the two are written
//! to files. The kernel is scripted, so every run is the same.
//!
//! For the table, each version runs each workload in its own process, because some failures end the
//! process.

// These macros panic if the output is closed; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

#[path = "../lesson/mod.rs"]
pub mod lesson;
#[path = "../09_september_2016/schedule.rs"]
mod schedule;
pub mod versions;
pub mod workloads;

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::Parser;
use coralio::trace::{Event, Frame, Recording, Replay, RequestState, Span, TextOptions};
use coralio_runtime::report;

use lesson::{ending, print, record, scene, with_suffix};
use versions::{Version, today, versions};
use workloads::Workload;

/// Historic bugs of an I/O engine, reproduced
#[derive(Parser)]
struct Options {
    /// Show one failure, by its number in the table or the bug's (H10), and the same run with the
    /// guard
    #[arg(long, value_name = "N")]
    exhibit: Option<String>,
    /// Write the two runs to FILE and FILE-guarded instead of printing them
    #[arg(long, value_name = "FILE", requires = "exhibit")]
    trace: Option<PathBuf>,
    /// For the table: run one workload on one version, by their numbers
    #[arg(long, value_names = ["VERSION", "WORKLOAD"], num_args = 2, hide = true)]
    cell: Option<Vec<usize>>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(cell) = options.cell {
        let versions: Vec<_> = versions().into_iter().chain([today()]).collect();
        print(&run(&versions[cell[0]].workloads[cell[1]]).failure.unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    let Some(wanted) = options.exhibit else {
        return match matrix() {
            Ok(matrix) => {
                print(&matrix);
                ExitCode::SUCCESS
            }
            Err(error) => {
                report(format_args!("cannot run this program again for a cell of the table: {error}"));
                ExitCode::FAILURE
            }
        };
    };
    let versions = versions();
    let version = match exhibit(&versions, &wanted) {
        Ok(version) => version,
        Err(remedy) => {
            report(format_args!("{remedy}"));
            return ExitCode::FAILURE;
        }
    };
    match show(version, options.trace.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(format_args!("cannot write the trace: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns the version with this number in the table, or for this bug.
fn exhibit<'a>(versions: &'a [Version], wanted: &str) -> Result<&'a Version, String> {
    let is_wanted =
        |number: &usize| wanted == number.to_string() || wanted.eq_ignore_ascii_case(versions[number - 1].rule);
    let numbers: Vec<_> = (1..=versions.len()).filter(is_wanted).collect();
    match numbers[..] {
        [number] => Ok(&versions[number - 1]),
        [] => Err(format!("no exhibit {wanted}: choose 1 to {}", versions.len())),
        _ => {
            let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
            Err(format!("{wanted} has several exhibits: choose {}", numbers.join(" or ")))
        }
    }
}

/// The result of a version in a workload.
pub struct Outcome {
    pub recording: Recording,
    /// The description of the failure, if it failed.
    pub failure: Option<String>,
}

pub fn run(workload: &Workload) -> Outcome {
    let (recording, mut failure) = record(workload.run);
    let nested = nested_submits(&recording);
    if nested > 3 {
        failure.get_or_insert(format!("deep: {nested} submits on the stack, each within the one before"));
    }
    Outcome { recording, failure }
}

/// Returns the maximum number of nested submits on the stack when a request went to the kernel.
fn nested_submits(recording: &Recording) -> usize {
    let mut replay = Replay::of(recording);
    let submits = |stack: &[Frame]| stack.iter().filter(|frame| **frame == Frame::Span(Span::Submit)).count();
    let depths = recording.records.iter().map(|record| {
        let _ = replay.apply(record);
        let gives = matches!(record.event, Event::Request { state: RequestState::InFlight, .. });
        if gives { submits(replay.stack(record.thread)) } else { 0 }
    });
    depths.max().unwrap_or(0)
}

/// The failure of a process that has aborted.
const ABORTED: &str = "aborted";

/// The beginning of each failure message, its word in the table, and its meaning.
const WORDS: [(&str, &str, &str); 11] = [
    ("recursive entry", "twice", "a coroutine is entered while it is entered already"),
    ("in_flight below zero", "below", "a completion is counted twice, and in_flight drops below zero"),
    ("this sleep would never end", "asleep", "the loop sleeps for an event that has already occurred"),
    ("stuck", "stuck", "requests are pending and never submitted"),
    ("lost", "lost", "a request is neither pending nor in flight, and its coroutine waits forever"),
    ("deep", "deep", "each block uses more stack: submits nest"),
    ("delay", "delay", "a request waits for a plug that was dropped"),
    ("cut", "cut", "part of a file is taken for all of it"),
    ("a completion for a request", "stray", "the kernel writes to a buffer that its owner has back"),
    (ABORTED, "abort", "the process aborts: a second failure during the unwinding of the first"),
    ("wrong", "wrong", "a wrong result"),
];

/// Returns the word for a failure.
fn word(failure: &str) -> &str {
    WORDS.iter().find(|(start, ..)| failure.starts_with(start)).map_or("panic", |(_, word, _)| word)
}

/// Runs one workload on one version in another process. Returns the failure, if any.
fn cell(version: usize, workload: usize) -> io::Result<Option<String>> {
    let arguments = ["--cell".to_string(), version.to_string(), workload.to_string()];
    let output = Command::new(env::current_exe()?).args(arguments).stderr(Stdio::null()).output()?;
    if !output.status.success() {
        return Ok(Some(ABORTED.into()));
    }
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()).filter(|failure| !failure.is_empty()))
}

/// Returns the table and its legend.
fn matrix() -> io::Result<String> {
    let (versions, today) = (versions(), today());
    let heading: String = today.workloads.iter().map(|workload| format!(" {:<6}", workload.name)).collect();
    let mut lines = vec![format!("{:26}{}", "", heading.trim_end())];
    let mut seen = Vec::new();
    for (index, version) in versions.iter().chain([&today]).enumerate() {
        let number = if version.rule.is_empty() { String::new() } else { format!("{}.", index + 1) };
        let mut cells = String::new();
        for workload in 0..version.workloads.len() {
            let failure = cell(index, workload)?;
            let word = failure.as_deref().map_or("·", word);
            cells += &format!(" {word:<6}");
            seen.push(word.to_string());
        }
        lines.push(format!("{number:>3} {:<4}{:<18}{}", version.rule, version.when, cells.trim_end()));
    }
    lines.push("\nThe versions, and how each differs from today's:".into());
    for (index, version) in versions.iter().enumerate() {
        lines.push(format!("{:>2}. {:<4}{}", index + 1, version.rule, version.what));
    }
    lines.push("    H and E number the bugs and rules in tests/RULES.md; a bug with two variants has two rows.".into());
    lines.push("    H8 and H9 are bugs of the loop, whose guards cannot be removed: see tests/README.md.".into());
    lines.push("\nThe workloads:".into());
    lines.extend(today.workloads.iter().map(|workload| format!("    {:<7} {}", workload.name, workload.what)));
    lines.push("\nThe outcomes:\n    ·       passes".into());
    let words = WORDS.iter().filter(|(_, word, _)| seen.iter().any(|cell| cell == word));
    lines.extend(words.map(|(_, word, meaning)| format!("    {word:<7} {meaning}")));
    Ok(lines.join("\n") + "\n")
}

/// Shows a version in the workload that it fails, and today's version in the same workload.
fn show(version: &Version, trace: Option<&Path>) -> io::Result<()> {
    let today = today();
    let index = today.workloads.iter().position(|workload| workload.name == version.bane).expect("each has its bane");
    print(&format!("{}, {}: {}.\n", version.rule, version.when, version.what));
    print(&format!("The workload: {}.\n", today.workloads[index].what));
    let legend = TextOptions::default();
    let sides = [
        ("With the guard out", version, "", legend),
        ("With the guard in", &today, "-guarded", legend.without_legend()),
    ];
    for (heading, version, suffix, options) in sides {
        let Outcome { recording, failure } = run(&version.workloads[index]);
        let picture = match trace {
            Some(file) => {
                let file = with_suffix(file, suffix);
                let title = format!(
                    "{} ({}) in \"{}\" {}",
                    version.rule_or_today(),
                    version.when,
                    today.workloads[index].name,
                    ending(failure.as_deref())
                );
                recording.write_titled(&file, &title, failure.as_deref())?;
                format!("See {}.\n", file.display())
            }
            None => recording.text_with(options),
        };
        print(&format!("\n{}", scene(heading, &picture, failure.as_deref())));
    }
    Ok(())
}
