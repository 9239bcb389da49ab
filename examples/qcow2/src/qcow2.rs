//! An open qcow2 image. Each module below has one purpose; this file has their shared state.
//!
//! Concurrency: all coroutines read the tables in memory, which are never borrowed across a switch.
//! A table that is not in memory is loaded by one coroutine, under the [`CoMutex`] of its lane. A
//! coroutine that changes the mapping of a guest cluster holds the cluster in [`Ranges`]. Clusters
//! of the file are allocated under the allocator's [`CoMutex`], and dirty tables are written under
//! the flush mutex. Lock order: ranges, creation of an L2 table, allocator, lane; the flush mutex
//! before the allocator's, and never inside another lock except the ranges.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use coralio::File;
use coralio::sync::CoMutex;

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

/// A qcow2 image. See the [crate](crate) for its layout.
///
/// Dropping the image loses unflushed writes, as in a crash; at worst, some clusters leak. Only
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
    /// Serializes the creation of L2 tables.
    making_l2: CoMutex<()>,
    allocator: CoMutex<Allocator>,
    /// Clusters of the file from this one on have never been written, so they read as zeroes.
    virgin: Cell<u64>,
    /// Clusters of the file that hold tables; guest data must not be written there. Empty if the
    /// image is read-only.
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
