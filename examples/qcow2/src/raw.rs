//! A raw image: a file or block device that contains the bytes of the disk without metadata.

use std::io;
use std::os::fd::AsFd;

use coralio::{AlignedBuf, File};

use crate::error::{read_only, within};
use crate::holes::{data_start, file_end, next_data};
use crate::image::{Extent, Image, Zeroes};
use crate::lock::Lock;

/// Maximum number of zeroes written at a time, if there is no faster way.
const ZEROES: u64 = 1 << 20;

/// A file or block device used as a disk.
#[derive(Debug)]
pub struct Raw {
    file: File,
    len: u64,
    writable: bool,
    _lock: Option<Lock>,
}

impl Raw {
    /// Creates a disk with the current length of the file. `writable` tells whether the file is
    /// open for writing.
    ///
    /// # Errors
    ///
    /// The kernel's, when it is asked for the length.
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

    /// Writes zeroes as data.
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
        // tmpfs cannot zero ranges, but it can punch a hole and allocate it again.
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
            // If the file has been truncated since it was opened, the missing range is an error,
            // not a hole.
            None if file_end(self.file.as_fd())? < end => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Ok(len),
        }
    }
}

/// Returns `done`, or the result of `next` if the file system does not support the operation.
fn or_if_unsupported(done: io::Result<()>, next: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => next(),
        done => done,
    }
}
