//! A raw file below a qcow2 image: read only.

use std::io;

use coralio_aio::File;

use crate::error::{damaged, read_only, within};
use crate::image::{Extent, Image, Zeroes};

pub(crate) struct Plain {
    file: File,
    len: u64,
}

impl Plain {
    pub(crate) fn new(file: File) -> io::Result<Plain> {
        let len = file.len()?;
        Ok(Plain { file, len })
    }
}

impl Image for Plain {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        within(offset, buf.len() as u64, self.len)?;
        match self.file.read_at(buf, offset)? {
            had if had == buf.len() => Ok(()),
            _ => Err(damaged("the raw file became shorter")),
        }
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: Zeroes) -> io::Result<()> {
        Err(read_only())
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        within(offset, len, self.len)?;
        Ok(Extent { len, allocated: true, zero: false })
    }
}
