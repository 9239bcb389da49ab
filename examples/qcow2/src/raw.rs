//! A raw image: the disk's bytes are the file's, one for one. A file or a block device.

use std::io;
use std::os::fd::AsFd;

use coralio_aio::{AlignedBuf, File};

use crate::error::{read_only, within};
use crate::holes::{data_start, file_end, next_data};
use crate::image::{Extent, Image, Zeroes};
use crate::lock::Lock;

/// How many zeroes are written at a time, where no faster way is left.
const ZEROES: u64 = 1 << 20;

/// A file or block device as a disk.
#[derive(Debug)]
pub struct Raw {
    file: File,
    len: u64,
    writable: bool,
    _lock: Option<Lock>,
}

impl Raw {
    /// A disk as long as the file is now. `writable` says whether the file was opened for writing.
    ///
    /// # Errors
    ///
    /// What the kernel says when asked for the length.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn new(file: File, writable: bool) -> io::Result<Raw> {
        Raw::open(file, None, writable)
    }

    pub(crate) fn open(file: File, lock: Option<Lock>, writable: bool) -> io::Result<Raw> {
        let len = file.len()?;
        Ok(Raw { file, len, writable, _lock: lock })
    }

    fn check_write(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.writable {
            return Err(read_only());
        }
        within(offset, len, self.len)
    }

    /// Byte by byte.
    fn write_out_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeroes = AlignedBuf::new(len.min(ZEROES) as usize, 4096);
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(ZEROES) as usize;
            done += self.file.write_at(&zeroes[..piece], offset + done)? as u64;
        }
        Ok(())
    }
}

impl Image for Raw {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        within(offset, buf.len() as u64, self.len)?;
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_write(offset, buf.len() as u64)?;
        self.file.write_at(buf, offset).map(drop)
    }

    fn flush(&self) -> io::Result<()> {
        if self.writable { self.file.sync_data() } else { Ok(()) }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match self.file.discard(offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => done,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, how: Zeroes) -> io::Result<()> {
        self.check_write(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let punched = || self.file.discard(offset, len);
        let zeroed = || self.file.zero_range(offset, len);
        // tmpfs does not zero ranges, but it fills the hole that was punched.
        let refilled = || punched().and_then(|()| self.file.allocate(offset, len));
        let done = match how.keep_allocated {
            true => or_if_unsupported(zeroed(), refilled),
            false => or_if_unsupported(punched(), zeroed),
        };
        if how.fast { done } else { or_if_unsupported(done, || self.write_out_zeroes(offset, len)) }
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        let hole = self.hole(offset, len)?;
        if hole > 0 || len == 0 {
            return Ok(Extent { len: hole, allocated: false, zero: true });
        }
        let data = next_data(self.file.as_fd(), offset)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Extent { len: data.end.min(offset + len) - offset, allocated: true, zero: false })
    }

    fn hole(&self, offset: u64, len: u64) -> io::Result<u64> {
        within(offset, len, self.len)?;
        let end = offset + len;
        match data_start(self.file.as_fd(), offset)? {
            Some(start) => Ok(start.min(end) - offset),
            // What the file had when it was opened may be gone: that is no hole, but reads as an error.
            None if file_end(self.file.as_fd())? < end => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Ok(len),
        }
    }
}

/// The next way, if the file system does not have this one.
fn or_if_unsupported(done: io::Result<()>, next: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => next(),
        done => done,
    }
}
