//! The interface of all formats: a disk that many coroutines of one thread access concurrently.

use std::io;

/// A disk image, used by the coroutines of one context.
///
/// Offsets and lengths are in bytes and need no alignment. A range that extends beyond
/// [`len`](Image::len) fails with `InvalidInput` before anything is done. The order of concurrent
/// calls that overlap is undefined if one of them writes.
///
/// # Control
///
/// Every call but `len` may yield.
pub trait Image {
    /// Returns the size of the disk in bytes, as the guest sees it.
    fn len(&self) -> u64;

    /// Returns whether the size of the disk is 0.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf`, reading from `offset`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` beyond the end; the kernel's errors; `InvalidData` if the image's metadata is
    /// invalid.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf`. The data is on stable storage only after the next
    /// [`flush`](Image::flush).
    ///
    /// # Errors
    ///
    /// As [`read_at`](Image::read_at), possibly after a part has been written. `PermissionDenied`
    /// if the image is read-only.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Brings all data written before the call to stable storage.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn flush(&self) -> io::Result<()>;

    /// Declares the range unused. It then reads as zeroes where the image can do that cheaply, and
    /// otherwise keeps its content.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Image::write_at).
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes the range read as zeroes.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Image::write_at); `Unsupported` with [`Zeroes::fast`] if it would cost as
    /// much as writing the zeroes.
    fn write_zeroes(&self, offset: u64, len: u64, how: Zeroes) -> io::Result<()>;

    /// Returns the first extent of the range: the length and status of a stretch with uniform
    /// status.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Image::read_at).
    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent>;

    /// Returns how many bytes from `offset`, at most `len`, are known to read as zeroes. Returns 0
    /// for data, or if finding out would cost more than a short read; the cost of
    /// [`extent`](Image::extent) may grow with the length of the data.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Image::read_at).
    fn hole(&self, offset: u64, len: u64) -> io::Result<u64>;
}

/// How to write zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zeroes {
    /// Keeps the range allocated, so that later writes find space.
    pub keep_allocated: bool,
    /// Fails rather than write the zeroes as data.
    pub fast: bool,
}

/// A stretch of the disk with uniform status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The length in bytes; 0 only for an empty range.
    pub len: u64,
    /// Space is allocated in the image or in a backing image.
    pub allocated: bool,
    /// The stretch reads as zeroes.
    pub zero: bool,
}
