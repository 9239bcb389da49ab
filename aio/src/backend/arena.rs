//! Memory for buffers that a ring can register.
//!
//! The kernel looks up and pins the pages of each request's buffer, unless they belong to a buffer
//! that is registered with the ring. On a virtio disk that is worth 9 to 11 % of the CPU time of a
//! bare loop's 4 KiB direct reads at depth 32, 2 to 3 % at depth 1, and nothing on a sparse file.
//!
//! ```text
//!   one range of addresses
//!   | chunk 0          | chunk 1          | ..               64 chunks of 1 MiB
//!   | buf | buf | free | buf        | free|
//!
//!   a ring registers chunks; a request finds its chunk by its buffer's address
//! ```
//!
//! *The range stays*: its addresses are reserved once. A chunk becomes accessible with its first
//! allocation, and is neither unmapped nor discarded afterwards: a ring that has pinned a page would
//! transfer to that page, no longer to the address.
//!
//! The lock is held during a `fork`, so that the child finds it free. It is a plain flag, since a
//! lock that parks threads may not be released in a child without them.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::{mem, thread};

/// Size of a chunk in bytes, and of the largest allocation.
pub(crate) const CHUNK: usize = 1 << 20;
/// Number of chunks.
pub(crate) const CHUNKS: usize = 64;
/// Size and alignment of the smallest allocation in bytes.
pub(crate) const PAGE: usize = 4096;

const PAGES_PER_CHUNK: usize = CHUNK / PAGE;
/// An address that no buffer is less than 64 MiB above, on the 64-bit machines that are supported.
const NOWHERE: usize = isize::MAX as usize;

/// The address of the range. Relaxed: a thread that has an address in the range has synchronised
/// with the thread that allocated there.
static BASE: AtomicUsize = AtomicUsize::new(NOWHERE);

static PAGES: Pages = Pages { is_locked: AtomicBool::new(false), table: UnsafeCell::new(Table::NEW) };

/// The pages of the range, and their lock.
struct Pages {
    is_locked: AtomicBool,
    table: UnsafeCell<Table>,
}

// SAFETY: *locked*: the table is accessed only through a guard of the lock.
unsafe impl Sync for Pages {}

struct Table {
    /// The address of the range; `None` before the first allocation.
    base: Option<NonNull<u8>>,
    /// The system has refused the range.
    is_refused: bool,
    chunks: [Chunk; CHUNKS],
}

struct Chunk {
    is_accessible: bool,
    used: [bool; PAGES_PER_CHUNK],
    /// The first of the pages that were never in use, which are zero.
    fresh: usize,
    /// A run of this many unused pages was not found since a page was freed.
    lacks: usize,
}

struct Guard<'a>(&'a Pages);

impl Pages {
    fn lock(&self) -> Guard<'_> {
        // Acquire pairs with the Release in `unlock`.
        while self.is_locked.swap(true, Acquire) {
            thread::yield_now();
        }
        Guard(self)
    }

    fn unlock(&self) {
        self.is_locked.store(false, Release);
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

impl Deref for Guard<'_> {
    type Target = Table;

    fn deref(&self) -> &Table {
        // SAFETY: *locked*.
        unsafe { &*self.0.table.get() }
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Table {
        // SAFETY: *locked*.
        unsafe { &mut *self.0.table.get() }
    }
}

extern "C" fn before_fork() {
    mem::forget(PAGES.lock());
}

extern "C" fn after_fork() {
    PAGES.unlock();
}

impl Table {
    const NEW: Table = Table { base: None, is_refused: false, chunks: [const { Chunk::NEW }; CHUNKS] };

    /// Returns the address of the range, which the first call reserves.
    fn base(&mut self) -> Option<NonNull<u8>> {
        if self.base.is_none() && !self.is_refused {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a new mapping, at an address that the kernel chooses; functions that live as
            // long as the process.
            let reserved = unsafe {
                let base = libc::mmap(ptr::null_mut(), CHUNKS * CHUNK, libc::PROT_NONE, flags, -1, 0);
                // A small buffer must not take a huge page. Fails without the mapping, or without
                // huge pages.
                libc::madvise(base, CHUNKS * CHUNK, libc::MADV_NOHUGEPAGE);
                let handlers = || libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork)) == 0;
                NonNull::new(base.cast()).filter(|_| base != libc::MAP_FAILED && handlers())
            };
            self.base = reserved;
            self.is_refused = reserved.is_none();
            if let Some(base) = reserved {
                BASE.store(base.as_ptr().expose_provenance(), Relaxed);
            }
        }
        self.base
    }
}

impl Chunk {
    const NEW: Chunk =
        Chunk { is_accessible: false, used: [false; PAGES_PER_CHUNK], fresh: 0, lacks: PAGES_PER_CHUNK + 1 };

    /// Takes `count` consecutive pages. Returns the number of the first one.
    fn take(&mut self, count: usize) -> Option<usize> {
        if count >= self.lacks {
            return None;
        }
        let mut run = 0;
        for page in 0..PAGES_PER_CHUNK {
            run = if self.used[page] { 0 } else { run + 1 };
            if run == count {
                let first = page + 1 - count;
                self.used[first..=page].fill(true);
                return Some(first);
            }
        }
        self.lacks = count;
        None
    }

    /// Makes the chunk at `start` accessible, if it is not yet. Returns whether it is.
    fn open(&mut self, start: NonNull<u8>) -> bool {
        // SAFETY: a chunk of the range, whose pages no allocation has yet.
        self.is_accessible = self.is_accessible
            || unsafe { libc::mprotect(start.as_ptr().cast(), CHUNK, libc::PROT_READ | libc::PROT_WRITE) } == 0;
        self.is_accessible
    }
}

/// Allocates `len` zero bytes at a multiple of [`PAGE`], within one chunk. Returns `None` if there is
/// no room, or `len` is 0 or exceeds [`CHUNK`].
pub(crate) fn allocate(len: usize) -> Option<NonNull<u8>> {
    if len == 0 || len > CHUNK {
        return None;
    }
    let count = len.div_ceil(PAGE);
    let mut table = PAGES.lock();
    let base = table.base()?;
    let (number, first) =
        table.chunks.iter_mut().enumerate().find_map(|(number, chunk)| Some((number, chunk.take(count)?)))?;
    let chunk = &mut table.chunks[number];
    // SAFETY: within the range.
    let start = unsafe { base.add(number * CHUNK) };
    if !chunk.open(start) {
        chunk.used[first..first + count].fill(false);
        return None;
    }
    let reused = chunk.fresh.saturating_sub(first).min(count);
    chunk.fresh = chunk.fresh.max(first + count);
    drop(table);
    // SAFETY: the pages lie within the chunk, and belong to the caller alone.
    unsafe {
        let start = start.add(first * PAGE);
        start.write_bytes(0, reused * PAGE);
        Some(start)
    }
}

/// Frees an allocation.
///
/// # Safety
///
/// [`allocate`] has returned `start` for this `len`; the memory is no longer used.
pub(crate) unsafe fn free(start: NonNull<u8>, len: usize) {
    let first = (start.as_ptr().addr() - BASE.load(Relaxed)) / PAGE;
    let mut table = PAGES.lock();
    let chunk = &mut table.chunks[first / PAGES_PER_CHUNK];
    chunk.used[first % PAGES_PER_CHUNK..][..len.div_ceil(PAGE)].fill(false);
    chunk.lacks = PAGES_PER_CHUNK + 1;
}

/// Returns the chunk that contains the memory; `None` if no chunk does.
#[inline]
pub(crate) fn chunk_of(addr: usize, len: usize) -> Option<usize> {
    let offset = addr.wrapping_sub(BASE.load(Relaxed));
    (offset < CHUNKS * CHUNK && offset % CHUNK + len <= CHUNK).then_some(offset / CHUNK)
}

/// Returns the memory of a chunk, for a ring to register. [`chunk_of`] has returned its number.
pub(crate) fn chunk(number: usize) -> libc::iovec {
    assert!(number < CHUNKS && BASE.load(Relaxed) != NOWHERE, "there is no chunk {number}");
    let base = ptr::with_exposed_provenance_mut::<libc::c_void>(BASE.load(Relaxed) + number * CHUNK);
    libc::iovec { iov_base: base, iov_len: CHUNK }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_zero_and_disjoint_and_lie_within_a_chunk() {
        // E13: random allocations of all sizes, freed in random order and dirty; the range may be
        // exhausted
        let mut random = 1u64;
        let mut draw = |below: usize| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as usize % below
        };
        let mut live: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
        // Whole chunks: fresh ones, and all of them again.
        for _ in 0..=CHUNKS {
            let two = [(); 2].map(|()| allocate(CHUNK).unwrap());
            // SAFETY: allocated with this length, and not used any more.
            two.into_iter().for_each(|start| unsafe { free(start, CHUNK) });
        }
        for step in 0..1000 {
            if draw(5) > 1 {
                let most = [PAGE, 16 * PAGE, CHUNK][draw(3)];
                let len = 1 + draw(most);
                let Some(start) = allocate(len) else { continue };
                // SAFETY: allocated, and not freed yet.
                let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) };
                assert!(bytes.iter().all(|&byte| byte == 0), "step {step}");
                assert_eq!(start.as_ptr().addr() % PAGE, 0);
                assert!(chunk_of(start.as_ptr().addr(), len).is_some());
                bytes.fill(step as u8 | 1);
                live.push((start, len, step as u8 | 1));
            } else if !live.is_empty() {
                let (start, len, value) = live.swap_remove(draw(live.len()));
                // SAFETY: allocated, and not freed yet.
                let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), len) };
                assert!(bytes.iter().all(|&byte| byte == value), "step {step}");
                // SAFETY: allocated with this length, and not used any more.
                unsafe { free(start, len) };
            }
        }
        // SAFETY: as above.
        live.into_iter().for_each(|(start, len, _)| unsafe { free(start, len) });
        assert!(allocate(0).is_none() && allocate(CHUNK + 1).is_none());
        for len in [1, CHUNK] {
            let start = allocate(len).unwrap();
            // SAFETY: as above.
            unsafe { free(start, len) };
        }
        let (base, elsewhere) = (chunk(0).iov_base.addr(), [0; 1]);
        for number in 0..CHUNKS {
            let start = chunk(number).iov_base.addr();
            assert_eq!(start, base + number * CHUNK);
            assert_eq!(chunk_of(start, CHUNK), Some(number));
            assert_eq!(chunk_of(start, CHUNK + 1), None);
            assert_eq!(chunk_of(start + CHUNK - 1, 1), Some(number));
            assert_eq!(chunk_of(start + CHUNK - 1, 2), None);
        }
        for outside in [base - 1, base + CHUNKS * CHUNK, elsewhere.as_ptr().addr()] {
            assert_eq!(chunk_of(outside, 1), None);
        }
    }
}
