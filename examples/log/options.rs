//! The command line, and what of it makes no sense.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use coralio_aio::KernelChoice;

use crate::trace::TraceOption;

use crate::record::LONGEST;

/// What says who wrote a record, and when, in every payload.
pub const LABEL: usize = 12;

/// An append-only log with group commit: several writers, one write and one sync for all that wait
///
/// FILE is made, or gone on with: what is whole in it is kept, a torn tail is cut off. Each record is acknowledged when it is
/// on the medium. FILE is locked against a second writer meanwhile.
#[derive(Parser, Debug)]
#[command(name = "log")]
pub struct Options {
    /// The log; left out: a scratch file, gone afterwards
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,

    /// Writers, each with one record at a time
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub writers: u32,

    /// Bytes of each record, without its header
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub payload: usize,

    /// Before each record a writer lets the others run up to so many times, each writer another number, so that not all
    /// are in one batch
    #[arg(long, value_name = "TURNS", default_value_t = 0)]
    pub stagger: u32,

    /// How long each round takes
    #[arg(long, value_name = "S", default_value_t = 5.0, conflicts_with = "records")]
    pub seconds: f64,

    /// Each writer appends exactly this many records instead
    #[arg(long, value_name = "N")]
    pub records: Option<u64>,

    /// Through which of the kernel's interfaces: auto, aio, uring, threads
    #[arg(long, default_value_t = KernelChoice::Auto)]
    pub kernel: KernelChoice,

    #[command(flatten)]
    pub trace: TraceOption,

    /// Stay on this CPU, so that the figures are of one
    #[arg(long, value_name = "CPU")]
    pub pin: Option<usize>,

    /// Set it against the same log on threads, in turns
    #[arg(long, value_enum)]
    pub versus: Option<Versus>,

    /// How many turns each of both has
    #[arg(long, value_name = "N", default_value_t = 5, requires = "versus")]
    pub rounds: u32,

    /// Print "WRITER COUNT" of each record when it is acknowledged
    #[arg(long, conflicts_with = "versus")]
    pub acknowledge: bool,

    /// Append nothing: check FILE, and say what is in it
    #[arg(long, requires = "file", conflicts_with_all = ["versus", "acknowledge", "records"])]
    pub verify: bool,

    /// Print "WRITER COUNT" of each record that is in it
    #[arg(long, requires = "verify")]
    pub list: bool,
}

/// What to be set against.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Versus {
    /// A thread for each writer, a Mutex and Condvars, plain system calls
    Threads,
}

impl Options {
    /// Refuses what the parser can't know to be nonsense.
    pub fn check(&self) -> Result<(), String> {
        if self.writers == 0 {
            return Err("--writers 0 leaves nobody to append; give 1 or more".into());
        }
        if self.payload < LABEL || self.payload > LONGEST {
            return Err(format!("--payload {} can't be a record's; give {LABEL} to {LONGEST}", self.payload));
        }
        if self.rounds == 0 {
            return Err("--rounds 0 measures nothing; give 1 or more".into());
        }
        if !(self.seconds > 0.0 && Duration::try_from_secs_f64(self.seconds).is_ok()) {
            return Err(format!("--seconds {} is no time to write in; give more than 0", self.seconds));
        }
        Ok(())
    }
}
