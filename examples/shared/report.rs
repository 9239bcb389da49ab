//! Messages on standard error that cannot fail.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes one line to standard error. Ignores failure: standard error may have no reader, and its disk may be full.
pub fn report(message: impl Display) {
    // One call, so that the lines of several threads do not mix.
    let _ = io::stderr().write_all(format!("{message}\n").as_bytes());
}
