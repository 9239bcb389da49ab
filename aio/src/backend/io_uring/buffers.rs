//! Registered buffers: chunks of the [arena] whose pages the ring has looked up and pinned, so that a
//! request need not do that.
//!
//! Registering a chunk takes some 50 microseconds and keeps its pages in memory, so it happens at
//! the request that makes it worthwhile. Pinned pages count towards the user's limit on locked
//! memory: where that is exhausted, requests use plain addresses.

use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use io_uring::IoUring;

use crate::backend::arena::{self, CHUNKS};

/// Number of requests on a chunk before it is registered.
pub(super) const TRIES: u8 = 128;
const REGISTERED: u8 = 254;
const REFUSED: u8 = 255;

/// The chunks of one ring.
pub(super) struct Buffers {
    /// For each chunk the number of requests so far, or one of the states above. Relaxed: changed
    /// by the home thread only.
    chunks: [AtomicU8; CHUNKS],
    /// Whether the ring has a table.
    has_table: OnceLock<bool>,
    /// The process that created the ring. A forked child has other pages at these addresses.
    process: u32,
}

impl Buffers {
    pub(super) fn new() -> Buffers {
        Buffers { chunks: [const { AtomicU8::new(0) }; CHUNKS], has_table: OnceLock::new(), process: process::id() }
    }

    /// Returns the number of the registered chunk that contains the memory of a request that is about
    /// to be made.
    #[inline]
    pub(super) fn number_of(&self, ring: &IoUring, addr: usize, len: usize) -> Option<u16> {
        let chunk = arena::chunk_of(addr, len)?;
        match self.chunks[chunk].load(Relaxed) {
            REGISTERED => Some(chunk as u16),
            REFUSED => None,
            tries => self.count(ring, chunk, tries),
        }
    }

    #[cold]
    fn count(&self, ring: &IoUring, chunk: usize, tries: u8) -> Option<u16> {
        let state = match tries {
            0..TRIES => tries + 1,
            _ if self.register(ring, chunk) => REGISTERED,
            _ => REFUSED,
        };
        self.chunks[chunk].store(state, Relaxed);
        (state == REGISTERED).then_some(chunk as u16)
    }

    #[allow(unsafe_code)]
    fn register(&self, ring: &IoUring, chunk: usize) -> bool {
        let submitter = ring.submitter();
        let create = || submitter.register_buffers_sparse(CHUNKS as u32).is_ok();
        // SAFETY: *the range stays*.
        process::id() == self.process
            && *self.has_table.get_or_init(create)
            && unsafe { submitter.register_buffers_update(chunk as u32, &[arena::chunk(chunk)], None) }.is_ok()
    }
}
