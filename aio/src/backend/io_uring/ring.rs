//! The rings in memory, accessible to several threads.
//!
//! The `io-uring` crate's view of the completion ring is for one user at a time: it caches the
//! cursor, and stores it when dropped. Here the home thread may look while another one reaps. The
//! crate's view of the submission ring cannot take back entries that the kernel did not consume. So
//! the same pages are mapped once more, and accessed through atomics.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::*};

use super::super::Completion;
use super::super::poll_event::CompletionRing;

/// The kernel's reply when it created the rings: `io_uring_params` of `linux/io_uring.h`, as words.
/// The ones in use are the offsets of fields, in bytes.
type Params = [u32; 30];
const SQ_HEAD: usize = 10;
const SQ_TAIL: usize = 11;
const SQ_ARRAY: usize = 16;
const CQ_HEAD: usize = 20;
const CQ_TAIL: usize = 21;
const CQ_ENTRIES: usize = 25;

/// A completion. The fields are atomic because the kernel writes this memory.
#[repr(C)]
struct Cqe {
    user_data: AtomicU64,
    res: AtomicI32,
    flags: AtomicU32,
}

const _: () = assert!(size_of::<io_uring::Parameters>() == size_of::<Params>() && size_of::<Cqe>() == 16);

/// Both rings, mapped. Cursors increase forever and wrap; their low bits are the index in the ring.
pub(super) struct Rings {
    base: NonNull<u8>,
    length: usize,
    submitted: NonNull<AtomicU32>,
    to_submit: NonNull<AtomicU32>,
    head: NonNull<AtomicU32>,
    tail: NonNull<AtomicU32>,
    completions: NonNull<Cqe>,
    mask: u32,
}

// SAFETY: *The rings stay*, and are accessed only through atomics.
unsafe impl Send for Rings {}
// SAFETY: as above.
unsafe impl Sync for Rings {}

impl Rings {
    /// Maps the rings of `ring`, which are contiguous (`IORING_FEAT_SINGLE_MMAP`).
    pub(super) fn map(ring: &io_uring::IoUring) -> io::Result<Rings> {
        // SAFETY: the crate guarantees that its type is a transparent wrapper of the kernel's
        // structure.
        let params = unsafe { *ptr::from_ref(ring.params()).cast::<Params>() };
        let (sq_entries, cq_entries) = (ring.params().sq_entries(), ring.params().cq_entries());
        assert!(ring.params().is_feature_single_mmap(), "every kernel that setup accepts has it");
        assert!(
            cq_entries >= sq_entries,
            "{cq_entries} completion entries for {sq_entries} requests: completions could be lost"
        );
        let submissions = params[SQ_ARRAY] as usize + sq_entries as usize * size_of::<u32>();
        let completions = params[CQ_ENTRIES] as usize + cq_entries as usize * size_of::<Cqe>();
        let length = submissions.max(completions);
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping, at an address that the kernel chooses; the rings are at offset 0
        // of a ring's descriptor.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, prot, flags, ring.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).expect("a mapping is never at address 0");
        // SAFETY: the offsets are the kernel's own, within the mapping.
        let at = |field: usize| unsafe { base.add(params[field] as usize) };
        Ok(Rings {
            base,
            length,
            submitted: at(SQ_HEAD).cast(),
            to_submit: at(SQ_TAIL).cast(),
            head: at(CQ_HEAD).cast(),
            tail: at(CQ_TAIL).cast(),
            completions: at(CQ_ENTRIES).cast(),
            mask: cq_entries - 1,
        })
    }

    #[inline]
    fn cursor(&self, cursor: NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: *The rings stay*: a cursor of these rings, a word shared by kernel and user
        // space.
        unsafe { cursor.as_ref() }
    }

    /// Returns the number of entries on the submission ring that the kernel has not consumed.
    #[inline]
    pub(super) fn unsubmitted(&self) -> u32 {
        // Acquire pairs with the kernel's release of its cursor: it has read the entries before
        // that.
        let submitted = self.cursor(self.submitted).load(Acquire);
        // Relaxed: written only by the thread that submits; the kernel reads it during that
        // thread's system calls.
        self.cursor(self.to_submit).load(Relaxed).wrapping_sub(submitted)
    }

    /// Takes back up to `most` of the last entries of the submission ring that the kernel did not
    /// consume. Returns their number.
    ///
    /// The caller holds the lock, so no other thread submits.
    #[inline]
    pub(super) fn withdraw(&self, most: usize) -> usize {
        let left = self.unsubmitted().min(most as u32);
        let tail = self.cursor(self.to_submit);
        tail.store(tail.load(Relaxed).wrapping_sub(left), Relaxed);
        left as usize
    }
}

impl CompletionRing for Rings {
    #[inline]
    fn peek(&self) -> Option<Completion> {
        // Relaxed: moved by this thread, or by a previous holder of the lock.
        let head = self.cursor(self.head).load(Relaxed);
        // Acquire pairs with the kernel's release of the tail, after a completion and its request's
        // effects on memory.
        if head == self.cursor(self.tail).load(Acquire) {
            return None;
        }
        // SAFETY: *The rings stay*; the mask keeps the index within the ring.
        let completion = unsafe { self.completions.add((head & self.mask) as usize).as_ref() };
        // Relaxed: ordered by the tail, and not overwritten before the head has moved past it.
        Some(Completion { key: completion.user_data.load(Relaxed), result: completion.res.load(Relaxed).into() })
    }

    #[inline]
    fn advance(&self) {
        let head = self.cursor(self.head);
        // Release pairs with the kernel's read of the head before it reuses the slot: this thread
        // has read its completion.
        head.store(head.load(Relaxed).wrapping_add(1), Release);
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`; `drop` has exclusive access, so no other thread reads it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}
