//! Messages on standard error. Failures to write them are ignored.
//!
//! `eprintln!` panics if standard error has no reader or its disk is full. The end of a context, or
//! a process about to abort, must not depend on that, so both libraries and all programs write
//! their messages through [`report`] only.

use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{io, mem};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Writes `message` to standard error, adding a newline if it has none. Ignores every failure:
/// there is nowhere left to report it. If standard error is a pipe that stays full for 100 ms, the
/// rest of the message is dropped: a stopped reader must not stop the program.
///
/// Allocates nothing and takes no lock, so a signal handler may call it if formatting `message`
/// does neither. A message of up to 1 KiB is one system call. A panic of a `Display` implementation
/// truncates the message and does not propagate.
///
/// For this workspace's own crates and programs.
#[doc(hidden)]
pub fn report(message: impl fmt::Display) {
    write(format_args!("{message}"));
}

fn write(message: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 1024], len: 0, ended: false };
    let formatted = catch_unwind(AssertUnwindSafe(|| line.write_fmt(message)));
    if let Err(payload) = formatted {
        // Dropping the payload could panic again.
        mem::forget(payload);
        let _ = line.write_str(" (the rest of the message could not be formatted)");
    }
    if !line.ended {
        let _ = line.write_str("\n");
    }
    line.flush();
}

/// A buffer in front of standard error.
struct Line {
    bytes: [u8; 1024],
    len: usize,
    /// Whether the last byte written was a newline.
    ended: bool,
}

impl Line {
    fn flush(&mut self) {
        write_all(&self.bytes[..self.len]);
        self.len = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > self.bytes.len() - self.len {
            self.flush();
        }
        match self.bytes.get_mut(self.len..self.len + text.len()) {
            Some(room) => {
                room.copy_from_slice(text.as_bytes());
                self.len += text.len();
            }
            None => write_all(text.as_bytes()),
        }
        self.ended = text.as_bytes().last().map_or(self.ended, |&byte| byte == b'\n');
        Ok(())
    }
}

/// Waits up to 100 ms until standard error accepts bytes. A pipe that is ready has room for a page.
fn has_room(stderr: &io::Stderr) -> bool {
    let time = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    poll(&mut [PollFd::new(stderr, PollFlags::OUT)], Some(&time)) == Ok(1)
}

fn write_all(mut bytes: &[u8]) {
    let stderr = io::stderr();
    while !bytes.is_empty() && has_room(&stderr) {
        // At most a page: `has_room` guarantees no more, and a longer write to a pipe blocks until
        // the reader has taken the rest. Without std's own lock, which the stopped thread may hold.
        match rustix::io::write(&stderr, &bytes[..bytes.len().min(libc::PIPE_BUF)]) {
            Ok(written @ 1..) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            _ => return,
        }
    }
}

/// Reports `why` and aborts the process: for states in which continuing would be undefined.
#[cold]
pub(crate) fn abort(why: fmt::Arguments<'_>) -> ! {
    report(format_args!("coralio: {why}"));
    std::process::abort()
}
