//! A log with group commit: several writers append records. One of the waiting writers writes a
//! batch for all of them, with one aligned write and one sync, and wakes them. Each `append`
//! returns when its record is on stable storage.
//!
//! ```text
//! cargo run --release --example log                                 a scratch file, five seconds
//! cargo run --release --example log -- --versus threads --pin 1     compared with threads, alternating
//! cargo run --release --example log -- --file LOG --verify          check the content of a log
//! ```
//!
//! Start with `coroutines.rs`, on the library's `GroupCommit`. `threads.rs` is the same with threads,
//! and has the complete algorithm; both share the record format (`record.rs`) and the batches
//! (`batch.rs`).

// These macros panic if the output is closed; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod batch;
mod coroutines;
// This program uses only the clock of its own process.
#[allow(dead_code)]
#[path = "../iobench/meter.rs"]
mod meter;
mod options;
mod record;
mod threads;
#[path = "../shared/trace.rs"]
mod trace;
mod writer;

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::rc::Rc;
use std::thread;

use clap::Parser;
use coralio::{File, RuntimeBuilder, spawn, yield_now};
use coralio_runtime::report;

use meter::{Moment, Spent};
use options::Options;
use record::{BLOCK, Scan, scan};
use writer::{Job, label};

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(text) => {
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(why) => {
            report(format_args!("log: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<String, String> {
    options.check()?;
    if let Some(cpu) = options.pin {
        meter::pin(cpu)?;
    }
    let scratch = if options.file.is_none() { Some(Scratch::new()?) } else { None };
    let path = options.file.as_deref().or(scratch.as_ref().map(|scratch| &*scratch.path)).expect("one of the two");
    let say = |why: io::Error| with_path(path, &why);
    if options.verify {
        return verify(path, options).map_err(say);
    }
    if options.versus.is_none() {
        let round = coroutines(path, options).map_err(say)?;
        return Ok(format!("{}{}", round.found(), round.text("coroutines")));
    }
    let mut rounds = [Vec::new(), Vec::new()];
    let mut text = String::new();
    for _ in 0..options.rounds {
        // Alternate, so that changes in the state of the machine affect both sides equally.
        for (side, round) in [coroutines, on_threads].into_iter().enumerate() {
            let round = round(path, options).map_err(say)?;
            text += &round.text(["coroutines", "threads"][side]);
            rounds[side].push(round);
        }
    }
    let ratio = |figure: fn(&Round) -> f64| median(&rounds[0], figure) / median(&rounds[1], figure);
    let (commits, cpu) = (ratio(Round::commits_per_second), ratio(Round::cpu_per_commit));
    Ok(format!("{text}median ratios, coroutines / threads: commits/s {commits:.3}, CPU per commit {cpu:.3}\n"))
}

/// Returns the error's text, prefixed with the path unless the text contains it.
fn with_path(path: &Path, why: &io::Error) -> String {
    let (path, why) = (path.display().to_string(), why.to_string());
    if why.contains(&path) { why } else { format!("{path}: {why}") }
}

/// The result of one side in one round.
struct Round {
    before: Scan,
    commits: u64,
    syncs: u64,
    spent: Spent,
}

/// Runs the log on coroutines, in its own context.
fn coroutines(path: &Path, options: &Options) -> io::Result<Round> {
    let work = || {
        let (log, before) = coroutines::Log::open(path, options.writers as usize, options.payload)?;
        let (log, clock) = (Rc::new(log), Moment::now());
        let job = Rc::new(Job::new(options, before.records));
        let start = |writer| {
            let (log, job) = (Rc::clone(&log), Rc::clone(&job));
            spawn(move || job.write(writer, yield_now, |payload| log.append(payload)))
        };
        let writers: Vec<_> = (0..options.writers).map(start).collect();
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join().expect("no writer panics")).collect();
        let spent = clock.spent();
        let log = Rc::into_inner(log).expect("all writers have ended");
        finish(&job, before, spent, ended, || log.close())
    };
    let (builder, said) = (RuntimeBuilder::new().backend(options.backend), |error: io::Error| error.to_string());
    options.trace.run(builder, said, || work().map_err(said)).map_err(io::Error::other)
}

/// Runs the log on threads.
fn on_threads(path: &Path, options: &Options) -> io::Result<Round> {
    let (log, before) = threads::Log::open(path, options.writers as usize, options.payload)?;
    let clock = Moment::now();
    let job = Job::new(options, before.records);
    let ended: Vec<_> = thread::scope(|scope| {
        let start = |writer| {
            let (log, job) = (&log, &job);
            scope.spawn(move || job.write(writer, thread::yield_now, |payload| log.append(payload)))
        };
        let writers: Vec<_> = (0..options.writers).map(start).collect();
        writers.into_iter().map(|writer| writer.join().expect("no writer panics")).collect()
    });
    let spent = clock.spent();
    finish(&job, before, spent, ended, || log.close())
}

/// Closes the log and returns the round, or the first error with the number of acknowledged
/// records.
fn finish(
    job: &Job,
    before: Scan,
    spent: Spent,
    ended: Vec<io::Result<()>>,
    close: impl FnOnce() -> io::Result<u64>,
) -> io::Result<Round> {
    let commits = job.acknowledged();
    ended.into_iter().collect::<io::Result<()>>().map_err(|error| {
        io::Error::new(error.kind(), format!("{error}; {commits} records were acknowledged and are on stable storage"))
    })?;
    Ok(Round { before, commits, syncs: close()?, spent })
}

impl Round {
    fn commits_per_second(&self) -> f64 {
        self.commits as f64 / self.spent.wall.as_secs_f64().max(1e-9)
    }

    /// In microseconds.
    fn cpu_per_commit(&self) -> f64 {
        self.spent.cpu.as_secs_f64() * 1e6 / self.commits.max(1) as f64
    }

    /// Describes the content of the log before the round, if any.
    fn found(&self) -> String {
        match self.before {
            Scan { records: 0, torn: false, .. } => String::new(),
            Scan { records, end, torn } => {
                let tail = if torn { format!("; torn tail truncated at byte {end}") } else { String::new() };
                format!("{records} records found{tail}\n")
            }
        }
    }

    fn text(&self, who: &str) -> String {
        format!(
            "{who:>10}: {} commits in {:.2} s: {:.0} commits/s, {:.2} us of CPU per commit, {:.1} commits per sync\n",
            self.commits,
            self.spent.wall.as_secs_f64(),
            self.commits_per_second(),
            self.cpu_per_commit(),
            self.commits as f64 / self.syncs.max(1) as f64,
        )
    }
}

fn median(rounds: &[Round], figure: fn(&Round) -> f64) -> f64 {
    let mut all: Vec<_> = rounds.iter().map(figure).collect();
    all.sort_by(f64::total_cmp);
    (all[(all.len() - 1) / 2] + all[all.len() / 2]) / 2.0
}

/// Checks a log without changing it: the records of each writer must be in order.
fn verify(path: &Path, options: &Options) -> io::Result<String> {
    RuntimeBuilder::new().backend(options.backend).run(|| {
        let file = File::open(path)?;
        let mut last: HashMap<u32, u64> = HashMap::new();
        let (mut list, mut wrong) = (String::new(), None);
        let found = scan(
            |buf, offset| file.read_at(buf, offset),
            |payload| match label(payload) {
                Some((writer, count)) => {
                    if last.insert(writer, count).is_some_and(|before| before >= count) {
                        wrong.get_or_insert(format!("record {count} of writer {writer} follows a later one"));
                    }
                    if options.list {
                        list += &format!("{writer} {count}\n");
                    }
                }
                None => _ = wrong.get_or_insert("a complete record that no writer of this program wrote".to_string()),
            },
        )?;
        if let Some(wrong) = wrong {
            return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
        }
        found.check_foreign()?;
        let Scan { records, end, torn } = found;
        let tail = if torn { "; torn tail at the end" } else { "" };
        let blocks = end.div_ceil(BLOCK);
        Ok(format!("{list}{records} records of {} writers in {blocks} blocks{tail}\n", last.len()))
    })?
}

/// An unnamed file: it disappears when the process ends for any reason.
struct Scratch {
    path: PathBuf,
    _file: fs::File,
}

impl Scratch {
    fn new() -> Result<Scratch, String> {
        let name = std::env::temp_dir().join(format!("coralio-log-{}", process::id()));
        let make = || {
            let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&name)?;
            fs::remove_file(&name)?;
            io::Result::Ok(file)
        };
        let file = make().map_err(|error| format!("cannot create a scratch file {}: {error}", name.display()))?;
        Ok(Scratch { path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(), _file: file })
    }
}
