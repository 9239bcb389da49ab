//! Refcounts: the number of references to each cluster of the file, with an image-specific width of
//! 1 to 64 bits.

use std::io;

use super::Qcow2;
use crate::error::damaged;

/// Returns the count at `index` of a block with 2^`order` bits per count. Within a byte, counts
/// start at the low bits.
pub(crate) fn get(block: &[u8], index: usize, order: u32) -> u64 {
    if order < 3 {
        let bit = index << order;
        let mask = (1 << (1 << order)) - 1;
        return u64::from(block[bit / 8]) >> (bit % 8) & mask;
    }
    let width = 1 << (order - 3);
    block[index * width..][..width].iter().fold(0, |count, &byte| count << 8 | u64::from(byte))
}

/// Sets the count at `index` of a block.
///
/// # Panics
///
/// If the count needs more than 2^`order` bits, or the block has no such index.
pub(crate) fn set(block: &mut [u8], index: usize, order: u32, count: u64) {
    assert!(count <= u64::MAX >> (64 - (1_u32 << order)), "refcount {count} does not fit into {} bits", 1 << order);
    if order < 3 {
        let bit = index << order;
        let mask = ((1_u16 << (1 << order)) - 1) as u8;
        let byte = &mut block[bit / 8];
        *byte = *byte & !(mask << (bit % 8)) | (count as u8 & mask) << (bit % 8);
        return;
    }
    let width = 1 << (order - 3);
    block[index * width..][..width].copy_from_slice(&count.to_be_bytes()[8 - width..]);
}

/// The location of a cluster's count.
pub(crate) struct Place {
    /// Offset of the slice in the file.
    pub(crate) slice: u64,
    /// Index in the slice.
    pub(crate) index: usize,
    /// Number of counts in the slice from `index`.
    pub(crate) left: u64,
}

impl Qcow2 {
    /// Locates the count of a cluster; `None` if no refcount block covers it yet.
    pub(crate) fn refcount_place(&self, cluster: u64) -> io::Result<Option<Place>> {
        let per_block = self.geometry.per_block();
        let (block, index) = (cluster / per_block, cluster % per_block);
        let reftable = self.reftable.borrow();
        let offset = if block < reftable.entries as u64 { reftable.get(block as usize) } else { 0 };
        if offset == 0 {
            return Ok(None);
        }
        if self.geometry.in_cluster(offset) != 0 {
            return Err(damaged(format!(
                "a refcount block is at {offset:#x}, which is not a multiple of the cluster size"
            )));
        }
        let per_slice = (self.geometry.slice_size() * 8) >> self.geometry.refcount_order;
        let slice = offset + index / per_slice * self.geometry.slice_size();
        Ok(Some(Place { slice, index: (index % per_slice) as usize, left: per_slice - index % per_slice }))
    }

    /// Returns the refcount of the cluster at an offset of the file.
    pub(crate) fn refcount_of(&self, offset: u64) -> io::Result<u64> {
        match self.refcount_place(offset >> self.geometry.cluster_bits)? {
            Some(place) => {
                self.refcounts.with(place.slice, |block| get(block, place.index, self.geometry.refcount_order))
            }
            None => Ok(0),
        }
    }

    /// Changes the counts of clusters that refcount blocks cover. Requires the allocator's lock.
    pub(crate) fn set_refcounts(
        &self,
        mut first: u64,
        mut clusters: u64,
        change: impl Fn(u64) -> u64,
    ) -> io::Result<()> {
        let order = self.geometry.refcount_order;
        while clusters > 0 {
            let place = self.refcount_place(first)?;
            let place = place.ok_or_else(|| damaged(format!("cluster {first} is in use but has refcount 0")))?;
            let here = place.left.min(clusters);
            self.refcounts.modify(place.slice, |block| {
                for index in place.index..place.index + here as usize {
                    set(block, index, order, change(get(block, index, order)));
                }
            })?;
            first += here;
            clusters -= here;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{get, set};

    #[test]
    fn write_at_each_width_keeps_neighbours() {
        // For every width from 1 to 64 bits: `get` returns what `set` stored, and other counts do
        // not change.
        for order in 0..=6 {
            let most = u64::MAX >> (64 - (1_u32 << order));
            let mut block = [0; 64];
            let counts = 512 >> order;
            for index in 0..counts {
                set(&mut block, index, order, index as u64 & most);
            }
            set(&mut block, 3, order, most);
            for index in 0..counts {
                let expected = if index == 3 { most } else { index as u64 & most };
                assert_eq!(get(&block, index, order), expected, "order {order}, index {index}");
            }
        }
        let mut block = [0; 8];
        set(&mut block, 1, 0, 1);
        set(&mut block, 1, 4, 0x102);
        assert_eq!(block, [2, 0, 1, 2, 0, 0, 0, 0]); // low bits first, big-endian
    }

    #[test]
    #[should_panic(expected = "refcount 2 does not fit into 1 bits")]
    fn count_wider_than_its_field_is_rejected() {
        // qcow2: a truncated value would be a different count.
        set(&mut [0; 8], 3, 0, 2);
    }
}
