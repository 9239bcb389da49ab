//! A top-level table that is entirely in memory: the L1 table or the refcount table. Big-endian, as
//! on disk.

use std::collections::BTreeSet;
use std::io;

use coralio::{AlignedBuf, File};

use super::header::be64;

/// Tables are written in pieces of this size, or in clusters if these are smaller.
const PIECE: u64 = 4096;
/// Alignment that suits every device.
pub(crate) const PAGE: usize = 4096;

pub(crate) struct Top {
    pub(crate) offset: u64,
    pub(crate) entries: usize,
    bytes: AlignedBuf,
    piece: usize,
    /// Pieces that differ from the disk.
    dirty: BTreeSet<usize>,
}

impl Top {
    /// Creates a table of zeroes that is not on disk yet. The memory covers whole clusters, as on
    /// disk.
    pub(crate) fn new(offset: u64, entries: usize, cluster: u64) -> Top {
        let room = (entries as u64 * 8).next_multiple_of(cluster);
        let bytes = AlignedBuf::new(room as usize, PAGE);
        Top { offset, entries, bytes, piece: PIECE.min(cluster) as usize, dirty: BTreeSet::new() }
    }

    /// Reads a table. The part beyond `len`, the end of the file, is zeroes and is not read.
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

    /// Sets an entry.
    ///
    /// # Panics
    ///
    /// If the index is out of range, even if the last cluster has space for it.
    pub(crate) fn set(&mut self, index: usize, entry: u64) {
        assert!(index < self.entries, "entry {index} is outside the table of {} entries", self.entries);
        self.bytes[index * 8..][..8].copy_from_slice(&entry.to_be_bytes());
        self.dirty.insert(index * 8 / self.piece);
    }

    /// Returns the nonzero entries with their indices.
    pub(crate) fn used(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        (0..self.entries).map(|index| (index, self.get(index))).filter(|&(_, entry)| entry != 0)
    }

    /// Returns copies of the dirty pieces with their file offsets.
    pub(crate) fn take_dirty(&mut self) -> Vec<(u64, AlignedBuf)> {
        let copy = |piece| {
            let mut bytes = AlignedBuf::new(self.piece, PAGE);
            bytes.copy_from_slice(&self.bytes[piece * self.piece..][..self.piece]);
            (self.offset + (piece * self.piece) as u64, bytes)
        };
        std::mem::take(&mut self.dirty).into_iter().map(copy).collect()
    }

    /// Marks pieces dirty again after a failed write. Ignores pieces of a table that has been
    /// replaced since.
    pub(crate) fn failed(&mut self, taken: &[(u64, AlignedBuf)]) {
        let room = self.offset..self.offset + self.bytes.len() as u64;
        let here = taken.iter().filter(|(offset, _)| room.contains(offset));
        self.dirty.extend(here.map(|(offset, _)| (offset - self.offset) as usize / self.piece));
    }

    /// Returns the whole table, to be written elsewhere.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Fills `buf`, with zeroes beyond the end of the file. Returns the number of bytes that the file
/// had.
pub(crate) fn read_padded(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let had = file.read_at(buf, offset)?;
    buf[had..].fill(0);
    Ok(had)
}

#[cfg(test)]
mod tests {
    use super::Top;

    #[test]
    #[should_panic(expected = "entry 3 is outside the table of 3 entries")]
    fn entry_beyond_the_table_is_rejected() {
        // qcow2: even though the table's last cluster has space for it.
        Top::new(512, 3, 512).set(3, 1);
    }
}
