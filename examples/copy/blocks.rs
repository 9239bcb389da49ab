//! Which blocks there are to copy: the source's data, cut up. Holes are passed over, so that they stay holes.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A piece of the file.
pub struct Block {
    pub offset: u64,
    /// How much to read and write: whole steps of direct I/O, so the last one may go beyond the file's end.
    pub len: usize,
    /// How much of that is the file's.
    pub bytes: usize,
}

/// Hands out the blocks, one after the other.
pub struct Blocks {
    /// Length of the file.
    len: u64,
    block_size: u64,
    /// What offsets and lengths must be multiples of.
    step: u64,
    next: u64,
    /// Where the data that `next` lies in ends; not beyond `next` if that is yet to be looked up.
    data_end: u64,
}

impl Blocks {
    /// `block_size` is a multiple of `step`.
    pub fn new(len: u64, block_size: u64, step: u64) -> Blocks {
        Blocks { len, block_size, step, next: 0, data_end: 0 }
    }

    /// The next block of `file`, if there is data left.
    pub fn next(&mut self, file: BorrowedFd<'_>) -> io::Result<Option<Block>> {
        if self.next >= self.data_end {
            match next_data(file, self.next)? {
                Some(data) if data.start < self.len => {
                    // Outwards to whole steps, which is less than a step of a hole at either end.
                    self.next = data.start / self.step * self.step;
                    self.data_end = data.end.min(self.len).next_multiple_of(self.step);
                }
                _ => return Ok(None),
            }
        }
        let offset = self.next;
        self.next = self.data_end.min(offset + self.block_size);
        let bytes = self.next.min(self.len) - offset;
        Ok(Some(Block { offset, len: (self.next - offset) as usize, bytes: bytes as usize }))
    }
}

/// The first range of data at `from` or after it; none if only a hole follows, or nothing.
///
/// The kernel knows (`SEEK_DATA`, `SEEK_HOLE`); reading and looking for zeros would be slower, and would make holes of
/// zeros that somebody wrote to have their space reserved. A file system without holes says that all is data.
fn next_data(file: BorrowedFd<'_>, from: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |offset: u64, whence| {
        // SAFETY: lseek takes no pointers. It moves the descriptor's own offset, which nobody uses.
        let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    match seek(from, libc::SEEK_DATA).and_then(|start| Ok(start..seek(start, libc::SEEK_HOLE)?)) {
        Ok(data) => Ok(Some(data)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENXIO) => Ok(None),
            Some(libc::EINVAL) => Ok(Some(from..u64::MAX)),
            _ => Err(error),
        },
    }
}
