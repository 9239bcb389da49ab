//! Registered files: the ring knows them by numbers of its own, so a request need not look up a
//! descriptor and hold a reference to the file.
//!
//! The ring has a table, and each registered file gets a slot in it. In an
//! [`Operation`](super::Operation) its number is below -1, where there are no descriptors:
//!
//! ```text
//!   slot     0   1   2
//!   number  -2  -3  -4
//! ```
//!
//! The ring keeps the file open, so it must release the file before the descriptor is closed. It
//! must do so immediately, or locks would outlast the file, and its file system could not be
//! unmounted. Older kernels release the file asynchronously
//! (<https://github.com/axboe/liburing/issues/267>): they get no table.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use io_uring::{IoUring, squeue, types};
use parking_lot::Mutex;
use slab::Slab;

/// The table's size: the usual limit on a process's open files. Further files use their
/// descriptors.
pub(super) const PLACES: u32 = 1024;

/// The slots in use; `None` without a table.
#[derive(Default)]
pub(super) struct Files(Option<Mutex<Slab<()>>>);

impl Files {
    /// Creates a table for `ring`, if the kernel closes a file immediately when it is removed from
    /// the table. True since Linux 6.13; the first feature that indicates it came with 6.15.
    pub(super) fn new(ring: &IoUring) -> Files {
        let made = ring.params().is_feature_no_iowait() && ring.submitter().register_files_sparse(PLACES).is_ok();
        Files(made.then(Mutex::default))
    }

    /// Registers the file and returns its number; returns its descriptor if there is no slot for
    /// it.
    pub(super) fn register(&self, ring: &IoUring, fd: BorrowedFd<'_>) -> RawFd {
        let fd = fd.as_raw_fd();
        let Some(taken) = &self.0 else { return fd };
        let mut taken = taken.lock();
        // The kernel rejects a slot beyond the table's end.
        let place = taken.vacant_key();
        match ring.submitter().register_files_update(place as u32, &[fd]) {
            Ok(1) => number(taken.insert(())),
            _ => fd,
        }
    }

    /// Makes the ring release the file.
    pub(super) fn unregister(&self, ring: &IoUring, number: RawFd) {
        let (Some(taken), Some(place)) = (&self.0, place(number)) else { return };
        let mut taken = taken.lock();
        // If the kernel refuses, the next file in this slot replaces it.
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

/// Converts a file's number to the form used in requests.
#[inline]
pub(super) fn named(number: RawFd) -> (types::Fd, squeue::Flags) {
    match place(number) {
        Some(place) => (types::Fd(place as RawFd), squeue::Flags::FIXED_FILE),
        None => (types::Fd(number), squeue::Flags::empty()),
    }
}
