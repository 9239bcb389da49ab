//! Discarding and zeroing: whole clusters by changing L2 entries, partial clusters by writing
//! zeroes.
//!
//! | version | backed | discard     | zeroes      | zeroes, keep allocated      |
//! |---------|--------|-------------|-------------|-----------------------------|
//! | 3       | no     | unallocated | unallocated | zero flag, stays allocated  |
//! | 3       | yes    | zero flag   | zero flag   | zero flag, stays allocated  |
//! | 2       | no     | unallocated | unallocated | written                     |
//! | 2       | yes    | unchanged   | written     | written                     |

use std::io;

use coralio::AlignedBuf;

use super::Qcow2;
use super::geometry::{COPIED, Host, Kind, OFFSET, ZERO};
use super::top::PAGE;
use crate::error::unsupported;
use crate::image::Zeroes;

/// Maximum number of zeroes written at a time.
const MAX_ZEROES: u64 = 1 << 20;

type Range = std::ops::Range<u64>;

impl Qcow2 {
    pub(crate) fn discard_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let (_, whole, _) = self.parts(offset, len);
        let backed = self.backed_until();
        // Version 2 has no zero flag: the backing image would show through.
        let start = if self.geometry.version < 3 { whole.start.max(backed) } else { whole.start };
        self.zero_clusters(start, whole.end, false)
    }

    pub(crate) fn zero_range(&self, offset: u64, len: u64, how: Zeroes) -> io::Result<()> {
        let (head, whole, tail) = self.parts(offset, len);
        let backed = self.backed_until();
        // Whole clusters before this offset must be written.
        let written = match (self.geometry.version, how.keep_allocated) {
            (3.., _) => whole.start,
            (_, true) => whole.end,
            (_, false) => backed.clamp(whole.start, whole.end),
        };
        if how.fast && written > whole.start {
            return Err(unsupported("version 2 of the format has no zero flag: zeroes would have to be written"));
        }
        for part in [&head, &tail] {
            if how.fast && !part.is_empty() && !self.is_zero(part.start)? {
                return Err(unsupported("the range contains partial clusters, where zeroes would have to be written"));
            }
        }
        for part in [head, whole.start..written, tail] {
            self.write_zero_bytes(part.start, part.end)?;
        }
        self.zero_clusters(written, whole.end, how.keep_allocated)
    }

    /// Splits a range into a partial cluster, whole clusters and a partial cluster. The last
    /// cluster of the disk counts as whole if the range covers it up to the end of the disk.
    fn parts(&self, offset: u64, len: u64) -> (Range, Range, Range) {
        let (end, cluster) = (offset + len, self.geometry.cluster_size());
        let start = offset.next_multiple_of(cluster);
        let stop = if end == self.geometry.size { end } else { end - self.geometry.in_cluster(end) };
        if start >= stop {
            return (offset..end, end..end, end..end);
        }
        (offset..start, start..stop, stop..end)
    }

    /// Returns the offset from which clusters have no backing data, a multiple of the cluster size.
    fn backed_until(&self) -> u64 {
        self.backing.as_ref().map_or(0, |backing| backing.len().next_multiple_of(self.geometry.cluster_size()))
    }

    /// Returns whether the cluster reads as zeroes, according to its entry.
    fn is_zero(&self, offset: u64) -> io::Result<bool> {
        Ok(match self.map(offset, 1)?.kind {
            Kind::Zero(_) => true,
            Kind::Unallocated => offset >= self.backed_until(),
            Kind::Data(_) | Kind::Compressed(_) => false,
        })
    }

    fn write_zero_bytes(&self, mut offset: u64, end: u64) -> io::Result<()> {
        if offset == end
            || self.geometry.in_cluster(offset) + (end - offset) < self.geometry.cluster_size()
                && self.is_zero(offset)?
        {
            return Ok(());
        }
        let zeroes = AlignedBuf::new(MAX_ZEROES.min(end - offset) as usize, PAGE);
        while offset < end {
            let len = MAX_ZEROES.min(end - offset);
            self.write(&zeroes[..len as usize], offset)?;
            offset += len;
        }
        Ok(())
    }

    /// Makes whole clusters read as zeroes by changing their entries, one L2 slice at a time.
    fn zero_clusters(&self, mut offset: u64, end: u64, keeps_room: bool) -> io::Result<()> {
        let backed = self.backed_until();
        while offset < end {
            let until = if offset < backed { end.min(backed) } else { end };
            if offset >= backed && self.l2_table(offset)?.is_none() {
                offset = until.min(offset + self.geometry.left_in_l2(offset));
                continue;
            }
            let len = (until - offset).min(self.geometry.left_in_slice(offset));
            let clusters = len.div_ceil(self.geometry.cluster_size());
            let first = offset >> self.geometry.cluster_bits;
            let held = self.changing.take(first..first + clusters);
            let is_backed = offset < backed;
            self.change_entries(offset, clusters, |_, old| self.zero_entry(old, is_backed, keeps_room))?;
            drop(held);
            offset += clusters << self.geometry.cluster_bits;
            self.relieve()?;
        }
        Ok(())
    }

    /// Returns the L2 entry that makes a cluster read as zeroes.
    fn zero_entry(&self, old: u64, is_backed: bool, keeps_room: bool) -> u64 {
        match self.geometry.kind(old) {
            // Leave a damaged entry as it is.
            Err(_) => old,
            Ok(Kind::Zero(None)) => old,
            Ok(Kind::Unallocated) if !is_backed => old,
            Ok(Kind::Data(Host { own: true, .. }) | Kind::Zero(Some(Host { own: true, .. }))) if keeps_room => {
                old & OFFSET | COPIED | ZERO
            }
            Ok(_) if is_backed => ZERO,
            Ok(_) => 0,
        }
    }
}
