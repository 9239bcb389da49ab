//! Opening a file in place, on the loop's thread, where that does not block.
//!
//! ```text
//!   options create, truncate                                  on a thread
//!   look up without a disk (O_PATH, RESOLVE_CACHED)           fails: on a thread
//!     a regular file of a mount known as local                other: on a thread
//!       open (O_NONBLOCK, RESOLVE_CACHED)                     fails: on a thread
//!         inspected again, O_NONBLOCK cleared                 differs: on a thread
//!           done
//! ```
//!
//! `RESOLVE_CACHED` (Linux 5.12) makes the lookup fail with `EAGAIN` unless every name on the path
//! is in the kernel's cache. The file system's own open comes after the lookup, and may block
//! nevertheless. So the file is first inspected through a descriptor that does not open it:
//!
//! - FIFOs wait for the other end, devices for media, drivers and partition tables; to open and
//!   close one may rewind a tape or hang up a line. Only regular files are opened in place.
//! - FUSE and network file systems ask a server; overlayfs copies the file up. Only files of mounts
//!   seen before, with a local file system, are opened in place: the first open of each mount is
//!   made on a thread, which may block to find out ([`inspect`](super::inspect)).
//! - A lease (`F_SETLEASE`) makes an open wait until its holder releases it. `O_NONBLOCK` makes it
//!   fail instead, and a thread then waits. The flag is cleared before the file is used: io_uring
//!   would fail requests that have to wait.
//!
//! The remaining work is short; io_uring does the same within submit. A process that watches
//! opens with fanotify's permission events delays opens in place too.
//!
//! Any error is left to the thread, which repeats the open and gets the authoritative one.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fcntl_setfl, openat2};

use super::inspect::Facts;

/// Opens a file if that does not block; `None` if it might, or fails.
pub(super) fn open_cached(path: &Path, flags: OFlags) -> Option<(OwnedFd, Facts)> {
    if flags.intersects(OFlags::CREATE | OFlags::TRUNC | OFlags::TMPFILE | OFlags::PATH) {
        return None;
    }
    let open = |flags| openat2(CWD, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::CACHED).ok();
    Facts::of_local(open(OFlags::PATH | flags & (OFlags::NOFOLLOW | OFlags::DIRECTORY))?)?;
    let fd = open(flags | OFlags::NONBLOCK)?;
    // The name may belong to another file by now.
    let facts = Facts::of_local(&fd)?;
    if !flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(&fd, flags).ok()?;
    }
    Some((fd, facts))
}
