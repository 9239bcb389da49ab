//! The rings in memory, for several threads to look at.
//!
//! The `io-uring` crate's view of the completion ring is for one at a time: it keeps the cursor to
//! itself, and stores it when it is dropped. Here the home thread may look while another one reaps.
//! And its view of the submission ring cannot take back what the kernel left there. So the same
//! pages are mapped once more, and read through atomics.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::*};

use super::super::Completion;
use super::super::watch::Ring;

/// `io_uring_params` of `linux/io_uring.h`: what the kernel said when it made the rings.
#[repr(C)]
#[derive(Debug)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    sq_off: SubmissionOffsets,
    cq_off: CompletionOffsets,
}

/// Where what lies in the submission ring, in bytes.
#[repr(C)]
#[derive(Debug)]
struct SubmissionOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    resv1: u32,
    user_addr: u64,
}

/// Where what lies in the completion ring, in bytes.
#[repr(C)]
#[derive(Debug)]
struct CompletionOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    overflow: u32,
    cqes: u32,
    flags: u32,
    resv1: u32,
    user_addr: u64,
}

/// A completion. The fields are atomic because it is memory that the kernel writes.
#[repr(C)]
struct Cqe {
    user_data: AtomicU64,
    res: AtomicI32,
    flags: AtomicU32,
}

const _: () = assert!(size_of::<Params>() == 120 && size_of::<io_uring::Parameters>() == 120 && size_of::<Cqe>() == 16);

/// Both rings, mapped. Cursors count on for ever and wrap; their low bits are the place in the
/// ring.
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

// SAFETY: *The rings stay*, and are read and written through atomics alone.
unsafe impl Send for Rings {}
// SAFETY: as above.
unsafe impl Sync for Rings {}

impl Rings {
    /// Maps the rings of `ring`, of which both lie in one piece (`IORING_FEAT_SINGLE_MMAP`).
    pub(super) fn map(ring: &io_uring::IoUring) -> io::Result<Rings> {
        // SAFETY: the crate promises that its type is the kernel's structure in a transparent
        // wrapper.
        let Params { sq_entries, cq_entries, sq_off, cq_off, .. } =
            unsafe { &*ptr::from_ref(ring.params()).cast::<Params>() };
        assert!(ring.params().is_feature_single_mmap(), "setup refuses kernels without");
        assert!(
            cq_entries >= sq_entries,
            "{cq_entries} completions for {sq_entries} requests: some would have no place"
        );
        let submissions = sq_off.array as usize + *sq_entries as usize * size_of::<u32>();
        let completions = cq_off.cqes as usize + *cq_entries as usize * size_of::<Cqe>();
        let length = submissions.max(completions);
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping, where the kernel likes; at offset 0 of a ring's descriptor are the
        // rings.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, prot, flags, ring.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).expect("not mapped at 0");
        // SAFETY: the offsets are the kernel's own, within what it let us map.
        let at = |offset: u32| unsafe { base.add(offset as usize) };
        Ok(Rings {
            base,
            length,
            submitted: at(sq_off.head).cast(),
            to_submit: at(sq_off.tail).cast(),
            head: at(cq_off.head).cast(),
            tail: at(cq_off.tail).cast(),
            completions: at(cq_off.cqes).cast(),
            mask: cq_entries - 1,
        })
    }

    #[inline]
    fn cursor(&self, cursor: NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: *The rings stay*: one of ours, a word that kernel and user space share.
        unsafe { cursor.as_ref() }
    }

    /// Takes back what was put on the submission ring and the kernel did not consume; says how much
    /// that was.
    ///
    /// The caller holds the lock, so nobody else submits.
    #[inline]
    pub(super) fn withdraw(&self) -> usize {
        // Acquire pairs with the kernel's release of its cursor: it has read what is before that.
        let submitted = self.cursor(self.submitted).load(Acquire);
        let tail = self.cursor(self.to_submit);
        // Relaxed: ours alone; the kernel looks at it within a system call of ours.
        let left = tail.load(Relaxed).wrapping_sub(submitted);
        tail.store(submitted, Relaxed);
        left as usize
    }
}

impl Ring for Rings {
    #[inline]
    fn at_cursor(&self) -> Option<Completion> {
        // Relaxed: the lock's holder before us moved it, if we did not.
        let head = self.cursor(self.head).load(Relaxed);
        // Acquire pairs with the kernel's release of the tail after a completion, and after what
        // its request did to memory.
        if head == self.cursor(self.tail).load(Acquire) {
            return None;
        }
        // SAFETY: *The rings stay*; the mask keeps it within them.
        let completion = unsafe { self.completions.add((head & self.mask) as usize).as_ref() };
        // Relaxed: ordered by the tail, and not overwritten before the head is past it.
        Some(Completion { key: completion.user_data.load(Relaxed), result: completion.res.load(Relaxed).into() })
    }

    #[inline]
    fn move_on(&self) {
        let head = self.cursor(self.head);
        // Release pairs with the kernel's read of the head before it hands the place to another
        // completion: we have read ours.
        head.store(head.load(Relaxed).wrapping_add(1), Release);
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, and who drops it owns it, so nobody else looks.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}
