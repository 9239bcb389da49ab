//! Messages on standard error that can neither fail nor block.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes one line to standard error. The line is lost if standard error has no reader or no room: a program must not stop
/// because nobody reads its messages.
pub fn report(message: impl Display) {
    if has_room() {
        // One call, so that the lines of several threads do not mix.
        let _ = io::stderr().write_all(format!("{message}\n").as_bytes());
    }
}

/// Whether a line can be written to standard error at once. A pipe that has room has it for a page.
fn has_room() -> bool {
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the call reads and writes the one structure.
    unsafe { libc::poll(&raw mut stderr, 1, 0) == 1 }
}
