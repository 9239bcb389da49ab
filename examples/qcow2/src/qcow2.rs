//! A qcow2 image, open. The modules below each have one idea; here is what they share.
//!
//! Who may be where at once: everybody reads the tables in memory, which are borrowed between two switches at most. A table that
//! has to be read is read by one, under the lane's [`CoMutex`]. Whoever changes a guest cluster's mapping holds it in
//! [`Ranges`]; clusters of the file are given out under the allocator's [`CoMutex`]; what is dirty is written under the
//! flush's. The order in which these are taken is: ranges, making of an L2 table, allocator, lane; the flush's before the
//! allocator's, and never within one of the others but the ranges.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use coralio_aio::{CoMutex, File};

mod allocate;
mod cache;
mod compressed;
mod create;
mod epoch;
mod extensions;
mod flush;
mod geometry;
mod grow;
mod header;
mod map;
mod ranges;
mod read;
mod refcount;
mod snapshots;
mod start;
mod top;
mod write;
mod zero;

pub use create::CreateOptions;
pub(crate) use header::{Backing, Header, MAGIC};

use crate::error::{read_only, within};
use crate::image::{Extent, Image, Zeroes};
use crate::lock::Lock;
use allocate::Allocator;
use cache::Cache;
use compressed::Unpacked;
use epoch::Epochs;
use flush::Flushes;
use geometry::Geometry;
use header::Compression;
use ranges::Ranges;
use top::Top;

/// A qcow2 image. See the [crate](crate) for how it is laid out.
///
/// What was not flushed when it is dropped is lost, as in a crash; at worst some clusters leak then. Only
/// [locks](crate::Options::lock) keep another process from writing the same file.
pub struct Qcow2 {
    file: Rc<File>,
    geometry: Geometry,
    compression: Compression,
    writable: bool,
    backing: Option<Rc<dyn Image>>,
    l1: RefCell<Top>,
    l2: Cache,
    reftable: RefCell<Top>,
    refcounts: Cache,
    unpacked: Unpacked,
    epochs: Epochs,
    /// Guest clusters whose mapping is being changed.
    changing: Ranges,
    /// One makes an L2 table.
    making_l2: CoMutex<()>,
    allocator: CoMutex<Allocator>,
    /// Clusters of the file at and beyond this one have never been written: they read as zeroes.
    virgin: Cell<u64>,
    /// Clusters of the file that tables are in; guest data must not be written there. Empty where the image is read only.
    tables: RefCell<rustc_hash::FxHashSet<u64>>,
    flushes: Flushes,
    _lock: Option<Lock>,
}

impl Qcow2 {
    fn range(&self, offset: u64, len: u64) -> io::Result<()> {
        within(offset, len, self.geometry.size)
    }

    fn range_to_write(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.writable {
            return Err(read_only());
        }
        self.range(offset, len)
    }
}

impl Image for Qcow2 {
    fn len(&self) -> u64 {
        self.geometry.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.range(offset, buf.len() as u64)?;
        self.read(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.range_to_write(offset, buf.len() as u64)?;
        self.write(buf, offset)?;
        self.relieve()
    }

    fn flush(&self) -> io::Result<()> {
        if self.writable { self.flush_all() } else { Ok(()) }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.range_to_write(offset, len)?;
        self.discard_range(offset, len)?;
        self.relieve()
    }

    fn write_zeroes(&self, offset: u64, len: u64, how: Zeroes) -> io::Result<()> {
        self.range_to_write(offset, len)?;
        self.zero_range(offset, len, how)?;
        self.relieve()
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        self.range(offset, len)?;
        self.first_extent(offset, len)
    }

    fn hole(&self, offset: u64, len: u64) -> io::Result<u64> {
        self.range(offset, len)?;
        if len == 0 || self.backing.is_some() {
            return Ok(0);
        }
        self.first_extent(offset, len).map(|extent| if extent.zero { extent.len } else { 0 })
    }
}

impl std::fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2").field("geometry", &self.geometry).finish_non_exhaustive()
    }
}
