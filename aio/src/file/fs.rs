//! Operations of open files that the kernel performs only synchronously: they run on a thread pool
//! (rule E15).
//!
//! The closures borrow the file's descriptor: [`unblock`] neither returns nor unwinds before its
//! closure has ended, and the file is borrowed for that time.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};

use coralio_runtime::check_cancelled;

use crate::driver::unblock::unblock;
use crate::file::error::{ELSEWHERE, failed};

use super::File;

/// The likely cause of an error, and the remedy.
fn why(errno: i32) -> &'static str {
    match errno {
        libc::EBADF => "; the file is not open for writing: open it with File::options().write(true)",
        libc::ENOSPC => "; the file system is full: free some space",
        libc::EDQUOT => "; the disk quota is exhausted: free some space, or raise the quota",
        libc::EFBIG => "; the file would exceed the process's file-size limit (ulimit -f) or the file system's",
        libc::EOPNOTSUPP => {
            "; the file system does not support this (tmpfs, for one, cannot zero ranges): write zeroes instead"
        }
        libc::EPERM => "; the file is immutable, append-only, sealed, or a swap file",
        libc::ETXTBSY => "; the file is a running program or swap space",
        libc::EXDEV => {
            "; the paths are on different file systems: copy the file, sync the copy, then remove the original"
        }
        libc::ENOTCONN => ELSEWHERE,
        libc::ENOTEMPTY => "; the directory is not empty",
        libc::EACCES => "; check the permissions of the file and of the directories on its path",
        libc::ENOTDIR => "; a part of the path that should be a directory is not one",
        libc::ELOOP => "; the path has too many symbolic links: is one part of a loop?",
        libc::ENAMETOOLONG => "; a name has more than 255 bytes, or the path more than 4095: use shorter names",
        libc::EROFS => "; the file system is mounted read-only",
        libc::EMLINK => "; the file or directory has as many links as its file system allows",
        libc::EMFILE => "; close files, or raise the process's limit (ulimit -n)",
        _ => "",
    }
}

/// Adds the operation, the likely cause and the remedy to the kernel's error.
pub(super) fn explained<T>(what: impl FnOnce() -> String, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|cause| {
        let why = cause.raw_os_error().map_or("", why);
        failed(cause, what(), why.into())
    })
}

/// Runs `f` on the thread pool, and adds the operation to its error.
pub(super) fn off_the_loop<T: Send + 'static>(
    what: impl FnOnce() -> String,
    f: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    explained(what, unblock(f)?)
}

/// Converts a range to the kernel's types.
pub(super) fn range(offset: u64, len: u64) -> io::Result<(libc::off_t, libc::off_t)> {
    let end = offset.checked_add(len).filter(|&end| i64::try_from(end).is_ok());
    if len == 0 || end.is_none() {
        let message = format!("invalid range of {len} bytes at {offset}: must be at least one byte and end below 2^63");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    Ok((offset as libc::off_t, len as libc::off_t))
}

impl File {
    /// Fails with the same error as a request if the file belongs to another context.
    pub(super) fn check_context(&self, what: impl FnOnce() -> String) -> io::Result<()> {
        if self.engine.owner().is_here() {
            return Ok(());
        }
        explained(what, Err(io::Error::from_raw_os_error(libc::ENOTCONN)))
    }

    /// Runs `f` on this file, as a std `File`, on the thread pool.
    pub(super) fn with_std<T: Send + 'static>(
        &self,
        what: impl Fn() -> String,
        f: impl FnOnce(&fs::File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.check_context(&what)?;
        let fd = self.fd.as_fd().as_raw_fd();
        off_the_loop(what, move || {
            // SAFETY: the owner of the descriptor is borrowed until the closure has ended, and
            // `ManuallyDrop` keeps it open.
            f(&ManuallyDrop::new(unsafe { fs::File::from_raw_fd(fd) }))
        })
    }

    /// As `with_std`, in place where `fstat` never waits.
    pub(super) fn stat<T: Send + 'static>(
        &self,
        what: impl Fn() -> String,
        f: impl FnOnce(&fs::File) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if !self.stats_at_once {
            return self.with_std(what, f);
        }
        self.check_context(&what)?;
        check_cancelled()?;
        // SAFETY: the owner of the descriptor is borrowed, and `ManuallyDrop` keeps it open.
        let file = ManuallyDrop::new(unsafe { fs::File::from_raw_fd(self.fd.as_fd().as_raw_fd()) });
        explained(what, f(&file))
    }

    fn fallocate(&self, what: &str, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let (start, bytes) = range(offset, len)?;
        let what = || format!("{what} {len} bytes at {offset}");
        if let Some(file) = self.fd.as_simulated() {
            self.check_context(what)?;
            let [keeps_len, zeroes] =
                [libc::FALLOC_FL_KEEP_SIZE, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE]
                    .map(|bits| mode & bits != 0);
            let done = file.backend.perform(
                |files| format!("{} of {}", what(), files.open_name(file.number)),
                |files| files.allocate(file.number, offset, len, keeps_len, zeroes),
            );
            return explained(what, done);
        }
        self.with_std(what, move |file| {
            loop {
                // SAFETY: takes no pointers.
                if unsafe { libc::fallocate(file.as_raw_fd(), mode, start, bytes) } == 0 {
                    return Ok(());
                }
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        })
    }

    /// Returns the file's metadata: length, owner, permissions, times. For a regular file of a
    /// local file system ([`OpenOptions::open`](crate::OpenOptions::open) lists them) the call is
    /// immediate; otherwise it is made on the thread pool.
    ///
    /// # Errors
    ///
    /// The kernel's error, with cause and remedy; and as [`unblock`]. `NotConnected`: the file
    /// belongs to another context. `Unsupported`: the file is [simulated](mod@crate::simulate).
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`].
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        if self.fd.as_simulated().is_some() {
            self.check_context(|| "reading a file's metadata".into())?;
            let message = "a simulated file has only a length as metadata: use File::len";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        self.stat(|| "reading a file's metadata".into(), fs::File::metadata)
    }

    /// Returns the length in bytes, also of a block device. Immediate where
    /// [`metadata`](File::metadata) is immediate.
    ///
    /// # Errors
    ///
    /// As [`metadata`](File::metadata).
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`].
    pub fn len(&self) -> io::Result<u64> {
        let what = || "reading a file's length".into();
        if let Some(file) = self.fd.as_simulated() {
            self.check_context(what)?;
            return explained(what, file.backend.files().len(file.number));
        }
        self.stat(what, |mut file| {
            let metadata = file.metadata()?;
            if metadata.is_file() {
                return Ok(metadata.len());
            }
            // The length of a block device is the position of its end. The descriptor's own offset
            // is not used otherwise.
            io::Seek::seek(&mut file, io::SeekFrom::End(0))
        })
    }

    /// Returns whether the file's length is 0.
    ///
    /// # Errors
    ///
    /// As [`len`](File::len).
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`].
    pub fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// Truncates the file to `len` bytes, or extends it with a hole.
    ///
    /// # Errors
    ///
    /// The kernel's error, with cause and remedy; and as [`unblock`]. `NotConnected`: the file
    /// belongs to another context.
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`].
    #[doc(alias("ftruncate", "truncate"))]
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        let what = || format!("setting a file's length to {len}");
        if let Some(file) = self.fd.as_simulated() {
            self.check_context(what)?;
            let done = file.backend.perform(
                |files| format!("setting the length of {} to {len}", files.open_name(file.number)),
                |files| files.set_len(file.number, len),
            );
            return explained(what, done);
        }
        self.with_std(what, move |file| {
            file.set_len(len).map_err(|error| match error.raw_os_error() {
                // For a file that is not open for writing the kernel returns EINVAL.
                Some(libc::EINVAL) if len <= i64::MAX as u64 => io::Error::from_raw_os_error(libc::EBADF),
                _ => error,
            })
        })
    }

    /// Reserves space for a range, so that writing there does not fail for lack of space. Unwritten
    /// parts read as zeroes; the file grows if the range extends beyond its end.
    ///
    /// # Errors
    ///
    /// The kernel's error, with cause and remedy; `InvalidInput` for an invalid range; and as
    /// [`unblock`]. `NotConnected`: the file belongs to another context.
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`].
    #[doc(alias = "fallocate")]
    pub fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate("allocating", 0, offset, len)
    }

    /// Releases the space of a range, which then reads as zeroes. The file's length does not
    /// change.
    ///
    /// # Errors
    ///
    /// As [`allocate`](File::allocate).
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`].
    #[doc(alias = "punch_hole")]
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate("discarding", libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
    }

    /// Zeroes a range and reserves its space, mostly without writing; the file grows if the range
    /// extends beyond its end.
    ///
    /// # Errors
    ///
    /// As [`allocate`](File::allocate).
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`].
    #[doc(alias = "write_zeroes")]
    pub fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate("zeroing", libc::FALLOC_FL_ZERO_RANGE, offset, len)
    }
}
