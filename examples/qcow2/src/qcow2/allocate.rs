//! Clusters of the file, given out and taken back. First fit, from where the last one was found.

use std::io;

use coralio_aio::AlignedBuf;

use super::Qcow2;
use super::refcount::get;
use super::top::PAGE;
use crate::error::damaged;

/// Under the allocator's lock.
#[derive(Default)]
pub(crate) struct Allocator {
    /// No cluster before this one is free.
    pub(crate) next: u64,
}

/// Clusters that were given out, one after the other. Each has a refcount of one, and nothing refers to it yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fresh {
    pub(crate) offset: u64,
    pub(crate) clusters: u64,
    /// Never written: they read as zeroes.
    pub(crate) virgin: bool,
}

enum Found {
    /// Where, and how many in a row.
    Free(u64, u64),
    /// No refcount block counts this one yet.
    Uncounted(u64),
}

impl Qcow2 {
    /// Up to `want` clusters in a row; at least one.
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

    /// Notes that these clusters are about to be written. Returns whether they never were before.
    pub(crate) fn touch(&self, first: u64, clusters: u64) -> bool {
        let virgin = first >= self.virgin.get();
        self.virgin.set(self.virgin.get().max(first + clusters));
        virgin
    }

    /// The first free clusters from `first` on, up to `want` in a row.
    fn find_free(&self, mut first: u64, want: u64) -> io::Result<Found> {
        let order = self.geometry.refcount_order;
        loop {
            let Some(place) = self.refcount_place(first)? else { return Ok(Found::Uncounted(first)) };
            let found = self.refcounts.with(place.slice, |block| {
                let tables = self.tables.borrow();
                // The refcounts may be wrong; the tables are not to be written over for that.
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

    /// Makes the refcount block for a cluster, of that cluster itself: so it counts itself.
    ///
    /// It is written here, and what points to it by a flush, behind a sync.
    fn new_refcount_block(&self, cluster: u64, allocator: &mut Allocator) -> io::Result<()> {
        let block = cluster / self.geometry.per_block();
        if block >= self.reftable.borrow().entries as u64 {
            return self.grow_reftable(allocator);
        }
        if self.tables.borrow().contains(&cluster) {
            return Err(damaged(format!(
                "the table at cluster {cluster} has no refcount: repair the image with qemu-img check -r all"
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

    /// A cluster of zeroes for a table. It is written; what is to point to it must be behind a sync.
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

    /// Takes back what nothing ever referred to.
    pub(crate) fn give_back(&self, fresh: Fresh) -> io::Result<()> {
        self.drop_references(fresh.offset, fresh.clusters << self.geometry.cluster_bits)
    }

    /// One reference less to each cluster that these bytes of the file touch.
    pub(crate) fn drop_references(&self, offset: u64, len: u64) -> io::Result<()> {
        let bits = self.geometry.cluster_bits;
        let (first, end) = (offset >> bits, (offset + len).div_ceil(1 << bits));
        let mut allocator = self.allocator.lock();
        // A count that is 0 already was wrong before: it can only stay.
        self.set_refcounts(first, end - first, |count| count.saturating_sub(1))?;
        allocator.next = allocator.next.min(first);
        Ok(())
    }
}
