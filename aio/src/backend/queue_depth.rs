//! A real backend's queue depth, and the requests that count against it.

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;

use super::Backend;

/// The maximum queue depth: the limit of io_uring's submission ring, and half of the usual
/// `fs.aio-max-nr`, which applies to the whole machine.
pub(super) const MAX_DEPTH: u32 = 32768;

/// Counts the requests that are submitted or deferred, and not yet committed. Changed under the
/// context's lock, with plain loads and stores.
#[derive(Debug)]
pub(super) struct InFlight {
    depth: u32,
    count: AtomicU32,
}

impl InFlight {
    /// Creates a count for a queue of `depth` requests; the error is that `depth` is out of range.
    pub(super) fn new(depth: u32) -> io::Result<InFlight> {
        if depth == 0 || depth > MAX_DEPTH {
            let message =
                format!("invalid queue depth {depth}: must be 1 to {MAX_DEPTH}; 32 suits most disks, 256 a fast one");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(InFlight { depth, count: AtomicU32::new(0) })
    }

    #[inline]
    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    #[inline]
    pub(super) fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// Returns for how many of the `offered` requests there is room. Fails if there is no room.
    #[inline]
    pub(super) fn room(&self, offered: usize) -> io::Result<usize> {
        let count = offered.min(self.depth.saturating_sub(self.count()) as usize);
        if count == 0 && offered > 0 { Err(io::Error::from_raw_os_error(libc::EAGAIN)) } else { Ok(count) }
    }

    #[inline]
    pub(super) fn add(&self, submitted: usize) {
        self.count.store(self.count() + submitted as u32, Relaxed);
    }

    /// Subtracts a committed request. Wrapping: a caller that violates rule E9 detects it with its
    /// own counter.
    #[inline]
    pub(super) fn commit(&self) {
        self.count.store(self.count().wrapping_sub(1), Relaxed);
    }

    /// Waits for the requests of `backend`, whose count this is, and discards their completions.
    ///
    /// # Safety
    ///
    /// `backend` is being dropped, so no other thread uses it.
    pub(super) unsafe fn discard(&self, backend: &impl Backend) {
        while self.count() > 0 {
            // SAFETY: promised by the caller.
            unsafe {
                if backend.peek_completion().is_some() {
                    backend.advance();
                } else if backend.wait(None, None).is_err() {
                    thread::yield_now();
                }
            }
        }
    }
}
