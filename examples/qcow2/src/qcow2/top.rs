//! A table that is in memory as a whole: the L1 table, and the refcount table. Big-endian, as on disk.

use std::collections::BTreeSet;
use std::io;

use coralio_aio::{AlignedBuf, File};

use super::header::be64;

/// Tables are written by pieces of so many bytes, or by clusters where those are smaller.
const PIECE: u64 = 4096;
/// Memory that every device takes.
pub(crate) const PAGE: usize = 4096;

pub(crate) struct Top {
    pub(crate) offset: u64,
    pub(crate) entries: usize,
    bytes: AlignedBuf,
    piece: usize,
    /// Pieces that differ from what is on disk.
    dirty: BTreeSet<usize>,
}

impl Top {
    /// Of zeroes, not on disk yet. `room` is what it has on disk, in bytes: whole clusters.
    pub(crate) fn new(offset: u64, entries: usize, cluster: u64) -> Top {
        let room = (entries as u64 * 8).next_multiple_of(cluster);
        let bytes = AlignedBuf::new(room as usize, PAGE);
        Top { offset, entries, bytes, piece: PIECE.min(cluster) as usize, dirty: BTreeSet::new() }
    }

    /// What lies beyond the file's end, at `len`, is zeroes, and costs nothing.
    pub(crate) fn read(file: &File, len: u64, offset: u64, entries: usize, cluster: u64) -> io::Result<Top> {
        let mut top = Top::new(offset, entries, cluster);
        let there = len.saturating_sub(offset).min(top.bytes.len() as u64) as usize;
        read_padded(file, &mut top.bytes[..there], offset)?;
        Ok(top)
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> u64 {
        be64(&self.bytes, index * 8)
    }

    /// # Panics
    ///
    /// If the table has no such entry, though its last cluster may have room for it.
    pub(crate) fn set(&mut self, index: usize, entry: u64) {
        assert!(index < self.entries, "entry {index} of a table of {}", self.entries);
        self.bytes[index * 8..][..8].copy_from_slice(&entry.to_be_bytes());
        self.dirty.insert(index * 8 / self.piece);
    }

    /// All entries that are not zero, and where they are.
    pub(crate) fn used(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        (0..self.entries).map(|index| (index, self.get(index))).filter(|&(_, entry)| entry != 0)
    }

    /// Copies of what is to be written, and where.
    pub(crate) fn take_dirty(&mut self) -> Vec<(u64, AlignedBuf)> {
        let copy = |piece| {
            let mut bytes = AlignedBuf::new(self.piece, PAGE);
            bytes.copy_from_slice(&self.bytes[piece * self.piece..][..self.piece]);
            (self.offset + (piece * self.piece) as u64, bytes)
        };
        std::mem::take(&mut self.dirty).into_iter().map(copy).collect()
    }

    /// What was taken to be written may not have been. What was taken of a table that has moved since is of no interest.
    pub(crate) fn failed(&mut self, taken: &[(u64, AlignedBuf)]) {
        let room = self.offset..self.offset + self.bytes.len() as u64;
        let here = taken.iter().filter(|(offset, _)| room.contains(offset));
        self.dirty.extend(here.map(|(offset, _)| (offset - self.offset) as usize / self.piece));
    }

    /// All of it, to be written elsewhere.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Fills `buf`, with zeroes where the file has ended. Returns how much the file had.
pub(crate) fn read_padded(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let had = file.read_at(buf, offset)?;
    buf[had..].fill(0);
    Ok(had)
}

#[cfg(test)]
mod tests {
    use super::Top;

    #[test]
    #[should_panic(expected = "entry 3 of a table of 3")]
    fn entry_beyond_the_table_is_rejected() {
        // qcow2: though the table's last cluster has room for it.
        Top::new(512, 3, 512).set(3, 1);
    }
}
