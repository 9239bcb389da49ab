//! A file as a stream, for code that uses the `std::io` traits.
//!
//! A [`File`] has no position, because coroutines share it: a single position, like that of std's
//! `&File`, would silently interleave their streams. So a position is a separate value with one
//! owner.

use std::borrow::Borrow;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};

use super::File;

/// A file and a position in it, with [`Read`], [`Write`] and [`Seek`]: libraries for these traits
/// then do I/O that suspends the coroutine, never the thread.
///
/// It is created from a `File`, a `&File` or an `Rc<File>`; each stream has its own position. It is
/// unbuffered: wrap it in a `BufReader` or `BufWriter` for small reads and writes. Data is on
/// stable storage after [`File::sync_data`]; `flush` does nothing.
///
/// Many libraries are written for threads, whose stacks are larger than those of coroutines.
/// Compressors, for example, need more than the default: give them
/// [`stack_size`](crate::RuntimeBuilder::stack_size)`(1 << 20)`; stack that is never touched costs
/// no memory.
///
/// ```
/// use coralio::File;
/// use coralio::fs::FileCursor;
/// use std::io::{BufRead, BufReader};
///
/// # fn main() -> std::io::Result<()> {
/// let first = coralio::run(|| {
///     let hosts = FileCursor::new(File::open("/etc/hosts")?);
///     BufReader::new(hosts).lines().next().transpose()
/// })?;
/// println!("{first:?}");
/// # Ok(())
/// # }
/// ```
///
/// # Control
///
/// Calls that do I/O may yield, as [`File::read_at`]; so may a seek from the end, as [`File::len`].
#[derive(Clone, Debug)]
pub struct FileCursor<F: Borrow<File>> {
    file: F,
    position: u64,
}

impl<F: Borrow<File>> FileCursor<F> {
    /// Creates a stream that starts at the beginning of the file.
    pub fn new(file: F) -> FileCursor<F> {
        FileCursor::at(file, 0)
    }

    /// Creates a stream that starts at byte `position`.
    pub fn at(file: F, position: u64) -> FileCursor<F> {
        FileCursor { file, position }
    }

    /// Returns a reference to the file.
    pub fn get_ref(&self) -> &File {
        self.file.borrow()
    }

    /// Returns the file, discarding the position.
    pub fn into_inner(self) -> F {
        self.file
    }

    fn go_on(&mut self, done: io::Result<usize>) -> io::Result<usize> {
        done.inspect(|&done| self.position += done as u64)
    }
}

impl<F: Borrow<File>> Read for FileCursor<F> {
    /// Returns fewer bytes than `buf` holds only at the end of the file.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let done = self.file.borrow().read_at(buf, self.position);
        self.go_on(done)
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let done = self.file.borrow().read_vectored_at(bufs, self.position);
        self.go_on(done)
    }
}

impl<F: Borrow<File>> Write for FileCursor<F> {
    /// Writes all of `buf`.
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let done = self.file.borrow().write_at(buf, self.position);
        self.go_on(done)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let done = self.file.borrow().write_vectored_at(bufs, self.position);
        self.go_on(done)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<F: Borrow<File>> Seek for FileCursor<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (from, by) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::Current(by) => (self.position, by),
            SeekFrom::End(by) => (self.file.borrow().len()?, by),
        };
        // Files end below 2^63, and so do valid positions.
        match from.checked_add_signed(by).filter(|&position| i64::try_from(position).is_ok()) {
            Some(position) => {
                self.position = position;
                Ok(position)
            }
            None => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("cannot seek by {by} from {from}: the new offset must be 0 to 2^63 - 1"),
            )),
        }
    }

    fn stream_position(&mut self) -> io::Result<u64> {
        Ok(self.position)
    }
}
