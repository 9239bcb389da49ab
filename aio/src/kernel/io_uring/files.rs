//! Files that the ring knows by a number of its own: a request need not look up a descriptor, and
//! hold the file while it lasts.
//!
//! The ring has a table, and who registers a file gets a place there. In an
//! [`Operation`](super::Operation) its number is below -1, where no descriptor is:
//!
//! ```text
//!   place    0   1   2
//!   number  -2  -3  -4
//! ```
//!
//! The ring keeps the file open, so it must let go of it before the descriptor is closed; and at
//! once, or locks would outlast the file, and a file system that was left could not be unmounted.
//! Older kernels do it by and by, in the background
//! (<https://github.com/axboe/liburing/issues/267>): they get no table.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{IoUring, squeue, types};
use parking_lot::Mutex;
use slab::Slab;

/// The table's size: as many files as a process usually may have open. More go by their
/// descriptors.
pub(super) const PLACES: u32 = 1024;

/// The places that are taken; `None` without a table.
pub(super) struct Files(Option<Mutex<Slab<()>>>);

impl Files {
    /// A table for `ring`, if `wanted` and to be had.
    pub(super) fn new(ring: &IoUring, wanted: bool) -> Files {
        let made = wanted && ring.submitter().register_files_sparse(PLACES).is_ok();
        Files(made.then(Mutex::default))
    }

    /// The number of the file in the ring's table; its descriptor, if it finds no place there.
    pub(super) fn register(&self, ring: &IoUring, fd: BorrowedFd<'_>) -> RawFd {
        let fd = fd.as_raw_fd();
        let Some(taken) = &self.0 else { return fd };
        let mut taken = taken.lock();
        // One that is behind the table's end the kernel refuses.
        let place = taken.vacant_key();
        match ring.submitter().register_files_update(place as u32, &[fd]) {
            Ok(1) => number(taken.insert(())),
            _ => fd,
        }
    }

    /// The ring lets go of the file.
    pub(super) fn unregister(&self, ring: &IoUring, number: RawFd) {
        let (Some(taken), Some(place)) = (&self.0, place(number)) else { return };
        let mut taken = taken.lock();
        // Should the kernel refuse, the next file in this place takes its turn.
        let _ = ring.submitter().register_files_update(place, &[-1]);
        taken.remove(place as usize);
    }
}

fn number(place: usize) -> RawFd {
    -2 - place as RawFd
}

#[inline]
fn place(number: RawFd) -> Option<u32> {
    (number < -1).then(|| (-2 - number) as u32)
}

/// How a request names a file.
#[inline]
pub(super) fn named(number: RawFd) -> (types::Fd, squeue::Flags) {
    match place(number) {
        Some(place) => (types::Fd(place as RawFd), squeue::Flags::FIXED_FILE),
        None => (types::Fd(number), squeue::Flags::empty()),
    }
}
