//! Writes with flags of their own (`pwritev2`), on the thread pool.

#![allow(unsafe_code)]

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::{BitOr, BitOrAssign};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::slice;

use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use crate::backend::Opcode;
use crate::driver::unblock::unblock;

use super::File;
use super::error::failed;
use super::fs::range;

/// Properties of one write, for [`File::write_at_with`]; combined with `|`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct WriteFlags(u32);

impl WriteFlags {
    /// No property: as [`File::write_at`].
    pub const NONE: WriteFlags = WriteFlags(0);
    /// The data is durable when the write returns, as after [`File::sync_data`], which would also make
    /// earlier writes durable (`RWF_DSYNC`, Linux 4.7).
    pub const DSYNC: WriteFlags = WriteFlags(0x2);
    /// After a crash the file contains all of this write or none of it (`RWF_ATOMIC`, Linux 6.11; for
    /// direct files, with the lengths and alignment that the device supports).
    pub const ATOMIC: WriteFlags = WriteFlags(0x40);
    /// The data leaves the page cache when it has reached the disk (`RWF_DONTCACHE`, Linux 6.14).
    pub const DONTCACHE: WriteFlags = WriteFlags(0x80);

    /// Returns whether all properties of `other` are among these.
    pub fn contains(self, other: WriteFlags) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for WriteFlags {
    type Output = WriteFlags;

    fn bitor(self, other: WriteFlags) -> WriteFlags {
        WriteFlags(self.0 | other.0)
    }
}

impl BitOrAssign for WriteFlags {
    fn bitor_assign(&mut self, other: WriteFlags) {
        *self = *self | other;
    }
}

impl fmt::Debug for WriteFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(Self::DSYNC, "DSYNC"), (Self::ATOMIC, "ATOMIC"), (Self::DONTCACHE, "DONTCACHE")];
        let names: Vec<_> = names.iter().filter(|(flag, _)| self.contains(*flag)).map(|(_, name)| *name).collect();
        f.write_str(if names.is_empty() { "NONE" } else { "" })?;
        f.write_str(&names.join(" | "))
    }
}

impl File {
    /// Writes all of `buf` at `offset` with these properties. Returns the length of `buf`.
    ///
    /// ```
    /// use coralio::File;
    /// use coralio::fs::WriteFlags;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("coralio-flags-doc-{}", std::process::id()));
    /// coralio::run(|| {
    ///     let log = File::options().write(true).create(true).open(&path)?;
    ///     log.write_at_with(b"durable on return", 0, WriteFlags::DSYNC)?;
    ///     # std::fs::remove_file(&path)?;
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// In a [simulation](mod@crate::simulate) `DSYNC` makes earlier writes durable as well, and
    /// `DONTCACHE` has no effect.
    ///
    /// # Errors
    ///
    /// As [`write_at`](File::write_at), and as [`unblock`]. `Unsupported`: the kernel, the file system
    /// or the device lacks one of the properties, or the file is simulated and the write is to be
    /// `ATOMIC`. `InvalidInput`: the device cannot make a write of this length and alignment atomic.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn write_at_with(&self, buf: &[u8], offset: u64, flags: WriteFlags) -> io::Result<usize> {
        if flags == WriteFlags::NONE || buf.is_empty() {
            return self.write_at(buf, offset);
        }
        let what = || format!("writing {} bytes at {offset} with {flags:?}", buf.len());
        self.check_context(what)?;
        if self.fd.as_simulated().is_some() {
            if flags.contains(WriteFlags::ATOMIC) {
                let why = format!("{}: the simulated disk tears writes; write in place after a journal", what());
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
            let done = self.write_at(buf, offset)?;
            return if flags.contains(WriteFlags::DSYNC) { self.sync_data().map(|()| done) } else { Ok(done) };
        }
        // Here, because `pwritev2` takes the offset -1 for the descriptor's own position.
        range(offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match self.write_once(&buf[done..], at, flags) {
                Ok(0) => {
                    let why = format!("short write: {done} of {} bytes at offset {offset}", buf.len());
                    return Err(io::Error::new(io::ErrorKind::WriteZero, why));
                }
                Ok(more) => done += more,
                Err(error) => return Err(explain(error, what(), flags)),
            }
        }
        Ok(done)
    }

    /// Makes one request, on the path that its alignment allows, ordered with writes of the other
    /// kind.
    fn write_once(&self, buf: &[u8], offset: u64, flags: WriteFlags) -> io::Result<usize> {
        let as_is = self.is_taken_as_is(buf.as_ptr() as u64, offset | buf.len() as u64);
        let is_direct = self.direct && as_is;
        let handle = if as_is { &self.fd } else { self.cached(Opcode::Write, buf.len() as u64, offset)? };
        let (_direct, _cached) = match is_direct {
            true => (Some(self.order.direct()?), None),
            false => (None, self.order.cached()?),
        };
        let (raw, addr, len) = (handle.as_fd().as_raw_fd(), buf.as_ptr().expose_provenance(), buf.len());
        let flags = ReadWriteFlags::from_bits_retain(flags.0);
        let written = unblock(move || {
            // SAFETY: *never left behind*: the handle and the buffer are borrowed until the closure
            // has ended, and a write only reads the buffer.
            let (fd, buf) = unsafe {
                (BorrowedFd::borrow_raw(raw), slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(addr), len))
            };
            loop {
                match pwritev2(fd, &[IoSlice::new(buf)], offset, flags) {
                    Err(Errno::INTR) => {}
                    done => return done,
                }
            }
        })??;
        if !is_direct {
            self.route.count_dirty(written as u64);
        }
        Ok(written)
    }
}

fn explain(error: io::Error, what: String, flags: WriteFlags) -> io::Error {
    let why = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::ENOSYS) if flags.contains(WriteFlags::ATOMIC) => {
            "; the kernel, the file system or the device has no atomic writes, or the file is not direct: write a \
             journal, or a new file (fs::replace_file)"
        }
        Some(libc::EOPNOTSUPP | libc::ENOSYS) => {
            "; the kernel or the file system lacks this: write without flags, and sync if the data must be durable"
        }
        Some(libc::EINVAL) if flags.contains(WriteFlags::ATOMIC) => {
            "; an atomic write must be aligned, with a length that is a power of two and that the device supports"
        }
        Some(libc::EBADF) => "; the file is not open for writing: open it with File::options().write(true)",
        Some(libc::ENOSPC) => "; the file system is full: free some space, then write the rest again",
        _ => "",
    };
    failed(error, what, why.into())
}
