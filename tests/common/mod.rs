//! What a machine may refuse to a test: the test, or the part of it, is then skipped with one line on standard error.

#![allow(dead_code)] // each test uses a part

use std::fmt::Display;
use std::io::{self, Write as _};

use coralio_aio::{KernelChoice, Runner};

/// Reports on standard error what was skipped: past the test harness, which keeps what macros print.
pub fn skipped(why: impl Display) {
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// Repeats what a child process, whose standard error is `said`, has reported by [`skipped`].
pub fn skipped_by_child(said: &[u8]) {
    String::from_utf8_lossy(said).lines().filter_map(|line| line.strip_prefix("skipped: ")).for_each(skipped);
}

/// Whether `error`, of a context on this kernel interface, means that the machine refuses the interface, which is reported.
/// Threads are never refused.
pub fn is_refused(kernel: KernelChoice, error: &io::Error) -> bool {
    let is_optional =
        matches!(kernel, KernelChoice::Aio | KernelChoice::Uring) && error.kind() != io::ErrorKind::InvalidInput;
    if is_optional {
        skipped(error);
    }
    is_optional
}

/// Whether the machine has this kernel interface, at this depth; if not, that is reported.
pub fn has(kernel: KernelChoice, depth: u32) -> bool {
    Runner::new().kernel(kernel).depth(depth).run(|| ()).map_err(|error| skipped(error)).is_ok()
}
