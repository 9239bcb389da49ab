//! `--trace FILE`, for every program here.

use std::path::{Path, PathBuf};

use clap::Args;
use coralio_aio::Runner;
use coralio_aio::trace::{Format, Trace};

#[derive(Args, Clone, Debug, Default)]
pub struct TraceOption {
    /// Write what ran when to FILE: a page for a browser (.html), for Perfetto (.json), or text (.txt)
    #[arg(long = "trace", value_name = "FILE", value_parser = path)]
    pub file: Option<PathBuf>,
}

impl TraceOption {
    /// Runs `work`, with a log of the last `events` of it if one is wanted. It is written also if `work` fails.
    pub fn run<T>(
        &self,
        runner: Runner,
        events: usize,
        work: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let Some(file) = &self.file else {
            return runner.run(work).map_err(|error| error.to_string())?;
        };
        let trace = Trace::new(events);
        let result = runner.trace(&trace).run(work).map_err(|error| error.to_string());
        let recording = trace.recording();
        recording.write(file).map_err(|error| format!("--trace {error}"))?;
        eprintln!("{}: the last {} events", file.display(), recording.records.len());
        result?
    }
}

/// Known before the work is done: the ending says how to write it.
fn path(text: &str) -> Result<PathBuf, String> {
    Format::of(Path::new(text)).map(|_| text.into()).map_err(|error| error.to_string())
}
