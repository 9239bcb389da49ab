//! Where a file has data, and where it has holes: the kernel knows.

#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The first range of data at `from` or after it, in bytes; none if only a hole follows, or nothing.
///
/// The kernel knows (`SEEK_DATA`, `SEEK_HOLE`); reading and looking for zeros would be slower, and would make holes of
/// zeros that somebody wrote to have their space reserved. A file system without holes says that all is data.
///
/// # Errors
///
/// What the kernel says.
///
/// # Control
///
/// Never switches; the thread waits if the file system has to read where its data lies.
pub fn next_data(file: BorrowedFd<'_>, from: u64) -> io::Result<Option<Range<u64>>> {
    let Some(start) = data_start(file, from)? else { return Ok(None) };
    let end = match seek(file, start, libc::SEEK_HOLE) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => u64::MAX,
        end => end?,
    };
    Ok(Some(start..end))
}

/// As [`next_data`], without looking for the data's end: in memory, the kernel goes through all of it page by page.
pub(crate) fn data_start(file: BorrowedFd<'_>, from: u64) -> io::Result<Option<u64>> {
    match seek(file, from, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Some(from)),
        start => start.map(Some),
    }
}

/// How many bytes the file has now. Never switches, and does not wait.
pub(crate) fn file_end(file: BorrowedFd<'_>) -> io::Result<u64> {
    seek(file, 0, libc::SEEK_END)
}

fn seek(file: BorrowedFd<'_>, offset: u64, whence: libc::c_int) -> io::Result<u64> {
    // SAFETY: lseek takes no pointers. It moves the descriptor's own offset, which nobody uses.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}
