//! Locks on single bytes of an image file. They declare what this program does with the image and
//! what other programs must not do. QEMU's programs use the same bytes.
//!
//! ```text
//!   byte 100 + n   a program does it       n = 0  reads consistent data
//!   byte 200 + n   a program forbids it    n = 1  writes
//!                                          n = 3  changes the length
//! ```
//!
//! All locks are shared, so that any number of programs can hold them. Each program first takes its
//! own locks and then looks for conflicting ones, so of two programs that start concurrently at
//! least one sees the other. The locks belong to the open file description, not to the process.
//! Dropping a [`Lock`] releases them explicitly, because a process forked by another thread shares
//! the description until its exec.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::open::Format;

/// Values of n in the table above.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

const DONE: i64 = 100;
const UNWANTED: i64 = 200;

/// The locks of an image, held until dropped.
#[derive(Debug)]
pub(crate) enum Lock {
    /// The locks of one open image.
    Single { _locks: Locks },
    /// Shares the locks of a raw image that this process writes, possibly on several threads.
    Common { file: FileId, taken_by: u32 },
}

/// Device and inode number.
type FileId = (u64, u64);

/// The raw images that this process writes. Each open instance counts as a user.
static COMMON: Mutex<Vec<Common>> = Mutex::new(Vec::new());

struct Common {
    file: FileId,
    users: usize,
    locks: Locks,
}

impl Lock {
    /// Locks the image at `path`. One program can write an image, or any number can read it,
    /// regardless of the format.
    ///
    /// Within this process, a raw image may be open for writing several times: it has no cached
    /// metadata that could diverge.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` if the locks of another program conflict; the kernel's errors.
    pub(crate) fn take(path: &Path, format: Format, write: bool) -> io::Result<Lock> {
        let file = fs::File::open(path)?;
        match (format, write) {
            (Format::Raw, true) => Lock::take_common(file),
            (Format::Qcow2, true) => Lock::single(file, &[READ, WRITE, RESIZE]),
            (_, false) => Lock::single(file, &[READ]),
        }
    }

    fn single(file: fs::File, does: &'static [i64]) -> io::Result<Lock> {
        Ok(Lock::Single { _locks: Locks::take(file, does)? })
    }

    fn take_common(file: fs::File) -> io::Result<Lock> {
        let metadata = file.metadata()?;
        let id = (metadata.dev(), metadata.ino());
        let mut all = common();
        match all.iter_mut().find(|common| common.file == id && common.locks.are_ours()) {
            Some(common) => common.users += 1,
            None => all.push(Common { file: id, users: 1, locks: Locks::take(file, &[READ, WRITE])? }),
        }
        Ok(Lock::Common { file: id, taken_by: process::id() })
    }
}

fn common() -> MutexGuard<'static, Vec<Common>> {
    COMMON.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Lock {
    fn drop(&mut self) {
        let Lock::Common { file, taken_by } = *self else { return };
        // In a forked process the mutex may be locked forever by a thread that does not exist
        // there.
        if taken_by != process::id() {
            return;
        }
        let mut all = common();
        let mine = |common: &Common| common.file == file && common.locks.are_ours();
        let at = all.iter().position(mine).expect("the image is locked until drop");
        all[at].users -= 1;
        if all[at].users == 0 {
            all.swap_remove(at);
        }
    }
}

/// The locks held through one open file.
#[derive(Debug)]
pub(crate) struct Locks {
    /// A separate file: the image's file may be closed later, by a thread of the pool.
    file: fs::File,
    /// The process that took the locks. A process forked from it shares them and must not release
    /// them.
    taken_by: u32,
}

impl Locks {
    fn take(file: fs::File, does: &'static [i64]) -> io::Result<Locks> {
        let refuses = &[WRITE, RESIZE];
        let locks = Locks { file, taken_by: process::id() };
        let bytes = |actions: &'static [i64], from: i64| actions.iter().map(move |action| from + action);
        for byte in bytes(does, DONE).chain(bytes(refuses, UNWANTED)) {
            locks.ask(libc::F_OFD_SETLK, libc::F_RDLCK, byte..byte + 1)?;
        }
        for byte in bytes(refuses, DONE).chain(bytes(does, UNWANTED)) {
            // Check whether an exclusive lock of the byte would succeed.
            if locks.ask(libc::F_OFD_GETLK, libc::F_WRLCK, byte..byte + 1)? != libc::F_UNLCK {
                return Err(busy(byte));
            }
        }
        Ok(locks)
    }

    fn are_ours(&self) -> bool {
        self.taken_by == process::id()
    }

    /// Sets or queries a lock on a byte range. Returns the lock type that the kernel reports.
    fn ask(&self, command: libc::c_int, kind: libc::c_int, bytes: Range<i64>) -> io::Result<libc::c_int> {
        // SAFETY: plain data, for which zero is valid. `l_pid` must be 0.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        (lock.l_start, lock.l_len) = (bytes.start, bytes.end - bytes.start);
        // SAFETY: the kernel accesses only this structure, which outlives the call.
        match unsafe { libc::fcntl(self.file.as_raw_fd(), command, &raw mut lock) } {
            0 => Ok(lock.l_type.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        if self.are_ours() {
            // If that fails, the locks end when the last process closes the file.
            let _ = self.ask(libc::F_OFD_SETLK, libc::F_UNLCK, DONE..UNWANTED + 100);
        }
    }
}

fn busy(byte: i64) -> io::Error {
    let what = match byte {
        101 => "it is already open for writing",
        103 => "it is already open by a user that may resize it",
        200 => "it is already open by a user that does not share reads",
        201 => "it is already open by a user that does not share writes",
        _ => "it is already open by a user that does not share resizes",
    };
    let remedy = "close it there, or do not open it twice here; using it without locks may corrupt it";
    io::Error::new(io::ErrorKind::ResourceBusy, format!("the image is in use: {what}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` with a function that locks a temporary image.
    fn locked(name: &str, body: impl FnOnce(&dyn Fn() -> io::Result<Locks>)) {
        let path = format!("/dev/shm/coralio-lock-{name}-{}", process::id());
        fs::write(&path, "").unwrap();
        body(&|| Locks::take(fs::File::open(&path)?, &[READ, WRITE]));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn locks_end_while_the_file_is_open_elsewhere() {
        // qcow2: as in a process forked by another thread, before its exec
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
    fn child_does_not_release_the_parents_locks() {
        // E13, qcow2: a forked process drops the value inherited from its parent
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
