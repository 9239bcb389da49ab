//! Opening: reads the header and the two tables that stay in memory. If the image is opened for
//! writing, checks that no tables overlap.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use coralio::sync::CoMutex;
use coralio::{AlignedBuf, File};
use rustc_hash::FxHashSet;

use super::geometry::OFFSET;
use super::header::{AUTOCLEAR_FIELD, Header, cluster_bits};
use super::top::{PAGE, Top, read_padded};
use super::{Allocator, Cache, Epochs, Flushes, Qcow2, Ranges, Unpacked, snapshots};
use crate::error::damaged;
use crate::image::Image;
use crate::lock::Lock;

/// Maximum size of the cache of L2 tables, which maps 256 GiB at 64 KiB clusters.
const L2_CACHE: u64 = 32 << 20;
/// Maximum size of the cache of refcounts.
const REFCOUNT_CACHE: u64 = 1 << 20;

impl Qcow2 {
    /// Reads and validates the header of a file.
    pub(crate) fn header(file: &File) -> io::Result<Header> {
        let mut start = AlignedBuf::new(PAGE, PAGE);
        read_padded(file, &mut start, 0)?;
        let mut first = AlignedBuf::new(1 << cluster_bits(&start)?, PAGE);
        read_padded(file, &mut first, 0)?;
        let header = Header::parse(&first)?;
        snapshots::check(file, &header)?;
        Ok(header)
    }

    /// Opens an image in an open file, which is open for writing if `writable`.
    pub(crate) fn start(
        file: Rc<File>,
        lock: Option<Lock>,
        header: &Header,
        backing: Option<Rc<dyn Image>>,
        writable: bool,
    ) -> io::Result<Qcow2> {
        let geometry = header.geometry;
        let cluster = geometry.cluster_size();
        let len = file.len()?;
        let l1 = Top::read(&file, len, header.l1_offset, header.l1_entries as usize, cluster)?;
        let reftable_entries =
            if writable { (header.reftable_clusters as usize) << geometry.cluster_bits >> 3 } else { 0 };
        let reftable = Top::read(&file, len, header.reftable_offset, reftable_entries, cluster)?;
        let mut tables = FxHashSet::default();
        if writable {
            header.refuse_writing()?;
            claim(&mut tables, &l1, &reftable, header, len)?;
            if header.autoclear != 0 {
                // Clear these: they vouch for metadata that this program does not maintain.
                file.write_at(&[0; 8], AUTOCLEAR_FIELD)?;
                file.sync_data()?;
            }
        }
        let slice = geometry.slice_size();
        let l2_all = geometry.size.div_ceil(cluster).saturating_mul(8).min(L2_CACHE);
        Ok(Qcow2 {
            geometry,
            compression: header.compression,
            writable,
            backing,
            l1: RefCell::new(l1),
            l2: Cache::new(Rc::clone(&file), slice, l2_all),
            reftable: RefCell::new(reftable),
            refcounts: Cache::new(Rc::clone(&file), slice, REFCOUNT_CACHE),
            unpacked: Unpacked::default(),
            epochs: Epochs::default(),
            changing: Ranges::default(),
            making_l2: CoMutex::new(()),
            allocator: CoMutex::new(Allocator::default()),
            virgin: Cell::new(len.div_ceil(cluster)),
            tables: RefCell::new(tables),
            flushes: Flushes::default(),
            file,
            _lock: lock,
        })
    }
}

/// Collects the clusters that hold tables. Fails if two tables overlap or one lies beyond the end
/// of the file.
fn claim(tables: &mut FxHashSet<u64>, l1: &Top, reftable: &Top, header: &Header, len: u64) -> io::Result<()> {
    let bits = header.geometry.cluster_bits;
    let mut take = |what: &str, offset: u64, bytes: u64| {
        if header.geometry.in_cluster(offset) != 0 || offset >= len {
            return Err(damaged(format!(
                "{what} at {offset:#x} is not at a cluster of the file; refusing to write it"
            )));
        }
        for cluster in offset >> bits..(offset + bytes).div_ceil(1 << bits) {
            if !tables.insert(cluster) {
                return Err(damaged(format!("{what} at {offset:#x} overlaps another table; refusing to write it")));
            }
        }
        Ok(())
    };
    take("the header", 0, 1)?;
    if l1.entries > 0 {
        take("the L1 table", l1.offset, l1.entries as u64 * 8)?;
    }
    take("the refcount table", reftable.offset, reftable.entries as u64 * 8)?;
    for (_, entry) in l1.used() {
        take("an L2 table", entry & OFFSET, 1)?;
    }
    for (_, entry) in reftable.used() {
        take("a refcount block", entry, 1)?;
    }
    Ok(())
}
