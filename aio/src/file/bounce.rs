//! Bounce buffers: aligned buffers through which direct I/O on unaligned memory is copied.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ptr;

use crate::AlignedBuf;

/// Minimum size and alignment of a buffer: suits every device.
const PAGE: usize = 4096;
/// The most bytes that go through one buffer, however long the request: a multiple of every
/// alignment.
pub(super) const LARGEST: usize = 16 << 20;
/// Larger buffers are freed after use.
const LARGEST_KEPT: usize = 256 << 10;
/// Maximum number of unused buffers kept per thread.
const MAX_KEPT: usize = 64;

thread_local! {
    /// Unused buffers; the most recently used one is at the end.
    static FREE: RefCell<Vec<AlignedBuf>> = const { RefCell::new(Vec::new()) };
}

/// An aligned buffer, returned to its thread's pool when it is dropped.
pub(super) struct Bounce {
    /// `None` only during drop.
    buf: Option<AlignedBuf>,
}

impl Bounce {
    /// Returns a buffer of at least `len` bytes, aligned to `align`. Its contents are arbitrary.
    pub(super) fn new(len: usize, align: usize) -> Bounce {
        let (size, align) = (len.next_power_of_two().max(PAGE), align.max(PAGE));
        let suits = |buf: &AlignedBuf| buf.len() == size && buf.align() >= align;
        let found = FREE.with_borrow_mut(|free| free.iter().rposition(suits).map(|place| free.swap_remove(place)));
        Bounce { buf: Some(found.unwrap_or_else(|| AlignedBuf::new(size, align))) }
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.buf.as_mut().expect("the buffer exists until the drop")
    }

    pub(super) fn addr(&mut self) -> u64 {
        self.bytes().as_mut_ptr() as u64
    }

    /// Copies the first `count` bytes of `vectors` to the front of the buffer, which must be large
    /// enough.
    ///
    /// # Safety
    ///
    /// Each of `vectors` is the address and length of memory that is valid to read.
    pub(super) unsafe fn gather(&mut self, count: usize, vectors: &[(u64, usize)]) {
        let mut rest = &mut self.bytes()[..count];
        for &(addr, len) in vectors {
            let len = len.min(rest.len());
            let (here, behind) = rest.split_at_mut(len);
            // SAFETY: promised by the caller; the buffer is owned by `self`, so they do not
            // overlap.
            unsafe { here.as_mut_ptr().copy_from_nonoverlapping(ptr::with_exposed_provenance(addr as usize), len) };
            rest = behind;
        }
    }

    /// Copies the first `count` bytes of the buffer to `vectors`, one after the other.
    ///
    /// # Safety
    ///
    /// Each of `vectors` is the address and length of memory that is valid to write.
    pub(super) unsafe fn scatter(&mut self, mut count: usize, vectors: &[(u64, usize)]) {
        let mut rest = &*self.bytes();
        for &(addr, len) in vectors {
            let (here, behind) = rest.split_at(len.min(count));
            // SAFETY: as in `gather`.
            unsafe {
                here.as_ptr().copy_to_nonoverlapping(ptr::with_exposed_provenance_mut(addr as usize), here.len())
            };
            count -= here.len();
            rest = behind;
        }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        let Some(buf) = self.buf.take().filter(|buf| buf.len() <= LARGEST_KEPT) else { return };
        // During thread exit the pool may be gone.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < MAX_KEPT {
                free.push(buf);
            }
        });
    }
}
