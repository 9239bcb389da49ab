//! Native AIO beside io_uring, for files on tmpfs.
//!
//! io_uring passes each request on tmpfs to a worker thread, which takes two to five times the CPU
//! time of native AIO. Reads and writes on tmpfs complete within native AIO's submit, so the loop
//! finds them before it sleeps. Only syncs complete later, but soon, since there is nothing to
//! write. While one is in flight the loop sleeps in this engine, and takes the completions of the
//! other engine afterwards.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coralio_runtime::HomeToken;

use super::choice;
use crate::engine::erased::ErasedEngine;

/// See the module documentation.
pub(super) struct MemoryEngine {
    /// Created with the first file on tmpfs; `None` if native AIO is refused.
    engine: OnceLock<Option<Arc<dyn ErasedEngine>>>,
    depth: u32,
}

impl MemoryEngine {
    pub(super) fn new(depth: u32) -> MemoryEngine {
        MemoryEngine { engine: OnceLock::new(), depth }
    }

    /// Returns the engine, if it has been created.
    #[inline]
    pub(super) fn engine(&self) -> Option<&Arc<dyn ErasedEngine>> {
        self.engine.get()?.as_ref()
    }

    /// Returns the engine; `None` if native AIO is refused. Called on the home thread of the driver's
    /// context.
    pub(super) fn get_or_create(&self) -> Option<&Arc<dyn ErasedEngine>> {
        self.engine.get_or_init(|| choice::aio(self.depth).ok()).as_ref()
    }

    /// Sleeps as [`EventSource::sleep`](coralio_runtime::EventSource::sleep) says. Returns `None`
    /// without sleeping if the engine has nothing in flight.
    pub(super) fn sleep(
        &self,
        token: HomeToken<'_>,
        other: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> Option<io::Result<bool>> {
        self.engine().filter(|engine| engine.in_flight() > 0)?.sleep(token, other, timeout)
    }
}
