//! Ranges of a file: where its data is, advice about it, and copying it within the kernel.

#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use coralio_runtime::check_cancelled;
use rustix::fs::{SeekFrom, fadvise, seek};
use rustix::io::Errno;

use crate::backend::Opcode;

use super::File;
use super::fs::{explained, off_the_loop, range};

/// Bytes copied by one call on the thread pool, which a cancellation waits for.
const PIECE: u64 = 64 << 20;

/// How a program will use a range of a file (`posix_fadvise`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// No particular way: the default.
    Normal,
    /// From front to back: doubles the read-ahead.
    Sequential,
    /// In no order: turns the read-ahead off.
    Random,
    /// Once.
    NoReuse,
    /// Soon: starts reading it into the page cache.
    WillNeed,
    /// Not soon: drops its clean pages from the page cache.
    DontNeed,
}

impl Advice {
    fn to_system(self) -> rustix::fs::Advice {
        match self {
            Advice::Normal => rustix::fs::Advice::Normal,
            Advice::Sequential => rustix::fs::Advice::Sequential,
            Advice::Random => rustix::fs::Advice::Random,
            Advice::NoReuse => rustix::fs::Advice::NoReuse,
            Advice::WillNeed => rustix::fs::Advice::WillNeed,
            Advice::DontNeed => rustix::fs::Advice::DontNeed,
        }
    }
}

impl File {
    /// Returns the offset of the first data at or after `offset`; `None` if only a hole follows.
    /// A file system without holes reports that everything is data.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("coralio-holes-doc-{}", std::process::id()));
    /// coralio::run(|| {
    ///     let file = coralio::File::options().read(true).write(true).create(true).open(&path)?;
    ///     file.write_at(b"data", 1 << 20)?;
    ///     let data = file.next_data(0)?.expect("data was written"); // 1 << 20 where files have holes
    ///     assert_eq!(file.next_hole(1 << 20)?, Some((1 << 20) + 4)); // the end
    ///     # assert!(data <= 1 << 20);
    ///     # std::fs::remove_file(&path)?;
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// The descriptor's own offset, which `File` does not use, is moved.
    ///
    /// # Errors
    ///
    /// The kernel's error, with cause and remedy; and as [`unblock`](crate::unblock). `NotConnected`:
    /// the file belongs to another context.
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`](crate::unblock).
    #[doc(alias = "SEEK_DATA")]
    pub fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.next_range(offset, true)
    }

    /// Returns the offset of the first hole at or after `offset`: at the end of the file, if no
    /// other comes first; `None` if `offset` is not within the file.
    ///
    /// # Errors
    ///
    /// As [`next_data`](File::next_data).
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`](crate::unblock).
    #[doc(alias = "SEEK_HOLE")]
    pub fn next_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        self.next_range(offset, false)
    }

    fn next_range(&self, offset: u64, data: bool) -> io::Result<Option<u64>> {
        let what = || format!("looking for {} at {offset}", if data { "data" } else { "a hole" });
        if let Some(file) = self.fd.as_simulated() {
            self.check_context(what)?;
            return explained(what, file.backend.files().next_range(file.number, offset, data));
        }
        self.with_std(what, move |file| {
            match seek(file, if data { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) }) {
                Err(Errno::NXIO) => Ok(None),
                found => Ok(Some(found?)),
            }
        })
    }

    /// Returns the descriptor of the handle that uses the page cache, which this file keeps open.
    fn cached_fd(&self) -> io::Result<RawFd> {
        let handle = if self.direct { self.cached(Opcode::Read, 0, 0)? } else { &self.fd };
        Ok(handle.as_fd().as_raw_fd())
    }

    /// Advises the kernel how the page cache will be used for a range; length 0 means up to the end.
    /// [`Sequential`](Advice::Sequential), [`Random`](Advice::Random) and [`Normal`](Advice::Normal)
    /// apply to all requests of this handle, whatever the range. Direct requests are not affected.
    /// Has no effect on a [simulated](mod@crate::simulate) file.
    ///
    /// ```
    /// use coralio::File;
    /// use coralio::fs::Advice;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// coralio::run(|| {
    ///     let log = File::open("Cargo.toml")?;
    ///     log.advise(0, 0, Advice::Sequential)?; // reads ahead further
    ///     log.read_at(&mut [0; 4096], 0)?;
    ///     log.advise(0, 0, Advice::DontNeed) // leaves the page cache to others
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`next_data`](File::next_data).
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`](crate::unblock).
    #[doc(alias = "posix_fadvise")]
    pub fn advise(&self, offset: u64, len: u64, advice: Advice) -> io::Result<()> {
        let what = || format!("advising {advice:?} for {len} bytes at {offset}");
        self.check_context(what)?;
        if self.fd.as_simulated().is_some() {
            return Ok(());
        }
        // Read-ahead belongs to the descriptor whose requests use the page cache.
        let raw = self.cached_fd()?;
        off_the_loop(what, move || {
            // SAFETY: *never left behind*: the handle is borrowed until the closure has ended.
            let fd = unsafe { BorrowedFd::borrow_raw(raw) };
            Ok(fadvise(fd, offset, NonZeroU64::new(len), advice.to_system())?)
        })
    }
}

/// Copies a range from one file to another, or within one file, without passing the data through
/// this process; file systems that can, share the blocks, and network file systems copy on the
/// server. Uses the page cache, whatever [`Direct`](crate::fs::Direct) the files were opened with.
/// Returns the number of bytes, fewer than `len` only if `from` ends.
///
/// ```
/// use coralio::File;
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("coralio-copy-doc-{}", std::process::id()));
/// coralio::run(|| {
///     let file = File::options().read(true).write(true).create(true).open(&path)?;
///     file.write_at(b"twice ", 0)?;
///     assert_eq!(coralio::fs::copy_file_range(&file, 0, &file, 6, 6)?, 6);
///     let mut back = [0; 12];
///     file.read_exact_at(&mut back, 0)?;
///     assert_eq!(&back, b"twice twice ");
///     # std::fs::remove_file(&path)?;
///     Ok(())
/// })
/// # }
/// ```
///
/// # Errors
///
/// The kernel's error, with cause and remedy; and as [`unblock`](crate::unblock). `InvalidInput`: an
/// invalid range, or overlapping ranges of one file. `CrossesDevices`, `Unsupported`: the file systems
/// cannot; read and write instead. `NotConnected`: a file belongs to another context. A part may have
/// been copied.
///
/// # Control
///
/// May yield.
pub fn copy_file_range(from: &File, from_offset: u64, to: &File, to_offset: u64, len: u64) -> io::Result<u64> {
    let what = || format!("copying {len} bytes from {from_offset} to {to_offset}");
    if len == 0 {
        return Ok(0);
    }
    range(from_offset, len)?;
    range(to_offset, len)?;
    from.check_context(what)?;
    to.check_context(what)?;
    if let (Some(source), Some(target)) = (from.fd.as_simulated(), to.fd.as_simulated()) {
        let (source_fd, target_fd) = (source.number, target.number);
        let done = source.backend.perform(
            |files| format!("{} ({} to {})", what(), files.open_name(source_fd), files.open_name(target_fd)),
            |files| files.copy(source_fd, from_offset, target_fd, to_offset, len),
        );
        return explained(what, done);
    }
    // The kernel copies through the page cache. Direct descriptors would need alignment.
    let (source, target) = (from.cached_fd()?, to.cached_fd()?);
    let _order = to.order.cached()?;
    let mut done = 0;
    while done < len {
        check_cancelled()?;
        let (mut at, mut to_at, piece) = (from_offset + done, to_offset + done, PIECE.min(len - done) as usize);
        let copied = off_the_loop(what, move || {
            // SAFETY: *never left behind*: the files are borrowed until the closure has ended.
            let [source, target] = [source, target].map(|raw| unsafe { BorrowedFd::borrow_raw(raw) });
            Ok(rustix::fs::copy_file_range(source, Some(&mut at), target, Some(&mut to_at), piece)?)
        })?;
        if copied == 0 {
            break;
        }
        done += copied as u64;
        to.route.count_dirty(copied as u64);
    }
    Ok(done)
}
