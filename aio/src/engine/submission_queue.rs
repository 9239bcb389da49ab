//! The queue of requests that the kernel has not yet accepted.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::owner::LockProof;

/// Requests not yet accepted by the kernel, in order. Protected by the context's lock: every method
/// takes its guard.
pub(super) struct SubmissionQueue<E> {
    entries: UnsafeCell<Entries<E>>,
    /// The number of entries. Written under the lock, and also read without it.
    len: AtomicUsize,
}

/// A contiguous queue, as the kernel requires: entries are appended at the end, and those before
/// `start` are consumed.
struct Entries<E> {
    entries: Vec<E>,
    start: usize,
}

// SAFETY: *under the context's lock*: the queue is accessed only through methods that take the
// guard of the engine's context. None of them runs foreign code, so accesses never overlap.
unsafe impl<E: Send> Sync for SubmissionQueue<E> {}

impl<E> SubmissionQueue<E> {
    pub(super) fn new() -> SubmissionQueue<E> {
        let entries = UnsafeCell::new(Entries { entries: Vec::new(), start: 0 });
        SubmissionQueue { entries, len: AtomicUsize::new(0) }
    }

    #[inline]
    #[allow(clippy::mut_from_ref)]
    fn line(&self, _lock: &impl LockProof) -> &mut Entries<E> {
        // SAFETY: *under the context's lock*.
        unsafe { &mut *self.entries.get() }
    }

    /// Returns the number of entries: exact under the context's lock, and a hint without it.
    #[inline]
    pub(super) fn len(&self) -> usize {
        // Relaxed: a caller that needs the exact number holds the lock, which orders the accesses.
        self.len.load(Ordering::Relaxed)
    }

    /// Removes the first `count` entries, and publishes the length.
    #[inline]
    fn consume(&self, line: &mut Entries<E>, count: usize) {
        line.consume(count);
        self.len.store(line.entries.len() - line.start, Ordering::Relaxed);
    }

    /// Appends an entry, constructed in place.
    #[inline]
    pub(super) fn push(&self, lock: &impl LockProof, make: impl FnOnce() -> E) {
        let line = self.line(lock);
        let entries = &mut line.entries;
        if entries.len() == entries.capacity() {
            grow(entries);
        }
        let end = entries.len();
        entries.spare_capacity_mut()[0].write(make());
        // SAFETY: the capacity suffices, and the entry has been written.
        unsafe { entries.set_len(end + 1) };
        self.len.store(end + 1 - line.start, Ordering::Relaxed);
    }

    /// Offers the first `most` entries to `submit`, and removes the entries that it accepted.
    /// `submit` is the backend's function, and runs no foreign code.
    #[inline(always)]
    pub(super) fn submit_front(
        &self,
        lock: &impl LockProof,
        most: usize,
        submit: impl FnOnce(&mut [E]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let line = self.line(lock);
        let taken = submit(&mut line.entries[line.start..line.start + most])?;
        assert!(taken <= most, "the kernel accepted {taken} of {most} requests");
        self.consume(line, taken);
        Ok(taken)
    }

    /// Removes the entry that matches `is`. Returns whether there was one.
    pub(super) fn remove(&self, lock: &impl LockProof, is: impl Fn(&E) -> bool) -> bool {
        let line = self.line(lock);
        let found = line.entries[line.start..].iter().position(is);
        if let Some(place) = found {
            line.entries.remove(line.start + place);
            self.consume(line, 0);
        }
        found.is_some()
    }

    /// Removes the first entry, and returns the result of `of` for it.
    pub(super) fn pop_front<R>(&self, lock: &impl LockProof, of: impl FnOnce(&E) -> R) -> Option<R> {
        let line = self.line(lock);
        let first = of(line.entries.get(line.start)?);
        self.consume(line, 1);
        Some(first)
    }
}

#[cold]
fn grow<E>(entries: &mut Vec<E>) {
    entries.reserve(1);
}

impl<E> Entries<E> {
    #[inline(always)]
    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.entries.len() {
            self.entries.clear();
            self.start = 0;
        } else {
            self.compact();
        }
    }

    /// Moves the entries to the front once half of the memory is unused: so each entry moves at most
    /// once.
    #[cold]
    fn compact(&mut self) {
        if self.start > self.entries.len() / 2 {
            self.entries.drain(..self.start);
            self.start = 0;
        }
    }
}
