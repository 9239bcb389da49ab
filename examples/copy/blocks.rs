//! Splits the data of the source into blocks to copy. Holes are skipped, so they stay holes.

use std::io;
use std::os::fd::BorrowedFd;

use coralio_qcow2::next_data;

/// A block of the file.
pub struct Block {
    pub offset: u64,
    /// The length to read and write: a multiple of the direct I/O alignment, so the last block may
    /// extend beyond the end of the file.
    pub len: usize,
    /// The number of these bytes that belong to the file.
    pub bytes: usize,
}

/// Iterates over the blocks.
pub struct Blocks {
    /// The length of the file.
    len: u64,
    block_size: u64,
    /// The alignment of offsets and lengths.
    step: u64,
    next: u64,
    /// The end of the data range that contains `next`; not beyond `next` if it is not known yet.
    data_end: u64,
}

impl Blocks {
    /// Creates the iterator. `block_size` must be a multiple of `step`.
    pub fn new(len: u64, block_size: u64, step: u64) -> Blocks {
        Blocks { len, block_size, step, next: 0, data_end: 0 }
    }

    /// Returns the next block of `file`, if there is data left.
    pub fn next(&mut self, file: BorrowedFd<'_>) -> io::Result<Option<Block>> {
        if self.next >= self.data_end {
            match next_data(file, self.next)? {
                Some(data) if data.start < self.len => {
                    // Round outwards, which includes less than a step of a hole at either end.
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
