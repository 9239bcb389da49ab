//! What the engine asks of a kernel, and nothing more.
//!
//! A kernel takes requests (`submit`) and puts what became of them on a completion ring. The engine
//! looks at the ring in memory (`peek`), moves the shared cursor (`commit`), and sleeps through the
//! kernel when there is nothing else to do (`wait`). A kernel never runs foreign code and never
//! enters a coroutine.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// What the model checker's builds of the lock-free parts replace by its own.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};
}
#[cfg(test)]
mod conformance;
pub mod io_uring;
mod lent;
pub mod linux_aio;
pub mod scripted;
pub mod sim;
pub mod threads;
mod watch;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opcode {
    /// Read into one buffer.
    Read,
    /// Write from one buffer.
    Write,
    /// Read into several buffers, one after the other in the file.
    ReadVectored,
    /// Write from several buffers, one after the other in the file.
    WriteVectored,
    /// Data, and as much metadata as it takes to find it again, is on the medium (`fdatasync`).
    SyncData,
    /// Data and metadata are on the medium (`fsync`).
    SyncAll,
}

/// One request as the engine hands it to a kernel: plain data without a lifetime.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What to do.
    pub opcode: Opcode,
    /// To which file: its descriptor, or the number that [`Kernel::register`] gave.
    pub fd: RawFd,
    /// Address of the buffer, or of the array of `iovec`s; 0 for the syncs.
    pub addr: u64,
    /// Length in bytes, or the number of `iovec`s; 0 for the syncs.
    pub len: u64,
    /// Where in the file, in bytes; 0 for the syncs.
    pub offset: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The key that the request was prepared with.
    pub key: u64,
    /// Bytes transferred, or a negative `errno`.
    pub result: i64,
}

/// A kernel that an [`Engine`](crate::Engine) can run on.
///
/// Everything that can change which completions an engine sees, or which file a number names, is
/// `unsafe` to call: an engine believes its kernel, and gives a buffer back on the kernel's word. A
/// caller that drives a kernel directly, as a kernel's own tests do, keeps the contract of each
/// method in the engine's place.
///
/// # Safety
///
/// The engine lends memory to the kernel on the kernel's word (*lent to the kernel*): an entry that
/// `submit` did not count must not be touched later, and after its completion was peeked the
/// request's memory must not be touched either. Each counted entry completes exactly once.
///
/// The implementation may rely on the contracts of the methods. In particular `wait` runs beside
/// `peek`, `commit`, `cancel` and, unless the kernel [submits at home](Self::SUBMITS_AT_HOME),
/// `submit` of another thread: it must not take anything off the ring.
pub unsafe trait Kernel: Send + Sync + 'static {
    /// Whether `submit` is for the context's home thread alone: a request may not outlive the
    /// thread that submitted it.
    const SUBMITS_AT_HOME: bool = false;

    /// A request in the form that this kernel takes.
    type Entry: Send;

    /// The most requests that can be in flight at once.
    fn capacity(&self) -> u32;

    /// Makes a file known before there are requests on it, where they cost less then. Returns the
    /// number by which they name it: the descriptor itself, or one that this kernel alone
    /// understands, until [`unregister`](Self::unregister).
    ///
    /// # Safety
    ///
    /// The number is used in requests to this kernel alone. If it is not the descriptor's own, the
    /// caller passes it to [`unregister`](Self::unregister) once, before the descriptor is closed.
    unsafe fn register(&self, fd: BorrowedFd<'_>) -> RawFd {
        fd.as_raw_fd()
    }

    /// Lets go of a file that is not used by its number any more, before its descriptor is closed.
    ///
    /// # Safety
    ///
    /// `number` came from [`register`](Self::register) of this kernel, has not been passed to this
    /// method since, and is used in no request from now on: it may name another file next.
    ///
    /// # Panics
    ///
    /// May, if the number is not one that [`register`](Self::register) gave.
    unsafe fn unregister(&self, number: RawFd) {
        let _ = number;
    }

    /// Puts a request into the kernel's form. `key` comes back in its [`Completion`]; `u64::MAX` is
    /// never used.
    fn prepare(&self, operation: &Operation, key: u64) -> Self::Entry;

    /// Says of an entry whether it shall fail with `EAGAIN` rather than block whoever submits it;
    /// and with `EOPNOTSUPP` where the file has no such thing. A kernel whose submit does not block
    /// takes no notice. The syncs never are to.
    #[inline]
    fn set_nowait(&self, entry: &mut Self::Entry, nowait: bool) {
        let _ = (entry, nowait);
    }

    /// The key that an entry was prepared with.
    fn key(&self, entry: &Self::Entry) -> u64;

    /// Hands over as many of `entries` as the kernel takes, from the front, in one system call, and
    /// returns their number (at least 1 if `entries` is not empty).
    ///
    /// # Errors
    ///
    /// None was taken. `WouldBlock`: try again later. `Interrupted` is retried inside. Any other
    /// error concerns the first entry alone.
    ///
    /// # Safety
    ///
    /// The memory that each entry names stays valid, and for reads unaliased, until its completion
    /// was peeked. No other thread submits; nor does one [`wait`](Self::wait) with a descriptor, if
    /// the kernel [submits at home](Self::SUBMITS_AT_HOME). If it does, the calling thread does not
    /// end before each entry has completed.
    unsafe fn submit(&self, entries: &mut [Self::Entry]) -> io::Result<usize>;

    /// Asks for the request of this key, which is in flight, to complete soon, with `ECANCELED` or
    /// with whatever became of it. A kernel that cannot do that does nothing: the completion comes
    /// all the same, and is waited for (rule E11). Any thread may call it, also beside any other
    /// method.
    ///
    /// # Safety
    ///
    /// `key` is that of a request whose owner has asked for its end. A key that is not in flight is
    /// ignored.
    unsafe fn cancel(&self, key: u64) {
        let _ = key;
    }

    /// The completion at the cursor, by value; the cursor does not move. A look at memory, no
    /// system call.
    ///
    /// # Safety
    ///
    /// A caller that does not hold the lock under which completions are taken (the context's, rule
    /// E9) uses the value for nothing but whether something is there: the completion may be another
    /// thread's to take.
    unsafe fn peek(&self) -> Option<Completion>;

    /// Moves the cursor past the completion that was peeked last.
    ///
    /// # Safety
    ///
    /// The caller holds the lock under which completions are taken, and since it took the lock and
    /// moved the cursor last, [`peek`](Self::peek) has returned a completion, which the caller
    /// delivers to its request once.
    unsafe fn commit(&self);

    /// Sleeps until `min` completions are on the ring, `other` (if there is one) is readable, or
    /// `timeout` is over (`None`: no end), and leaves the ring as it is. A signal ends it early,
    /// which is not an error.
    ///
    /// With `min` above 1, `other` may count as one completion: a caller who cannot wait longer
    /// gives a timeout. And it may end after the first completion already, where the kernel cannot
    /// wait for more.
    ///
    /// `other` is known by its number: one that was given here must not be closed and another one
    /// come by its number.
    ///
    /// # Errors
    ///
    /// What the system call says, if it cannot wait at all.
    ///
    /// # Safety
    ///
    /// No other thread waits. With `other`, and if the kernel [submits at
    /// home](Self::SUBMITS_AT_HOME), the caller is the thread that submits.
    unsafe fn wait(&self, min: u32, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()>;
}
