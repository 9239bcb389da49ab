//! Native AIO beside io_uring, for files on tmpfs.
//!
//! io_uring passes each request on tmpfs to a worker thread, which takes two to five times the CPU
//! time of native AIO. Reads and writes on tmpfs complete within native AIO's submit, so the loop
//! finds them before it sleeps. Only syncs complete later, in the kernel's own threads. While one is
//! in flight, the loop sleeps in this engine, and watches the other engine's ring through a
//! descriptor.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coralio_runtime::HomeToken;
use rustix::event::epoll;
use rustix::io::Errno;

use super::choice;
use crate::engine::erased::ErasedEngine;

/// See the module documentation.
pub(super) struct MemoryEngine {
    /// Created with the first file on tmpfs; `None` if native AIO is refused.
    engine: OnceLock<Option<Arc<dyn ErasedEngine>>>,
    depth: u32,
    both: OnceLock<Both>,
}

/// Readable when the other engine has a completion, or the context's descriptor is readable. Kept
/// open, because native AIO identifies a descriptor by its number.
struct Both {
    epoll: OwnedFd,
    /// The descriptor of the context that slept here last.
    context: AtomicI32,
}

impl MemoryEngine {
    pub(super) fn new(depth: u32) -> MemoryEngine {
        MemoryEngine { engine: OnceLock::new(), depth, both: OnceLock::new() }
    }

    /// Returns the engine, if it has been created.
    pub(super) fn engine(&self) -> Option<&Arc<dyn ErasedEngine>> {
        self.engine.get()?.as_ref()
    }

    /// Returns the engine; `None` if native AIO is refused. Called on the home thread of the driver's
    /// context.
    pub(super) fn get_or_create(&self) -> Option<&Arc<dyn ErasedEngine>> {
        self.engine.get_or_init(|| choice::aio(self.depth).ok()).as_ref()
    }

    /// Sleeps until this engine or `main` has a completion, or `other` is readable. Returns `None`
    /// without sleeping if this engine has nothing in flight.
    pub(super) fn sleep(
        &self,
        main: &dyn ErasedEngine,
        token: HomeToken<'_>,
        other: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> Option<io::Result<()>> {
        let engine = self.engine()?;
        if engine.in_flight() == 0 {
            return None;
        }
        let ring = main.completions_fd().filter(|_| main.in_flight() > 0);
        let watched = match ring.map(|ring| self.both(ring, other)) {
            None => other,
            Some(Ok(both)) => both,
            Some(Err(error)) => return Some(Err(error)),
        };
        engine.sleep(token, watched, timeout)
    }

    fn both(&self, ring: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<BorrowedFd<'_>> {
        let watch = |epoll: &OwnedFd, fd: BorrowedFd<'_>| match epoll::add(
            epoll,
            fd,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN,
        ) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error),
        };
        if self.both.get().is_none() {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            watch(&epoll, ring)?;
            let _only_here = self.both.set(Both { epoll, context: AtomicI32::new(-1) });
        }
        let both = self.both.get().expect("set above, on the only thread that does");
        // Relaxed: only the home thread sleeps.
        let former = both.context.swap(other.as_raw_fd(), Ordering::Relaxed);
        if former != -1 && former != other.as_raw_fd() {
            // SAFETY: the engine keeps the contexts that it has belonged to, and so their
            // descriptors.
            let former = unsafe { BorrowedFd::borrow_raw(former) };
            epoll::delete(&both.epoll, former)?;
        }
        watch(&both.epoll, other)?;
        Ok(both.epoll.as_fd())
    }
}
