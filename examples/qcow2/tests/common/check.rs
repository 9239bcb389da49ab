//! An independent consistency check of an image: each cluster of the file is counted at least as
//! often as it is referenced, no cluster has two owners, and those flagged as having one owner do.
//! Written only from the specification of the format, on bytes: it shares no code with the
//! implementation.

use std::collections::HashMap;

/// The number of clusters whose count exceeds their references.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leaks(pub u64);

struct Image<'a> {
    bytes: &'a [u8],
    bits: u32,
    version: u32,
    references: HashMap<u64, u64>,
    /// Clusters that must have a count of exactly one.
    single: Vec<u64>,
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

impl Image<'_> {
    fn number(&self, at: u64, len: u64) -> Result<u64, String> {
        let bytes = self.bytes.get(at as usize..(at + len) as usize);
        let bytes = bytes.ok_or_else(|| format!("a table's entry at {at:#x} is beyond the end"))?;
        Ok(bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn entry(&self, table: u64, index: u64) -> Result<u64, String> {
        self.number(table + index * 8, 8)
    }

    fn refer(&mut self, offset: u64, len: u64) {
        for cluster in offset >> self.bits..(offset + len).div_ceil(1 << self.bits) {
            *self.references.entry(cluster).or_default() += 1;
        }
    }

    fn aligned(&self, offset: u64, what: &str) -> Result<(), String> {
        if offset.is_multiple_of(1 << self.bits) {
            Ok(())
        } else {
            Err(format!("{what} at {offset:#x} is not aligned"))
        }
    }

    fn l2(&mut self, table: u64) -> Result<(), String> {
        for index in 0..1 << (self.bits - 3) {
            let entry = self.entry(table, index)?;
            if entry >> 62 & 1 == 1 {
                let shift = 62 - (self.bits - 8);
                let offset = entry & ((1 << shift) - 1);
                let sectors = (entry & ((1 << 62) - 1)) >> shift;
                let start = offset & !511;
                self.refer(start, (sectors + 1) * 512);
                continue;
            }
            let offset = entry & OFFSET;
            self.aligned(offset, "data")?;
            if self.version < 3 && entry & 1 == 1 {
                return Err("a zero flag in version 2".into());
            }
            if offset != 0 {
                self.refer(offset, 1);
                if entry >> 63 == 1 {
                    self.single.push(offset >> self.bits);
                }
            }
        }
        Ok(())
    }
}

/// Checks a whole image.
pub fn check(bytes: &[u8]) -> Result<Leaks, String> {
    let mut image = Image { bytes, bits: 0, version: 0, references: HashMap::new(), single: Vec::new() };
    image.bits = image.number(20, 4)? as u32;
    image.version = image.number(4, 4)? as u32;
    let order = if image.version == 3 { image.number(96, 4)? as u32 } else { 4 };
    let cluster = 1_u64 << image.bits;
    image.refer(0, 1);

    let (l1, l1_entries) = (image.number(40, 8)?, image.number(36, 4)?);
    image.refer(l1, l1_entries * 8);
    for index in 0..l1_entries {
        let entry = image.entry(l1, index)?;
        let table = entry & OFFSET;
        image.aligned(table, "an L2 table")?;
        if table != 0 {
            image.refer(table, 1);
            if entry >> 63 == 1 {
                image.single.push(table >> image.bits);
            }
            image.l2(table)?;
        }
    }

    let (reftable, reftable_clusters) = (image.number(48, 8)?, image.number(56, 4)?);
    image.refer(reftable, reftable_clusters << image.bits);
    let mut counts = HashMap::new();
    let per_block = (cluster * 8) >> order;
    for index in 0..reftable_clusters * cluster / 8 {
        let block = image.entry(reftable, index)?;
        image.aligned(block, "a refcount block")?;
        if block == 0 {
            continue;
        }
        image.refer(block, 1);
        for n in 0..per_block {
            let count = if order >= 3 {
                let width = 1 << (order - 3);
                image.number(block + n * width, width)?
            } else {
                let bit = n << order;
                image.number(block + bit / 8, 1)? >> (bit % 8) & ((1 << (1 << order)) - 1)
            };
            if count > 0 {
                counts.insert(index * per_block + n, count);
            }
        }
    }

    for (at, &references) in &image.references {
        let count = counts.get(at).copied().unwrap_or(0);
        if count < references {
            return Err(format!("cluster {at}: counted {count} times, referred to {references} times"));
        }
    }
    if let Some(at) = image.single.iter().find(|at| image.references[*at] != 1 || counts[*at] != 1) {
        return Err(format!("cluster {at} has the copied flag without exactly one owner"));
    }
    let leaks = counts.iter().filter(|(at, count)| image.references.get(at).unwrap_or(&0) < count).count();
    Ok(Leaks(leaks as u64))
}
