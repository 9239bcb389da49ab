//! Reads: if the mapping is cached, a read is one read of the file into the caller's buffer.

use std::io;

use super::Qcow2;
use super::geometry::Kind;
use super::top::read_padded;
use crate::image::Extent;

/// Maximum number of runs that are merged for one extent.
const MAX_RUNS: usize = 64;

impl Qcow2 {
    /// Reads a range, which must be within the disk.
    #[inline]
    pub(crate) fn read(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        let _here = self.epochs.enter();
        while !buf.is_empty() {
            let run = self.map(offset, buf.len() as u64)?;
            let (part, rest) = buf.split_at_mut(run.len as usize);
            self.read_run(run.kind, part, offset)?;
            offset += run.len;
            buf = rest;
        }
        Ok(())
    }

    /// Reads a run with a uniform mapping.
    #[inline]
    pub(crate) fn read_run(&self, kind: Kind, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match kind {
            Kind::Data(host) => read_padded(&self.file, buf, host.offset).map(drop),
            Kind::Zero(_) => {
                buf.fill(0);
                Ok(())
            }
            Kind::Unallocated => self.read_backing(buf, offset),
            Kind::Compressed(packed) => {
                let bytes = self.unpack(packed)?;
                buf.copy_from_slice(&bytes[self.geometry.in_cluster(offset) as usize..][..buf.len()]);
                Ok(())
            }
        }
    }

    /// Reads from the backing image. It may be shorter than this image; zeroes follow it.
    fn read_backing(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(backing) = &self.backing else {
            buf.fill(0);
            return Ok(());
        };
        let has = backing.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let (there, beyond) = buf.split_at_mut(has);
        beyond.fill(0);
        if there.is_empty() { Ok(()) } else { backing.read_at(there, offset) }
    }

    /// Returns the first extent of a range, which must be within the disk.
    pub(crate) fn first_extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        let _here = self.epochs.enter();
        if len == 0 {
            return Ok(Extent { len: 0, allocated: false, zero: false });
        }
        let mut found = self.extent_at(offset, len)?;
        for _ in 1..MAX_RUNS {
            if found.len == len {
                break;
            }
            let next = self.extent_at(offset + found.len, len - found.len)?;
            if (next.allocated, next.zero) != (found.allocated, found.zero) {
                break;
            }
            found.len += next.len;
        }
        Ok(found)
    }

    fn extent_at(&self, offset: u64, len: u64) -> io::Result<Extent> {
        let run = self.map(offset, len)?;
        let extent = |allocated, zero| Extent { len: run.len, allocated, zero };
        Ok(match (run.kind, &self.backing) {
            (Kind::Data(_) | Kind::Compressed(_), _) => extent(true, false),
            (Kind::Zero(host), _) => extent(host.is_some(), true),
            (Kind::Unallocated, Some(backing)) if offset < backing.len() => {
                backing.extent(offset, run.len.min(backing.len() - offset))?
            }
            (Kind::Unallocated, _) => extent(false, true),
        })
    }
}
