//! Growing the refcount table: the only structure that moves and that the header points to.

use std::io;

use coralio::AlignedBuf;

use super::allocate::Allocator;
use super::header::{MAX_REFTABLE, REFTABLE_FIELDS};
use super::refcount::set;
use super::top::{PAGE, Top};
use super::{Geometry, Qcow2};
use crate::error::{damaged, unsupported};

/// The new table and the refcount blocks that count it and themselves. All are placed after the
/// clusters that the old table can count.
struct Plan {
    entries: u64,
    blocks: u64,
    table_clusters: u64,
}

fn plan(geometry: &Geometry, old: u64) -> Plan {
    let per_cluster = geometry.cluster_size() / 8;
    let mut blocks = 1;
    loop {
        let table_clusters = (old * 3 / 2).max(old + blocks).div_ceil(per_cluster);
        let needed = (table_clusters + blocks).div_ceil(geometry.per_block());
        if needed <= blocks {
            return Plan { entries: table_clusters * per_cluster, blocks, table_clusters };
        }
        blocks = needed;
    }
}

impl Qcow2 {
    /// Replaces the table by one that is at least half as large again. The blocks and the table are
    /// durable before the header points to them.
    pub(crate) fn grow_reftable(&self, allocator: &mut Allocator) -> io::Result<()> {
        let geometry = &self.geometry;
        let (cluster, bits) = (geometry.cluster_size(), geometry.cluster_bits);
        let old = self.reftable.borrow().entries as u64;
        let Plan { entries, blocks, table_clusters } = plan(geometry, old);
        if entries * 8 > MAX_REFTABLE {
            return Err(unsupported(
                "the image is full: its refcount table has the largest size that the format allows",
            ));
        }
        let first = old * geometry.per_block();
        let used = blocks + table_clusters;
        geometry.check_room(first, used)?;
        if (first..first + used).any(|cluster| self.tables.borrow().contains(&cluster)) {
            return Err(damaged("a table has refcount 0: repair the image with qemu-img check -r all"));
        }
        self.touch(first, used);
        let mut counts = AlignedBuf::new((blocks << bits) as usize, PAGE);
        (0..used).for_each(|index| set(&mut counts, index as usize, geometry.refcount_order, 1));
        self.file.write_at(&counts, first << bits)?;

        let table_at = (first + blocks) << bits;
        let mut table = Top::new(table_at, entries as usize, cluster);
        for (index, entry) in self.reftable.borrow().used() {
            table.set(index, entry);
        }
        for block in 0..blocks {
            table.set((old + block) as usize, (first + block) << bits);
        }
        self.file.write_at(table.bytes(), table_at)?;
        table.take_dirty(); // all of it is already written
        self.sync()?;

        let mut fields = [0; 12];
        fields[..8].copy_from_slice(&table_at.to_be_bytes());
        fields[8..].copy_from_slice(&(table_clusters as u32).to_be_bytes());
        self.file.write_at(&fields, REFTABLE_FIELDS).inspect_err(|_| self.flushes.broken.set(true))?;
        // The next flush syncs the header, before an entry on disk refers to a cluster that only
        // the new table counts, and before the old table is freed.

        let before = self.reftable.replace(table);
        let mut tables = self.tables.borrow_mut();
        tables.extend(first..first + used);
        let old_clusters = (before.entries as u64 * 8).div_ceil(cluster);
        (before.offset >> bits..(before.offset >> bits) + old_clusters).for_each(|cluster| _ = tables.remove(&cluster));
        drop(tables);
        // A flush in progress may still write to the old table.
        self.flushes.give_up(before.offset, old_clusters << bits, self.epochs.now());
        allocator.next = first + used;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Geometry, plan};

    #[test]
    fn plan_counts_its_own_blocks() {
        // For every cluster size and refcount width: the blocks count the table and themselves, and
        // the table has entries for them.
        for cluster_bits in 9..=21 {
            for refcount_order in 0..=6 {
                let geometry = Geometry::new(3, cluster_bits, refcount_order, 0);
                let mut old = geometry.cluster_size() / 8;
                while old * 8 < 8 << 20 {
                    let plan = plan(&geometry, old);
                    assert!(plan.blocks * geometry.per_block() >= plan.blocks + plan.table_clusters);
                    assert!(plan.entries >= old + plan.blocks);
                    assert_eq!(plan.entries * 8, plan.table_clusters << cluster_bits);
                    old = plan.entries;
                }
            }
        }
    }
}
