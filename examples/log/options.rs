//! The command line and its validation.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use coralio::BackendKind;

use crate::trace::TraceOption;

use crate::record::LONGEST;

/// Length of the label in each payload: the writer and its record count.
pub const LABEL: usize = 12;

/// An append-only log with group commit: several writers share one write and one sync
///
/// FILE is created, or continued: complete records are kept and a torn tail is truncated. Each
/// record is acknowledged when it is on stable storage. FILE is locked against a second writer.
#[derive(Parser, Debug)]
#[command(name = "log")]
pub struct Options {
    /// The log [default: a scratch file]
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,

    /// Number of writers, each with one record at a time
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub writers: u32,

    /// Size of each record in bytes, without its header
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub payload: usize,

    /// Before each record a writer yields up to this number of times, depending on the writer, so
    /// that not all records are in one batch
    #[arg(long, value_name = "TURNS", default_value_t = 0)]
    pub stagger: u32,

    /// Duration of each round in seconds
    #[arg(long, value_name = "S", default_value_t = 5.0, conflicts_with = "records")]
    pub seconds: f64,

    /// Exact number of records of each writer, instead of a duration
    #[arg(long, value_name = "N")]
    pub records: Option<u64>,

    /// Backend: auto, aio, uring, threads
    #[arg(long, default_value_t = BackendKind::Auto)]
    pub backend: BackendKind,

    #[command(flatten)]
    pub trace: TraceOption,

    /// Pin to this CPU, so that the figures are those of one CPU
    #[arg(long, value_name = "CPU")]
    pub pin: Option<usize>,

    /// Compare with the same log on threads, in alternating rounds
    #[arg(long, value_enum)]
    pub versus: Option<Versus>,

    /// Number of rounds of each side
    #[arg(long, value_name = "N", default_value_t = 5, requires = "versus")]
    pub rounds: u32,

    /// Print "WRITER COUNT" for each record when it is acknowledged
    #[arg(long, conflicts_with = "versus")]
    pub acknowledge: bool,

    /// Append nothing; check FILE and report its content
    #[arg(long, requires = "file", conflicts_with_all = ["versus", "acknowledge", "records"])]
    pub verify: bool,

    /// Print "WRITER COUNT" for each record in FILE
    #[arg(long, requires = "verify")]
    pub list: bool,
}

/// The implementation to compare with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Versus {
    /// One thread per writer, with a Mutex, Condvars and plain system calls
    Threads,
}

impl Options {
    /// Rejects values that the parser cannot detect.
    pub fn check(&self) -> Result<(), String> {
        if self.writers == 0 {
            return Err("invalid --writers 0: must be at least 1".into());
        }
        if self.payload < LABEL || self.payload > LONGEST {
            return Err(format!("invalid --payload {}: must be {LABEL} to {LONGEST}", self.payload));
        }
        if self.rounds == 0 {
            return Err("invalid --rounds 0: must be at least 1".into());
        }
        if !(self.seconds > 0.0 && Duration::try_from_secs_f64(self.seconds).is_ok()) {
            return Err(format!("invalid --seconds {}: must be more than 0", self.seconds));
        }
        Ok(())
    }
}
