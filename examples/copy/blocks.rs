//! Which blocks there are to copy: the source's data, cut up. Holes are passed over, so that they stay holes.

use std::io;
use std::os::fd::BorrowedFd;

use coralio_qcow2::next_data;

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
