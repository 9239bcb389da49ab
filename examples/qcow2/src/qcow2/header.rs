//! Parses and validates the header.
//!
//! No number is trusted: each is checked against the format and against resource limits before
//! anything is read or allocated based on it.

use std::io;

use super::extensions::{Extensions, name_features};
use super::geometry::Geometry;
use crate::error::{damaged, unsupported};

/// The first four bytes of every qcow2 image.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// The length of the fields that every version 3 header has.
pub(crate) const V3_LEN: usize = 104;
pub(crate) const V2_LEN: usize = 72;

/// Maximum size of an L1 table in bytes: enough for 2 EiB at the largest cluster size. Other
/// implementations have the same limit.
const MAX_L1: u64 = 32 << 20;
/// Maximum size of a refcount table in bytes.
pub(crate) const MAX_REFTABLE: u64 = 8 << 20;
/// Maximum number of internal snapshots. Other implementations have the same limit.
const MAX_SNAPSHOTS: u32 = 65536;
/// Length of the fixed fields of a snapshot table entry.
pub(crate) const SNAPSHOT_LEN: u64 = 40;
/// Maximum length of the backing file's name in bytes.
pub(crate) const MAX_NAME: u32 = 1023;

/// Offset of the refcount table's offset and length, which change together when the table grows.
pub(crate) const REFTABLE_FIELDS: u64 = 48;
/// Offset of the autoclear features.
pub(crate) const AUTOCLEAR_FIELD: u64 = 88;

/// Refcounts may be wrong.
const DIRTY: u64 = 1;
/// A program has found the image to be damaged.
const CORRUPT: u64 = 1 << 1;
/// Guest data is in another file.
const EXTERNAL: u64 = 1 << 2;
/// The compression type is not zlib.
pub(crate) const COMPRESSION: u64 = 1 << 3;
/// Clusters have 32 subclusters each.
const EXTENDED_L2: u64 = 1 << 4;

/// Autoclear: the external data file is a raw image.
const RAW_EXTERNAL: u64 = 1 << 1;

/// The method of compressed clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Zlib,
    Zstd,
}

/// The validated content of the header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) geometry: Geometry,
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u32,
    pub(crate) reftable_offset: u64,
    pub(crate) reftable_clusters: u32,
    pub(crate) compression: Compression,
    pub(crate) autoclear: u64,
    pub(crate) backing: Option<Backing>,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    incompatible: u64,
}

/// The backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backing {
    pub(crate) name: String,
    /// As stored in the image: "raw", "qcow2".
    pub(crate) format: Option<String>,
}

/// Returns the cluster size in bits, from the first bytes of an image. The rest of the header fits
/// into one cluster.
pub(crate) fn cluster_bits(start: &[u8]) -> io::Result<u32> {
    if start.len() < V2_LEN || start[..4] != MAGIC {
        return Err(damaged("not a qcow2 image: it does not start with QFI\\xfb"));
    }
    let bits = be32(start, 20);
    if !(9..=21).contains(&bits) {
        return Err(damaged(format!("invalid cluster size 2^{bits} bytes: must be 2^9 to 2^21")));
    }
    Ok(bits)
}

impl Header {
    /// Parses the header in the first cluster of an image.
    pub(crate) fn parse(first: &[u8]) -> io::Result<Header> {
        let cluster_bits = cluster_bits(first)?;
        let version = be32(first, 4);
        if !(2..=3).contains(&version) {
            return Err(unsupported(format!("unsupported qcow2 version {version}: must be 2 or 3")));
        }
        let (mut incompatible, mut autoclear, mut refcount_order, mut len) = (0, 0, 4, V2_LEN);
        if version == 3 {
            if first.len() < V3_LEN {
                return Err(damaged("the header is truncated"));
            }
            incompatible = be64(first, 72);
            autoclear = be64(first, AUTOCLEAR_FIELD as usize);
            refcount_order = be32(first, 96);
            len = be32(first, 100) as usize;
            if !(V3_LEN..=first.len()).contains(&len) {
                return Err(damaged(format!("invalid header length {len} in a cluster of {} bytes", first.len())));
            }
            if !len.is_multiple_of(8) {
                return Err(damaged(format!("invalid header length {len}: must be a multiple of 8")));
            }
        }
        if refcount_order > 6 {
            return Err(damaged(format!("invalid refcount width of 2^{refcount_order} bits: must be at most 64")));
        }
        let (name_at, name_len) = (be64(first, 8), be32(first, 16));
        // The extensions end where the name begins.
        let extensions_end = if name_at == 0 { first.len() } else { name_at.min(first.len() as u64) as usize };
        let extensions = Extensions::parse(first.get(len..extensions_end).unwrap_or_default())?;
        refuse_features(incompatible, &extensions)?;
        if autoclear & RAW_EXTERNAL != 0 {
            return Err(damaged(
                "it declares a raw external data file (autoclear bit 1) but has no external data file",
            ));
        }
        match be32(first, 32) {
            0 => {}
            1 => return Err(unsupported("the image is encrypted (AES): convert it with qemu-img first")),
            2 => return Err(unsupported("the image is encrypted (LUKS): convert it with qemu-img first")),
            other => return Err(unsupported(format!("the image is encrypted (unknown method {other})"))),
        }
        let compression_type = if len > V3_LEN { first[V3_LEN] } else { 0 };
        let compression = match (incompatible & COMPRESSION != 0, compression_type) {
            (false, 0) => Compression::Zlib,
            (true, 1) => Compression::Zstd,
            (true, 0) => {
                return Err(damaged("its compression type is 0 (zlib), but feature bit 3 is set, which excludes zlib"));
            }
            (false, 1) => {
                return Err(damaged("its compression type is 1 (zstd), but feature bit 3 is not set"));
            }
            (_, other) => {
                return Err(unsupported(format!("unsupported compression type {other}: must be zlib or zstd")));
            }
        };
        let geometry = Geometry::new(version, cluster_bits, refcount_order, be64(first, 24));
        let header = Header {
            geometry,
            l1_offset: be64(first, 40),
            l1_entries: be32(first, 36),
            reftable_offset: be64(first, REFTABLE_FIELDS as usize),
            reftable_clusters: be32(first, REFTABLE_FIELDS as usize + 8),
            compression,
            autoclear,
            backing: backing_name(first, name_at, name_len)?
                .map(|name| Backing { name, format: extensions.backing_format }),
            snapshots: be32(first, 60),
            snapshots_offset: be64(first, 64),
            incompatible,
        };
        header.check_tables()?;
        Ok(header)
    }

    fn check_tables(&self) -> io::Result<()> {
        let geometry = &self.geometry;
        let needed = geometry.l1_entries_for(geometry.size);
        if needed > MAX_L1 / 8 {
            return Err(unsupported(format!(
                "a disk of {} bytes needs {needed} L1 entries at this cluster size; the limit is {}",
                geometry.size,
                MAX_L1 / 8
            )));
        }
        let entries = u64::from(self.l1_entries);
        if entries < needed || entries > MAX_L1 / 8 {
            return Err(damaged(format!("its L1 table has {entries} entries, but the disk needs {needed}")));
        }
        let reftable = u64::from(self.reftable_clusters) << geometry.cluster_bits;
        if reftable > MAX_REFTABLE {
            return Err(damaged(format!("its refcount table has {reftable} bytes; the limit is {MAX_REFTABLE}")));
        }
        if reftable == 0 {
            return Err(damaged("it has no refcount table: repair it with qemu-img check -r all"));
        }
        self.check_snapshots()?;
        if entries > 0 {
            self.check_table("L1", self.l1_offset, entries * 8)?;
        }
        self.check_table("refcount", self.reftable_offset, reftable)
    }

    /// Checks the location of the snapshot table, even if it is empty, as other implementations do.
    fn check_snapshots(&self) -> io::Result<()> {
        let (count, offset) = (self.snapshots, self.snapshots_offset);
        if count > MAX_SNAPSHOTS {
            return Err(damaged(format!("it has {count} internal snapshots; the limit is {MAX_SNAPSHOTS}")));
        }
        let len = u64::from(count) * SNAPSHOT_LEN;
        if self.geometry.in_cluster(offset) != 0 || offset > i64::MAX as u64 - len {
            return Err(damaged(format!("its snapshot table is at {offset}, which is not the offset of a cluster")));
        }
        if count > 0 { self.check_table("snapshot", offset, len) } else { Ok(()) }
    }

    fn check_table(&self, name: &str, offset: u64, len: u64) -> io::Result<()> {
        let cluster = self.geometry.cluster_size();
        if !offset.is_multiple_of(cluster) {
            return Err(damaged(format!(
                "its {name} table is at {offset}, which is not a multiple of the cluster size"
            )));
        }
        if offset < cluster {
            return Err(damaged(format!("its {name} table overlaps the header")));
        }
        if offset.checked_add(len).is_none_or(|end| end > Geometry::MAX_OFFSET) {
            return Err(damaged(format!("its {name} table is at {offset}, beyond the largest file offset")));
        }
        Ok(())
    }

    /// Returns an error if this program cannot safely write the image.
    pub(crate) fn refuse_writing(&self) -> io::Result<()> {
        if self.incompatible & CORRUPT != 0 {
            return Err(damaged("it is marked corrupt and cannot be written: repair it with qemu-img check -r all"));
        }
        if self.incompatible & DIRTY != 0 {
            return Err(damaged(
                "it was not closed cleanly (dirty bit), so its refcounts may be wrong: repair it with qemu-img check \
                 -r all",
            ));
        }
        if self.snapshots > 0 {
            return Err(unsupported(format!(
                "it has {} internal snapshots, which writing would not preserve: delete them with qemu-img snapshot \
                 -d, or write to an overlay image",
                self.snapshots
            )));
        }
        Ok(())
    }
}

fn refuse_features(incompatible: u64, extensions: &Extensions) -> io::Result<()> {
    if incompatible & EXTERNAL != 0 {
        return Err(unsupported("its data is in an external data file: convert it with qemu-img first"));
    }
    if incompatible & EXTENDED_L2 != 0 {
        return Err(unsupported("it has extended L2 entries (subclusters): convert it with qemu-img first"));
    }
    let unknown = incompatible & !(DIRTY | CORRUPT | COMPRESSION);
    if unknown != 0 {
        let names = name_features(&extensions.features, unknown);
        return Err(unsupported(format!("it has unsupported features: {names}")));
    }
    Ok(())
}

fn backing_name(first: &[u8], at: u64, len: u32) -> io::Result<Option<String>> {
    if at > first.len() as u64 {
        return Err(damaged(format!("the name of its backing file is at {at}, outside the first cluster")));
    }
    if at == 0 || len == 0 {
        return Ok(None);
    }
    let room = usize::try_from(at).ok().and_then(|at| first.get(at..)?.get(..len as usize));
    let name = room.filter(|_| len <= MAX_NAME).ok_or_else(|| {
        damaged(format!("the name of its backing file is {len} bytes at {at}, outside the first cluster"))
    })?;
    let name = std::str::from_utf8(name).map_err(|_| damaged("the name of its backing file is not UTF-8"))?;
    if name.contains('\0') {
        return Err(damaged("the name of its backing file contains a zero byte"));
    }
    Ok(Some(name.to_owned()))
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
