//! Data and holes of a file, as reported by the kernel.

#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Returns the first range of data at or after `from`, in bytes, or `None` if no data follows.
///
/// Asks the kernel (`SEEK_DATA`, `SEEK_HOLE`). Reading and looking for zeros would be slower, and
/// would treat zeros that were written to reserve space as holes. A file system without holes
/// reports that everything is data.
///
/// # Errors
///
/// The kernel's.
///
/// # Control
///
/// Never yields, but may block the thread while the file system reads its block map.
pub fn next_data(file: BorrowedFd<'_>, from: u64) -> io::Result<Option<Range<u64>>> {
    let Some(start) = data_start(file, from)? else { return Ok(None) };
    let end = match seek(file, start, libc::SEEK_HOLE) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => u64::MAX,
        end => end?,
    };
    Ok(Some(start..end))
}

/// Like [`next_data`], without looking for the end of the data: on tmpfs the kernel would scan it
/// page by page.
pub(crate) fn data_start(file: BorrowedFd<'_>, from: u64) -> io::Result<Option<u64>> {
    match seek(file, from, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Some(from)),
        start => start.map(Some),
    }
}

/// Returns the current length of the file. Neither yields nor blocks.
pub(crate) fn file_end(file: BorrowedFd<'_>) -> io::Result<u64> {
    seek(file, 0, libc::SEEK_END)
}

fn seek(file: BorrowedFd<'_>, offset: u64, whence: libc::c_int) -> io::Result<u64> {
    // SAFETY: lseek takes no pointers. It moves the descriptor's own offset, which is not used.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}
