//! The option `--trace FILE`, shared by all examples.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use coralio::trace::{Format, Trace};
use coralio::{RuntimeBuilder, report};

/// Maximum number of events kept; older ones are overwritten.
const EVENTS: usize = 100_000;

#[derive(Args, Clone, Debug, Default)]
pub struct TraceOption {
    /// Write a trace to FILE: a web page (.html), Perfetto with times (.json), or text (.txt)
    #[arg(id = "trace", long = "trace", value_name = "FILE", value_parser = path)]
    pub file: Option<PathBuf>,
}

impl TraceOption {
    /// Runs `work` and writes the trace if one is requested. If both fail, returns the error of
    /// `work`.
    pub fn run<T>(
        &self,
        builder: RuntimeBuilder,
        refused: impl FnOnce(io::Error) -> String,
        work: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let Some(file) = &self.file else { return builder.run(work).map_err(refused).flatten() };
        let trace = Trace::new(EVENTS);
        // A page shows the source too.
        let trace =
            if Format::of(file).is_ok_and(|format| format == Format::Html) { trace.with_source() } else { trace };
        let result = builder.trace(&trace).run(work).map_err(refused).flatten();
        let recording = trace.recording();
        let message = match recording.write(file) {
            Ok(()) => {
                let which = if recording.lost == 0 { "all" } else { "the last" };
                format!("{}: {which} {} events", file.display(), recording.records.len())
            }
            Err(error) if result.is_ok() => return Err(format!("--trace {error}")),
            Err(error) => format!("--trace {error}"),
        };
        report(format_args!("{message}"));
        result
    }
}

/// Checks the extension, which selects the format, before the work begins.
fn path(text: &str) -> Result<PathBuf, String> {
    Format::of(Path::new(text)).map(|_| text.into()).map_err(|error| error.to_string())
}
