//! What every format can do: a disk of so many bytes that many coroutines of one thread read and write at once.

use std::io;

/// A disk image, used by the coroutines of one context.
///
/// Offsets and lengths are in bytes, of any alignment. What reaches beyond [`len`](Image::len) is refused with
/// `InvalidInput` before anything is done. Two calls that overlap and are under way at once, one of them a write, have no
/// order.
///
/// # Control
///
/// Every call but `len` may yield.
pub trait Image {
    /// The disk's size in bytes, as a guest sees it.
    fn len(&self) -> u64;

    /// Whether the disk has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    ///
    /// `InvalidInput` beyond the end; what the kernel says; `InvalidData` where the image's own tables are wrong.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf`. On stable storage it is after the next [`flush`](Image::flush) only.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Image::read_at); a part may be written then. `PermissionDenied` where the image is opened for reading.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Brings to stable storage what was written before the call.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    fn flush(&self) -> io::Result<()>;

    /// Tells that the range is not needed: reads as zeroes afterwards where the image can do that without cost, else stays
    /// as it is.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Image::write_at).
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The range reads as zeroes afterwards.
    ///
    /// # Errors
    ///
    /// As [`write_at`](Image::write_at); `Unsupported` for [`Zeroes::fast`] where it would cost as much as writing them.
    fn write_zeroes(&self, offset: u64, len: u64, how: Zeroes) -> io::Result<()>;

    /// What the disk is made of from `offset` on, for at most `len` bytes: the first stretch of one kind.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Image::read_at).
    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent>;

    /// How many bytes from `offset` on are known to read as zeroes, at most `len`; 0 where there is data, or where to find out
    /// would cost more than a short read does. [`extent`](Image::extent) may cost as much as all of the data is long.
    ///
    /// # Errors
    ///
    /// As [`read_at`](Image::read_at).
    fn hole(&self, offset: u64, len: u64) -> io::Result<u64>;
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zeroes {
    /// The room stays allocated, so that a later write finds it.
    pub keep_allocated: bool,
    /// Refuse rather than write them out byte by byte.
    pub fast: bool,
}

/// A stretch of the disk that is of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes; never 0 for a range that is not empty.
    pub len: u64,
    /// Has room of its own in the image or what backs it.
    pub allocated: bool,
    /// Reads as zeroes.
    pub zero: bool,
}
