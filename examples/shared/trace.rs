//! `--trace FILE`, for every program here.

use std::path::{Path, PathBuf};

use clap::Args;
use coralio_aio::Runner;
use coralio_aio::trace::{Format, Trace};

#[derive(Args, Clone, Debug, Default)]
pub struct TraceOption {
    /// Write what ran when to FILE: a page for a browser (.html), for Perfetto (.json), or text (.txt)
    #[arg(id = "trace", long = "trace", value_name = "FILE", value_parser = path)]
    pub file: Option<PathBuf>,
}

impl TraceOption {
    /// A log of the last `events`, if one is wanted.
    pub fn log(&self, events: usize) -> Option<Trace> {
        self.file.as_ref().map(|_| Trace::new(events))
    }

    /// Writes it to where it is wanted.
    pub fn save(&self, trace: Option<&Trace>) -> Result<(), String> {
        let (Some(file), Some(trace)) = (&self.file, trace) else { return Ok(()) };
        let recording = trace.recording();
        recording.write(file).map_err(|error| format!("--trace {error}"))?;
        eprintln!("{}: the last {} events", file.display(), recording.records.len());
        Ok(())
    }
}

/// A runner that tells the log, if there is one, what happens.
pub fn traced(runner: Runner, trace: Option<&Trace>) -> Runner {
    trace.into_iter().fold(runner, Runner::trace)
}

/// Known before the work is done: the ending says how to write it.
fn path(text: &str) -> Result<PathBuf, String> {
    Format::of(Path::new(text)).map(|_| text.into()).map_err(|error| error.to_string())
}
