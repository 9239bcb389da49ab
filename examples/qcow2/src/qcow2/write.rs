//! Writes: in place if the image owns the cluster, otherwise into fresh clusters, to which the L2
//! table refers only after the data has been written.

use std::io;

use coralio::AlignedBuf;

use super::Qcow2;
use super::allocate::Fresh;
use super::geometry::{COPIED, Host, Kind, Run};
use super::top::PAGE;
use crate::error::damaged;

/// The destination of data whose mapping changes.
enum Target {
    Fresh(Fresh),
    /// The cluster already allocated for a zero cluster.
    Room(Host),
}

impl Target {
    fn offset(&self) -> u64 {
        match self {
            Target::Fresh(fresh) => fresh.offset,
            Target::Room(host) => host.offset,
        }
    }

    fn is_virgin(&self) -> bool {
        matches!(self, Target::Fresh(fresh) if fresh.virgin)
    }
}

impl Qcow2 {
    /// Writes a range, which must be within the disk. The image must be writable.
    pub(crate) fn write(&self, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
        let _here = self.epochs.enter();
        while !buf.is_empty() {
            let run = self.map(offset, buf.len() as u64)?;
            let done = match run.kind {
                Kind::Data(host @ Host { own: true, .. }) => {
                    let part = &buf[..run.len as usize];
                    self.refuse_tables(host.offset, run.len)?;
                    self.file.write_at(part, host.offset)?;
                    part.len()
                }
                _ => self.write_fresh(&buf[..run.len as usize], offset)?,
            };
            offset += done as u64;
            buf = &buf[done..];
        }
        Ok(())
    }

    /// Rejects writing guest data over tables, in case an L2 entry is wrong.
    fn refuse_tables(&self, offset: u64, len: u64) -> io::Result<()> {
        let bits = self.geometry.cluster_bits;
        let tables = self.tables.borrow();
        match (offset >> bits..(offset + len).div_ceil(1 << bits)).find(|cluster| tables.contains(cluster)) {
            None => Ok(()),
            Some(cluster) => Err(damaged(format!(
                "an L2 entry points to a table, at {:#x}: repair the image with qemu-img check -r all",
                cluster << bits
            ))),
        }
    }

    /// Writes the beginning of `buf` to clusters that the image does not own yet: whole clusters
    /// whose entries are in one L2 slice, or a part of one cluster. Returns the number of bytes
    /// written, or 0 if another writer came first and the caller must map the offset again.
    fn write_fresh(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let cluster = self.geometry.cluster_size();
        let within = self.geometry.in_cluster(offset);
        let whole = within == 0 && buf.len() as u64 >= cluster;
        let len = if whole {
            // If there is no L2 table, the run of `map` can extend beyond a slice.
            (buf.len() as u64 & !(cluster - 1)).min(self.geometry.left_in_slice(offset))
        } else {
            (cluster - within).min(buf.len() as u64)
        };
        let first = offset >> self.geometry.cluster_bits;
        let _held = self.changing.take(first..first + len.div_ceil(cluster));
        let Run { kind, len } = self.map(offset, len)?;
        let target = match kind {
            Kind::Data(Host { own: true, .. }) => return Ok(0),
            Kind::Zero(Some(host @ Host { own: true, .. })) => {
                self.refuse_tables(host.offset, len)?;
                Target::Room(host)
            }
            Kind::Unallocated | Kind::Zero(_) | Kind::Data(_) | Kind::Compressed(_) => {
                // Before the data's clusters, so that nothing must be undone if it fails.
                self.own_l2_table(offset)?;
                Target::Fresh(self.allocate(len.div_ceil(cluster))?)
            }
        };
        let len = match target {
            Target::Fresh(fresh) => len.min(fresh.clusters << self.geometry.cluster_bits),
            Target::Room(_) => len,
        };
        let data = &buf[..len as usize];
        let written = if whole {
            self.file.write_at(data, target.offset()).map(drop)
        } else {
            self.write_part(data, offset, kind, &target)
        };
        if let (Err(_), Target::Fresh(fresh)) = (&written, &target) {
            self.give_back(*fresh)?;
        }
        written?;
        self.link(offset, target.offset(), len.div_ceil(cluster))?;
        Ok(data.len())
    }

    /// Writes a part of a cluster, and fills the rest with the guest's previous data.
    fn write_part(&self, data: &[u8], offset: u64, before: Kind, target: &Target) -> io::Result<()> {
        let within = self.geometry.in_cluster(offset) as usize;
        let was_zero = match before {
            Kind::Zero(_) => true,
            Kind::Unallocated => self.backing.as_ref().is_none_or(|backing| backing.len() <= offset - within as u64),
            Kind::Data(_) | Kind::Compressed(_) => false,
        };
        if was_zero && target.is_virgin() {
            return self.file.write_at(data, target.offset() + within as u64).map(drop);
        }
        let mut bytes = AlignedBuf::new(self.geometry.cluster_size() as usize, PAGE);
        if !was_zero {
            // Beyond the end of the disk, the last cluster is zeroes.
            let start = offset - within as u64;
            let end = (self.geometry.size - start).min(bytes.len() as u64) as usize;
            for part in [0..within, within + data.len()..end] {
                let kind = before.moved(within as u64, part.start as u64);
                let at = start + part.start as u64;
                self.read_run(kind, &mut bytes[part], at)?;
            }
        }
        bytes[within..][..data.len()].copy_from_slice(data);
        self.file.write_at(&bytes, target.offset()).map(drop)
    }

    /// Makes the L2 table refer to clusters whose data has been written, and retires the previous
    /// ones. The entries must be in one slice.
    fn link(&self, offset: u64, host: u64, clusters: u64) -> io::Result<()> {
        let cluster = self.geometry.cluster_size();
        self.change_entries(offset, clusters, |n, _| (host + n * cluster) | COPIED)
    }

    /// Changes the L2 entries of clusters in one slice, and retires the clusters to which they no
    /// longer refer.
    ///
    /// # Panics
    ///
    /// If the entries are not all in the slice of the first one.
    pub(crate) fn change_entries(
        &self,
        offset: u64,
        clusters: u64,
        change: impl Fn(u64, u64) -> u64,
    ) -> io::Result<()> {
        let in_slice = self.geometry.left_in_slice(offset).div_ceil(self.geometry.cluster_size());
        assert!(clusters <= in_slice, "{clusters} L2 entries at {offset:#x}: only {in_slice} left in the slice");
        let table = self.own_l2_table(offset)?;
        let (slice, at) = self.geometry.l2_place(offset);
        self.l2.modify(table + slice, |bytes| {
            for (n, bytes) in bytes[at..][..clusters as usize * 8].chunks_exact_mut(8).enumerate() {
                let old = u64::from_be_bytes((&*bytes).try_into().expect("eight bytes"));
                let new = change(n as u64, old);
                if new != old {
                    self.give_up(old, new)?;
                    bytes.copy_from_slice(&new.to_be_bytes());
                }
            }
            Ok(())
        })?
    }

    /// Retires the clusters to which the old entry refers and the new one does not.
    fn give_up(&self, old: u64, new: u64) -> io::Result<()> {
        let (old, new) = (self.geometry.kind(old)?, self.geometry.kind(new)?);
        let host_of = |kind| match kind {
            Kind::Data(host) | Kind::Zero(Some(host)) => Some(host.offset),
            Kind::Unallocated | Kind::Zero(None) | Kind::Compressed(_) => None,
        };
        let now = self.epochs.now();
        match (old, host_of(old)) {
            (Kind::Compressed(packed), _) => self.flushes.give_up_shared(packed.offset, packed.len, now),
            (_, Some(host)) if host_of(new) != Some(host) => {
                self.refuse_tables(host, self.geometry.cluster_size())?;
                self.flushes.give_up(host, self.geometry.cluster_size(), now);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::{CreateOptions, Qcow2};
    use crate::open::Options;

    #[test]
    fn entries_beyond_the_slice_are_rejected() {
        // qcow2: a length beyond the slice is a bug, and must not just shorten the change.
        let path = std::env::temp_dir().join(format!("coralio-entries-{}", std::process::id()));
        coralio::run(|| {
            Qcow2::create(&path, &CreateOptions::new(64 << 20)).unwrap();
            let image = Qcow2::open(&path, &Options { write: true, ..Options::default() }).unwrap();
            let last = (32 << 20) - 65536;
            image.change_entries(last, 1, |_, old| old).unwrap();
            let two = catch_unwind(AssertUnwindSafe(|| image.change_entries(last, 2, |_, old| old)));
            let message = two.expect_err("the entries are in two slices").downcast::<String>().unwrap();
            assert!(message.starts_with("2 L2 entries at 0x1ff0000: only 1 left"), "{message}");
        });
        std::fs::remove_file(path).unwrap();
    }
}
