//! Allocation of clusters of the file: first fit, starting after the previous allocation.

use std::io;

use coralio::AlignedBuf;

use super::Qcow2;
use super::refcount::get;
use super::top::PAGE;
use crate::error::damaged;

/// State protected by the allocator's lock.
#[derive(Default)]
pub(crate) struct Allocator {
    /// No cluster before this one is free.
    pub(crate) next: u64,
}

/// Allocated adjacent clusters. Each has a refcount of one, and no entry refers to it yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fresh {
    pub(crate) offset: u64,
    pub(crate) clusters: u64,
    /// The clusters have never been written, so they read as zeroes.
    pub(crate) virgin: bool,
}

enum Found {
    /// The first free cluster and the number of free clusters in a row.
    Free(u64, u64),
    /// This cluster is not covered by a refcount block yet.
    Uncounted(u64),
}

impl Qcow2 {
    /// Allocates between one and `want` adjacent clusters.
    pub(crate) fn allocate(&self, want: u64) -> io::Result<Fresh> {
        let mut allocator = self.allocator.lock();
        loop {
            let (first, clusters) = match self.find_free(allocator.next, want)? {
                Found::Free(first, clusters) => (first, clusters),
                Found::Uncounted(cluster) => {
                    self.new_refcount_block(cluster, &mut allocator)?;
                    continue;
                }
            };
            self.geometry.check_room(first, clusters)?;
            self.set_refcounts(first, clusters, |_| 1)?;
            allocator.next = first + clusters;
            let virgin = self.touch(first, clusters);
            return Ok(Fresh { offset: first << self.geometry.cluster_bits, clusters, virgin });
        }
    }

    /// Records that these clusters are about to be written. Returns whether they have never been
    /// written before.
    pub(crate) fn touch(&self, first: u64, clusters: u64) -> bool {
        let virgin = first >= self.virgin.get();
        self.virgin.set(self.virgin.get().max(first + clusters));
        virgin
    }

    /// Finds the first free clusters from `first`, up to `want` in a row.
    fn find_free(&self, mut first: u64, want: u64) -> io::Result<Found> {
        let order = self.geometry.refcount_order;
        loop {
            let Some(place) = self.refcount_place(first)? else { return Ok(Found::Uncounted(first)) };
            let found = self.refcounts.with(place.slice, |block| {
                let tables = self.tables.borrow();
                // Even if refcounts are wrong, tables must not be overwritten.
                let is_free =
                    |&n: &u64| get(block, place.index + n as usize, order) == 0 && !tables.contains(&(first + n));
                let start = (0..place.left).find(is_free)?;
                let len = (start..place.left).take(want as usize).take_while(is_free).count();
                Some(Found::Free(first + start, len as u64))
            })?;
            match found {
                Some(found) => return Ok(found),
                None => first += place.left,
            }
        }
    }

    /// Creates the refcount block for a cluster in that cluster itself, so the block counts itself.
    ///
    /// The block is written here. The entry that points to it is written by a flush, after a sync.
    fn new_refcount_block(&self, cluster: u64, allocator: &mut Allocator) -> io::Result<()> {
        let block = cluster / self.geometry.per_block();
        if block >= self.reftable.borrow().entries as u64 {
            return self.grow_reftable(allocator);
        }
        if self.tables.borrow().contains(&cluster) {
            return Err(damaged(format!(
                "the table at cluster {cluster} has refcount 0: repair the image with qemu-img check -r all"
            )));
        }
        self.geometry.check_room(cluster, 1)?;
        let offset = cluster << self.geometry.cluster_bits;
        let mut bytes = AlignedBuf::new(self.geometry.cluster_size() as usize, PAGE);
        let index = (cluster % self.geometry.per_block()) as usize;
        super::refcount::set(&mut bytes, index, self.geometry.refcount_order, 1);
        self.touch(cluster, 1);
        self.file.write_at(&bytes, offset)?;
        self.tables.borrow_mut().insert(cluster);
        self.reftable.borrow_mut().set(block as usize, offset);
        Ok(())
    }

    /// Allocates a cluster of zeroes for a table. It has been written; the entry that refers to it
    /// must be written after a sync.
    pub(crate) fn new_table(&self) -> io::Result<u64> {
        let fresh = self.allocate(1)?;
        let zeroes = AlignedBuf::new(self.geometry.cluster_size() as usize, PAGE);
        if let Err(error) = self.file.write_at(&zeroes, fresh.offset) {
            self.give_back(fresh)?;
            return Err(error);
        }
        self.tables.borrow_mut().insert(fresh.offset >> self.geometry.cluster_bits);
        Ok(fresh.offset)
    }

    /// Frees clusters that no entry has ever referred to.
    pub(crate) fn give_back(&self, fresh: Fresh) -> io::Result<()> {
        self.drop_references(fresh.offset, fresh.clusters << self.geometry.cluster_bits)
    }

    /// Decrements the refcount of each cluster that overlaps this byte range of the file.
    pub(crate) fn drop_references(&self, offset: u64, len: u64) -> io::Result<()> {
        let bits = self.geometry.cluster_bits;
        let (first, end) = (offset >> bits, (offset + len).div_ceil(1 << bits));
        let mut allocator = self.allocator.lock();
        // A count that is already 0 was wrong before and stays 0.
        self.set_refcounts(first, end - first, |count| count.saturating_sub(1))?;
        allocator.next = allocator.next.min(first);
        Ok(())
    }
}
