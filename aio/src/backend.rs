//! The interface between the engine and a kernel backend.
//!
//! A backend accepts requests (`submit`) and puts their completions on a ring. The engine reads the
//! ring in memory (`peek_completion`), advances the shared cursor (`advance`), and sleeps in the
//! backend when there is nothing else to do (`wait`). A backend never runs foreign code and never
//! enters a coroutine.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// What threads share in the parts that are model-checked; the model checker's builds replace it.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    pub(super) use parking_lot::Mutex;
}
pub(crate) mod arena;
#[cfg(test)]
mod conformance;
mod io_buffers;
pub mod io_uring;
pub mod linux_aio;
mod poll_event;
pub(crate) mod pool;
mod queue_depth;
pub mod scripted;
pub mod simulated;
mod sys;
pub(crate) mod system_call;
pub mod thread_pool;

/// The operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// Read into one buffer.
    Read,
    /// Write from one buffer.
    Write,
    /// Read into several buffers in sequence.
    ReadVectored,
    /// Write from several buffers in sequence.
    WriteVectored,
    /// Flush data, and the metadata needed to read it back, to stable storage (`fdatasync`).
    SyncData,
    /// Flush data and all metadata to stable storage (`fsync`).
    SyncAll,
}

impl Opcode {
    /// Whether the operation takes bytes from memory.
    #[inline]
    pub(crate) fn is_write(self) -> bool {
        matches!(self, Opcode::Write | Opcode::WriteVectored)
    }

    /// Whether the operation names several buffers.
    pub(crate) fn is_vectored(self) -> bool {
        matches!(self, Opcode::ReadVectored | Opcode::WriteVectored)
    }

    /// Whether the operation names no memory.
    fn is_sync(self) -> bool {
        matches!(self, Opcode::SyncData | Opcode::SyncAll)
    }
}

/// A request as the engine passes it to a backend: plain data without a lifetime.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// The operation.
    pub opcode: Opcode,
    /// The file: its descriptor, or the number that [`Backend::register`] returned.
    pub fd: RawFd,
    /// Address of the buffer, or of the array of `iovec`s; 0 for syncs.
    pub addr: u64,
    /// Length in bytes, or the number of `iovec`s; 0 for syncs.
    pub len: u64,
    /// Offset in the file, in bytes; 0 for syncs.
    pub offset: u64,
}

impl Operation {
    /// Returns the work of the request on a fast device, in units of 0.5 to 1 microseconds of CPU time.
    pub(crate) fn work(&self) -> u64 {
        const BYTES_PER_UNIT: u64 = 8 << 10;
        /// Assumed length of a vectored request.
        const VECTORED_BYTES: u64 = 128 << 10;
        let len = if self.opcode.is_vectored() { VECTORED_BYTES } else { self.len };
        1 + len / BYTES_PER_UNIT
    }
}

/// A request in the form that the backends without a kernel interface of their own take.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    operation: Operation,
    key: u64,
}

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The key that the request was prepared with.
    pub key: u64,
    /// Bytes transferred, or a negative `errno`.
    pub result: i64,
}

/// A backend for an [`Engine`](crate::engine::Engine).
///
/// Every method that can change which completions an engine sees, or which file a number names, is
/// `unsafe` to call: an engine trusts its backend, and returns a buffer to its owner when the
/// backend reports completion. A caller that drives a backend directly, such as a backend's own
/// tests, must keep each method's contract in place of the engine.
///
/// # Safety
///
/// The engine lends memory to the kernel and relies on the backend to report its return (*lent to
/// the kernel*): an entry that `submit` did not count must not be accessed later, and a request's
/// memory must not be accessed once its completion can be peeked. Each counted entry completes
/// exactly once. `submit` does not unwind after it has accepted an entry, which would not be
/// counted.
///
/// The implementation may rely on the methods' contracts. In particular, `wait` runs concurrently
/// with `peek_completion`, `advance`, `cancel` and, unless the backend [submits at
/// home](Self::SUBMITS_AT_HOME), `submit` on another thread: it must not take anything off the
/// ring.
pub unsafe trait Backend: Send + Sync + 'static {
    /// Whether only the context's home thread may call `submit`, because a request must not outlive
    /// the thread that submitted it.
    const SUBMITS_AT_HOME: bool = false;

    /// Whether the backend can [defer](Self::defer) entries; if so, it [submits at
    /// home](Self::SUBMITS_AT_HOME).
    const DEFERS: bool = false;

    /// A request in the backend's own form.
    type Entry: Send;

    /// Returns the maximum number of requests in flight.
    fn capacity(&self) -> u32;

    /// Registers a file before requests use it, if that makes them cheaper. Returns the number that
    /// requests use for the file: the descriptor itself, or a number that only this backend
    /// understands, valid until [`unregister`](Self::unregister).
    ///
    /// # Safety
    ///
    /// The number is used only in requests to this backend. If it is not the descriptor itself, the
    /// caller passes it to [`unregister`](Self::unregister) once, before the descriptor is closed.
    unsafe fn register(&self, fd: BorrowedFd<'_>) -> RawFd {
        fd.as_raw_fd()
    }

    /// Releases a registered file whose number is no longer used, before its descriptor is closed.
    ///
    /// # Safety
    ///
    /// `number` was returned by [`register`](Self::register) of this backend, has not been passed
    /// to this method since, and is used in no later request: it may be assigned to another file
    /// next.
    ///
    /// # Panics
    ///
    /// May panic if [`register`](Self::register) did not return the number.
    unsafe fn unregister(&self, number: RawFd) {
        let _ = number;
    }

    /// Converts a request to the backend's form. `key` comes back in its [`Completion`]; `u64::MAX`
    /// is never used as a key.
    fn prepare(&self, operation: &Operation, key: u64) -> Self::Entry;

    /// Sets whether an entry fails with `EAGAIN` instead of blocking its submitter, or with
    /// `EOPNOTSUPP` if the file does not support this. A backend whose submit never blocks ignores
    /// the setting. It is never set for syncs.
    #[inline]
    fn set_nowait(&self, entry: &mut Self::Entry, nowait: bool) {
        let _ = (entry, nowait);
    }

    /// Returns the key that an entry was prepared with.
    fn key(&self, entry: &Self::Entry) -> u64;

    /// Submits the deferred entries and as many of `entries` as the kernel accepts, from the front,
    /// in one system call. Returns the number of the latter (at least 1 if `entries` is not empty).
    ///
    /// # Errors
    ///
    /// No entry was accepted. `WouldBlock`: try again later. `Interrupted` is retried internally.
    /// Any other error concerns only the first entry.
    ///
    /// # Safety
    ///
    /// The memory that each entry names stays valid, and for reads unaliased, until its completion
    /// has been peeked. No other thread is submitting. If the backend [submits at
    /// home](Self::SUBMITS_AT_HOME), no other thread is in [`wait`](Self::wait) with a descriptor,
    /// and the calling thread does not end before each entry has completed.
    unsafe fn submit(&self, entries: &mut [Self::Entry]) -> io::Result<usize>;

    /// Accepts as many of `entries` as there is room for, from the front, without a system call: the
    /// next [`submit`](Self::submit) or [`wait`](Self::wait) passes them to the kernel. Returns
    /// their number, which is 0 if the backend [does not defer](Self::DEFERS).
    ///
    /// # Safety
    ///
    /// As [`submit`](Self::submit).
    unsafe fn defer(&self, entries: &mut [Self::Entry]) -> usize {
        let _ = entries;
        0
    }

    /// Returns whether there are deferred entries that the kernel has not consumed. Reads memory
    /// only.
    #[inline]
    fn has_deferred(&self) -> bool {
        false
    }

    /// Asks for the in-flight request with this key to complete soon, with `ECANCELED` or its
    /// regular result. A backend that cannot do this does nothing: the completion arrives in any
    /// case, and is awaited. May be called on any thread, concurrently with any other method.
    ///
    /// # Safety
    ///
    /// The owner of the request with this key has asked to end it. A key that is not in flight is
    /// ignored.
    unsafe fn cancel(&self, key: u64) {
        let _ = key;
    }

    /// Returns a copy of the completion at the cursor, without advancing the cursor. Reads memory;
    /// makes no system call.
    ///
    /// # Safety
    ///
    /// A caller that does not hold the lock under which completions are taken (the context's) uses
    /// only the fact that there is a completion, not its value: another thread may be taking it.
    unsafe fn peek_completion(&self) -> Option<Completion>;

    /// Advances the cursor past the completion that was peeked last.
    ///
    /// # Safety
    ///
    /// The caller holds the lock under which completions are taken. While the caller held it, and
    /// after the last `advance`, [`peek_completion`](Self::peek_completion) has returned a
    /// completion, which the caller delivers to its request exactly once.
    unsafe fn advance(&self);

    /// Submits the deferred entries, and sleeps until a completion is on the ring, `other` (if given)
    /// is readable, or `timeout` expires (`None`: never). Takes no completion off the ring. The sleep
    /// may end early, for example by a signal, which is not an error.
    ///
    /// `other` is identified by its number: a descriptor that was passed here must not be closed
    /// and its number reused for another one that is passed.
    ///
    /// # Errors
    ///
    /// The system call's error, if it cannot wait at all.
    ///
    /// # Safety
    ///
    /// No other thread waits. With `other`, and if the backend [submits at
    /// home](Self::SUBMITS_AT_HOME), the caller is the thread that submits.
    unsafe fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()>;

    /// Called before each request. A simulated backend panics here if the run does not end.
    #[inline]
    fn before_request(&self) {}

    /// Called before each reap by the loop. A simulated backend panics here if the run does not
    /// end.
    #[inline]
    fn before_dispatch(&self) {}

    /// Called before the loop sleeps. A backend with its own time that has no completion to wait
    /// for advances its clock instead of sleeping, and panics if nothing can end the sleep. Returns
    /// `None` if the loop is to sleep: in [`wait`](Self::wait) if it `waits` for completions.
    #[inline]
    fn sleep_idle(
        &self,
        in_flight: u32,
        pending: usize,
        waits: bool,
        other: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> Option<io::Result<()>> {
        let _ = (in_flight, pending, waits, other, timeout);
        None
    }
}
