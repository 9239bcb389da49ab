//! Sizes derived from the header, and the encoding of L1 and L2 entries.
//!
//! A guest's offset is split like a virtual address:
//!
//! ```text
//!   | L1 index | L2 index | offset in the cluster |
//! ```
//!
//! Tables are read, cached and written in *slices* of at most 4 KiB, because a table in a large
//! cluster maps far more than a request needs.

use std::io;

use crate::error::damaged;

/// In L1 and L2 entries: the refcount of the referenced cluster is exactly one.
pub(crate) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Reads as zeroes, even if the entry has an offset. Version 3 only.
pub(crate) const ZERO: u64 = 1;
/// The offset in an L1 or L2 entry.
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Reserved bits of an entry: 56 to 61.
const RESERVED: u64 = 0x3f << 56;

/// Maximum size of a slice, as a power of two.
const SLICE_BITS: u32 = 12;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    /// Refcounts have 2^`refcount_order` bits.
    pub(crate) refcount_order: u32,
    /// The size of the disk in bytes.
    pub(crate) size: u64,
    /// Bits that must be zero in an L1 entry, and in the L2 entry of an uncompressed cluster:
    /// reserved bits, and offset bits below the cluster size.
    l1_zero_bits: u64,
    l2_zero_bits: u64,
}

/// The mapping of a cluster and of the following clusters that continue it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Read from the backing file, or as zeroes if there is none.
    Unallocated,
    /// Zeroes, possibly with an allocated cluster.
    Zero(Option<Host>),
    Data(Host),
    Compressed(Packed),
}

/// A location in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) offset: u64,
    /// No other entry refers to it, so it may be written in place.
    pub(crate) own: bool,
}

/// The location of a compressed cluster. The data may be shorter than `len`: entries store the
/// length in units of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The first part of a range that has a uniform mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) kind: Kind,
    /// Length in bytes.
    pub(crate) len: u64,
}

impl Kind {
    /// Moves the location of data from offset `from` to offset `to` in the same cluster.
    pub(crate) fn moved(self, from: u64, to: u64) -> Kind {
        match self {
            Kind::Data(host) => Kind::Data(Host { offset: host.offset - from + to, ..host }),
            other => other,
        }
    }
}

impl Geometry {
    /// The maximum offset in the file: entries have no bits for larger ones.
    pub(crate) const MAX_OFFSET: u64 = OFFSET;

    pub(crate) fn new(version: u32, cluster_bits: u32, refcount_order: u32, size: u64) -> Geometry {
        let in_cluster = (1 << cluster_bits) - 1;
        let l2_flags = if version >= 3 { ZERO } else { 0 };
        Geometry {
            version,
            cluster_bits,
            refcount_order,
            size,
            l1_zero_bits: in_cluster | RESERVED | COMPRESSED,
            l2_zero_bits: in_cluster & !l2_flags | RESERVED,
        }
    }

    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(crate) fn in_cluster(&self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    pub(crate) fn slice_size(&self) -> u64 {
        1 << self.cluster_bits.min(SLICE_BITS)
    }

    /// Returns the number of offset bits that one L2 table maps.
    fn l1_shift(&self) -> u32 {
        self.cluster_bits * 2 - 3
    }

    pub(crate) fn l1_index(&self, offset: u64) -> usize {
        (offset >> self.l1_shift()) as usize
    }

    /// Returns the number of bytes from `offset` to the end of the range that its L2 table maps.
    pub(crate) fn left_in_l2(&self, offset: u64) -> u64 {
        let mapped = 1 << self.l1_shift();
        mapped - (offset & (mapped - 1))
    }

    /// Returns the number of bytes from `offset` to the end of the range that its L2 slice maps.
    pub(crate) fn left_in_slice(&self, offset: u64) -> u64 {
        let mapped = (self.slice_size() / 8) << self.cluster_bits;
        mapped - (offset & (mapped - 1))
    }

    pub(crate) fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(1 << self.l1_shift())
    }

    /// Locates the L2 entry for a guest's offset: the offset of its slice in the table, and its
    /// offset in the slice, in bytes.
    pub(crate) fn l2_place(&self, offset: u64) -> (u64, usize) {
        let at = (offset >> self.cluster_bits << 3) & (self.cluster_size() - 1);
        let mask = self.slice_size() - 1;
        (at & !mask, (at & mask) as usize)
    }

    /// Returns the number of clusters that one refcount block counts.
    pub(crate) fn per_block(&self) -> u64 {
        1 << (self.cluster_bits + 3 - self.refcount_order)
    }

    /// Rejects clusters whose offset in the file does not fit into an entry.
    pub(crate) fn check_room(&self, first: u64, clusters: u64) -> io::Result<()> {
        match first.checked_add(clusters).and_then(|end| end.checked_mul(self.cluster_size())) {
            Some(end) if end <= Geometry::MAX_OFFSET => Ok(()),
            _ => Err(damaged("the image is full: its table entries cannot hold larger offsets")),
        }
    }

    /// Decodes an L2 entry.
    #[inline]
    pub(crate) fn kind(&self, entry: u64) -> io::Result<Kind> {
        if entry & COMPRESSED != 0 {
            return Ok(Kind::Compressed(self.packed(entry)));
        }
        if entry & self.l2_zero_bits != 0 {
            return Err(self.wrong_entry("L2", entry));
        }
        let offset = entry & OFFSET;
        let host = Host { offset, own: entry & COPIED != 0 };
        if entry & ZERO != 0 {
            return Ok(Kind::Zero((offset != 0).then_some(host)));
        }
        Ok(if offset == 0 { Kind::Unallocated } else { Kind::Data(host) })
    }

    /// Returns the offset of the L2 table in an L1 entry; 0 if there is none.
    #[inline]
    pub(crate) fn l2_table(&self, entry: u64) -> io::Result<u64> {
        if entry & self.l1_zero_bits != 0 {
            return Err(self.wrong_entry("L1", entry));
        }
        Ok(entry & OFFSET)
    }

    #[cold]
    fn wrong_entry(&self, table: &str, entry: u64) -> io::Error {
        let offset = entry & OFFSET;
        if self.in_cluster(offset) != 0 {
            return damaged(format!(
                "an {table} entry points to {offset:#x}, which is not a multiple of the cluster size"
            ));
        }
        let version = self.version;
        damaged(format!(
            "the {table} entry {entry:#x} has bits set that are reserved in version {version} of the format: check the \
             image with qemu-img check"
        ))
    }

    fn packed(&self, entry: u64) -> Packed {
        let shift = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << shift) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> shift;
        Packed { offset, len: (sectors + 1) * 512 - (offset & 511) }
    }

    /// Returns the mapping of `offset`, whose entry is at `at` in the slice, and how far it
    /// continues, up to `len` bytes.
    #[inline]
    pub(crate) fn run(&self, slice: &[u8], at: usize, offset: u64, len: u64) -> io::Result<Run> {
        let mut entries = slice[at..].chunks_exact(8).map(|entry| {
            let entry = u64::from_be_bytes(entry.try_into().expect("eight bytes"));
            self.kind(entry)
        });
        let first = entries.next().expect("the entry lies within the slice")?;
        let within = self.in_cluster(offset);
        let mut covered = self.cluster_size() - within;
        let mut last = first;
        while covered < len {
            match entries.next() {
                Some(Ok(next)) if self.continues(last, next) => last = next,
                _ => break,
            }
            covered += self.cluster_size();
        }
        Ok(Run { kind: first.moved(0, within), len: covered.min(len) })
    }

    fn continues(&self, last: Kind, next: Kind) -> bool {
        let follows = |last: Host, next: Host| {
            last.own == next.own && last.offset.checked_add(self.cluster_size()) == Some(next.offset)
        };
        match (last, next) {
            (Kind::Unallocated, Kind::Unallocated) | (Kind::Zero(None), Kind::Zero(None)) => true,
            (Kind::Zero(Some(last)), Kind::Zero(Some(next))) | (Kind::Data(last), Kind::Data(next)) => {
                follows(last, next)
            }
            _ => false,
        }
    }
}
