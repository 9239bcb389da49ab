//! Reports of skipped tests: where the machine refuses an interface, a test, or a part of it, is
//! skipped with one line on standard error.

#![allow(dead_code)] // each test uses a part

use std::fmt::Display;
use std::io::{self, Write as _};

use coralio::RuntimeBuilder;
use coralio::driver::BackendKind;

/// Reports a skip on standard error. Bypasses the test harness, which captures macro output.
pub fn skipped(why: impl Display) {
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// Repeats the [`skipped`] lines in `said`, the standard error of a child process.
pub fn skipped_by_child(said: &[u8]) {
    String::from_utf8_lossy(said).lines().filter_map(|line| line.strip_prefix("skipped: ")).for_each(skipped);
}

/// Returns whether `error`, from running a context on this backend, means that the machine refuses
/// the interface; if so, reports it. Threads are never refused.
pub fn is_refused(backend: BackendKind, error: &io::Error) -> bool {
    let is_optional =
        matches!(backend, BackendKind::Aio | BackendKind::Uring) && error.kind() != io::ErrorKind::InvalidInput;
    if is_optional {
        skipped(error);
    }
    is_optional
}

/// Returns whether the machine offers this backend at this depth; if not, reports it.
pub fn has(backend: BackendKind, depth: u32) -> bool {
    RuntimeBuilder::new().backend(backend).queue_depth(depth).run(|| ()).map_err(skipped).is_ok()
}
