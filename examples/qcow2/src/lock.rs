//! What other programs must not do with an image that is open here, and what they do not want done: told by locks on single
//! bytes of the file, as QEMU's programs tell each other.
//!
//! ```text
//!   byte 100 + n   somebody does it       n = 0  reads, and relies on what it reads
//!   byte 200 + n   somebody does not      n = 1  writes
//!                  want it done           n = 3  changes the length
//! ```
//!
//! All locks are shared ones, so that any number of programs has them. Each takes its own first, and looks for what is
//! against it then: of two that come at once, one sees the other. The locks belong to the open file, not to the process. They
//! are given back, and not left to end when it is closed: a process that another thread forks has it open, too, until its exec.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process;

use crate::open::Format;

/// By these numbers, as in the table above.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

const DONE_BY_SOMEBODY: i64 = 100;
const UNWANTED_BY_SOMEBODY: i64 = 200;

/// An image's locks, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    /// Of its own: what it is about may be closed later, by a thread that has the time.
    file: fs::File,
    /// The process that took them. One that was forked of it has them in common with it, and must not give them back.
    taken_by: u32,
}

impl Lock {
    /// Locks the image at `path` for what is done with it. A qcow2 image is written by one alone, and not while others read it;
    /// the bytes of a raw one are anybody's, but not its length.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` if another one's locks are against it; what the kernel says.
    pub(crate) fn take(path: &Path, format: Format, write: bool) -> io::Result<Lock> {
        let (does, refuses): (&[i64], &[i64]) = match (format, write) {
            (Format::Qcow2, true) => (&[READ, WRITE, RESIZE], &[WRITE, RESIZE]),
            (Format::Qcow2, false) => (&[READ], &[WRITE, RESIZE]),
            (Format::Raw, true) => (&[READ, WRITE], &[RESIZE]),
            (Format::Raw, false) => (&[READ], &[RESIZE]),
        };
        let lock = Lock { file: fs::File::open(path)?, taken_by: process::id() };
        let bytes = |actions: &'static [i64], from: i64| actions.iter().map(move |action| from + action);
        for byte in bytes(does, DONE_BY_SOMEBODY).chain(bytes(refuses, UNWANTED_BY_SOMEBODY)) {
            lock.ask(libc::F_OFD_SETLK, libc::F_RDLCK, byte..byte + 1)?;
        }
        for byte in bytes(refuses, DONE_BY_SOMEBODY).chain(bytes(does, UNWANTED_BY_SOMEBODY)) {
            // Whether it could have the byte for itself alone.
            if lock.ask(libc::F_OFD_GETLK, libc::F_WRLCK, byte..byte + 1)? != libc::F_UNLCK {
                return Err(busy(byte));
            }
        }
        Ok(lock)
    }

    /// Asks the kernel about a lock on some bytes. Returns the lock's type as it is then.
    fn ask(&self, command: libc::c_int, kind: libc::c_int, bytes: Range<i64>) -> io::Result<libc::c_int> {
        // SAFETY: plain data, for which zero is valid. The process must be 0 in it.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        (lock.l_start, lock.l_len) = (bytes.start, bytes.end - bytes.start);
        // SAFETY: the kernel reads and writes the one structure, which outlives the call.
        match unsafe { libc::fcntl(self.file.as_raw_fd(), command, &raw mut lock) } {
            0 => Ok(lock.l_type.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.taken_by == process::id() {
            // If the kernel refuses, they end with the last who has it open.
            let _ = self.ask(libc::F_OFD_SETLK, libc::F_UNLCK, DONE_BY_SOMEBODY..UNWANTED_BY_SOMEBODY + 100);
        }
    }
}

fn busy(byte: i64) -> io::Error {
    let what = match byte {
        101 => "somebody has it open for writing",
        103 => "somebody has it open, and may change its length",
        200 => "somebody has it open, and wants nobody to read it",
        201 => "somebody has it open, and wants nobody to write it",
        _ => "somebody has it open, and wants nobody to change its length",
    };
    let remedy = "end that program, or leave out what opens it twice here; to go on without locks may destroy it";
    io::Error::new(io::ErrorKind::ResourceBusy, format!("the image is in use: {what}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With an image of its own.
    fn locked(name: &str, body: impl FnOnce(&dyn Fn() -> io::Result<Lock>)) {
        let path = format!("/dev/shm/coralio-lock-{name}-{}", process::id());
        fs::write(&path, "").unwrap();
        body(&|| Lock::take(path.as_ref(), Format::Qcow2, true));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn they_end_though_the_file_is_open_elsewhere() {
        // qcow2: as in a process that another thread has forked, before its exec
        locked("ends", |take| {
            let first = take().unwrap();
            let forked = first.file.try_clone().unwrap();
            assert_eq!(take().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
            drop(first);
            take().unwrap();
            drop(forked);
        });
    }

    #[test]
    fn a_child_does_not_give_back_its_parents() {
        // E13, qcow2: a forked process drops what it got of its parent
        locked("child", |take| {
            let first = take().unwrap();
            // SAFETY: the child makes system calls, and nothing else.
            unsafe {
                let child = libc::fork();
                if child == 0 {
                    drop(first);
                    libc::_exit(0);
                }
                let mut status = 1;
                assert_eq!((libc::waitpid(child, &raw mut status, 0), status), (child, 0));
            }
            assert_eq!(take().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
            drop(first);
        });
    }
}
