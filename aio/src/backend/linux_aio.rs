//! Linux native AIO: requests are submitted with `io_submit`, completions are read from a ring in
//! memory.
//!
//! Each [`LinuxAio`] owns one AIO context. Taking a completion needs no system call. Sleeping needs
//! one, and requires two tricks:
//!
//! - `io_getevents` would take the events that it waits for, while another thread may be taking
//!   them from the ring in memory. So it gets a *trap*, an address that no process has: if there
//!   are events, it fails with `EFAULT` before it moves the cursor, which means that events are
//!   available.
//! - The sleep must also end when `other` (the loop's epoll or eventfd) is readable. A poll request
//!   in the same context watches it, and its completion is an ordinary event (`poll_event.rs`),
//!   which `peek_completion` consumes.
//!
//! A ring that does not have the known layout is refused.
//!
//! A forked child has no part in its parent's contexts and must not use its `LinuxAio`s; dropping
//! them is fine.
//!
//! # Invariants that the SAFETY comments cite
//!
//! - *Under the lock*: `submit`, `peek_completion` and `advance` are called by one thread at a
//!   time. Only the soundness of `submit` depends on it: the others use atomics, so that a
//!   violation confuses events but is not undefined behaviour. The home thread may also peek
//!   without the lock, to check whether there is a completion.
//! - *The ring stays*: it is mapped from `io_setup` to `io_destroy`, which only `Context`'s drop
//!   calls. It is a header followed by `slots` events, written by the kernel and accessed through
//!   atomics.
//! - *Who arms, owns*: the thread that arms `poll_event` may write the poll request's memory.

#![allow(unsafe_code)]

mod abi;
mod context;
#[cfg(test)]
mod tests;

use context::{Context, Pool, setup_error};

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::*;
use std::time::Duration;

use coralio_runtime::{EventNotifier, explained};

use super::poll_event::{Arm, CompletionRing, POLL_KEY, PollEvent};
use super::queue_depth::InFlight;
use super::{Backend, Completion, Opcode, Operation};

/// The event buffer for `io_getevents`: the last bytes of the address space, which belong to the
/// kernel on every machine. It checks that before it writes. Protected memory of this process would
/// cost a page fault instead (1.2 of 9.7 microseconds for a sleep and its read, on a virtual
/// machine).
const FAULTING_ADDRESS: *mut abi::Event = ptr::without_provenance_mut(usize::MAX - size_of::<abi::Event>() + 1);

/// The number of events at the trap. Any number works except under valgrind, which would report the
/// address as an error: this many events are 2^64 bytes, which valgrind sees as 0.
const EVENT_CAPACITY: libc::c_long = 1 << (64 - size_of::<abi::Event>().trailing_zeros());

/// A request in the form that `io_submit` takes.
#[repr(transparent)]
#[derive(Debug)]
pub struct Iocb(abi::Iocb);

/// The native AIO [`Backend`]: one AIO context.
pub struct LinuxAio {
    /// The mapped ring. Its address identifies the AIO context.
    ring: NonNull<abi::Ring>,
    /// The number of events on the ring.
    slots: u32,
    in_flight: InFlight,
    poll_event: PollEvent,
    context: ManuallyDrop<Context>,
    pool: &'static Pool,
}

// SAFETY: the ring is memory of the process (*The ring stays*), and an AIO context may be used by
// any thread of the process.
unsafe impl Send for LinuxAio {}
// SAFETY: as above; of the cells in the context, `pointers` is used *Under the lock*, and `poll`
// according to *Who arms, owns*.
unsafe impl Sync for LinuxAio {}

impl LinuxAio {
    /// Creates an AIO context for up to `depth` requests in flight (1 to 32768).
    ///
    /// # Errors
    ///
    /// The depth is out of range, the machine's AIO requests are used up, or native AIO is
    /// unavailable or has a ring of unknown layout; the message gives the remedy.
    pub fn new(depth: u32) -> io::Result<LinuxAio> {
        static IDLE: Pool = Pool::new();
        LinuxAio::from_pool(depth, &IDLE)
    }

    /// Returns itself if the kernel supports everything that an engine needs: a filter may block
    /// only `io_submit`, or the kernel may lack the poll request.
    pub(crate) fn verify(self) -> io::Result<LinuxAio> {
        let readable = EventNotifier::new()?;
        readable.notify();
        // SAFETY: `self` is owned, so no other thread uses it.
        let (waited, found) =
            unsafe { (self.wait(Some(readable.as_fd()), Some(Duration::from_secs(1))), self.peek_completion()) };
        waited.map_err(|error| setup_error(error, self.context.depth))?;
        match found {
            None => Ok(self),
            Some(completion) => panic!("completion {completion:?} without a request"),
        }
    }

    fn from_pool(depth: u32, pool: &'static Pool) -> io::Result<LinuxAio> {
        let in_flight = InFlight::new(depth)?;
        let context = pool.get(depth).map_or_else(|| Context::new(depth, pool), Ok)?;
        let ring = context.ring;
        // SAFETY: *The ring stays*; memory without the ring's magic number still has at least a
        // header mapped.
        let slots = check_layout(unsafe { ring.as_ref() })?;
        let (poll_event, context) = (PollEvent::default(), ManuallyDrop::new(context));
        Ok(LinuxAio { ring, slots, in_flight, poll_event, context, pool })
    }

    #[inline]
    fn header(&self) -> &abi::Ring {
        // SAFETY: *The ring stays*.
        unsafe { self.ring.as_ref() }
    }

    /// Ensures that a poll request watches `other`. If one still watches another descriptor,
    /// cancels that one, so that its event arrives. Returns false if the kernel has no room for a
    /// poll request now: then nothing would end a sleep.
    fn arm(&self, other: BorrowedFd<'_>) -> io::Result<bool> {
        match self.poll_event.arm(other.as_raw_fd()) {
            Arm::Watched => return Ok(true),
            Arm::Elsewhere => {
                self.cancel_poll();
                return Ok(true);
            }
            Arm::Submit => {}
        }
        let poll = self.context.poll.get();
        let request = abi::Iocb {
            data: POLL_KEY,
            opcode: abi::IOCB_CMD_POLL,
            fildes: other.as_raw_fd() as u32,
            buf: libc::POLLIN as u64,
            ..Default::default()
        };
        // SAFETY: *Who arms, owns*. The request names no memory, and the kernel holds a reference
        // to the file.
        match unsafe {
            poll.write(request);
            abi::io_submit(self.ring, &[poll])
        } {
            Ok(1) => Ok(true),
            said => {
                self.poll_event.unarmed();
                match said {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(poll_error(error)),
                    _ => Ok(false),
                }
            }
        }
    }

    /// Cancels the poll request, so that its event arrives. Fails if the event has already arrived,
    /// which serves as well.
    fn cancel_poll(&self) {
        // SAFETY: the address that the request was submitted from; the kernel only reads it.
        let _ = unsafe { abi::io_cancel(self.ring, self.context.poll.get()) };
    }

    /// Sleeps until an event of any kind is available.
    fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        // SAFETY: nothing is mapped at the address, so the kernel writes no event.
        match unsafe { abi::io_getevents(self.ring, 1, EVENT_CAPACITY, FAULTING_ADDRESS, timeout) } {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EINTR)) => Ok(()),
            Err(error) => Err(error),
            Ok(lost) => {
                assert!(lost == 0, "the kernel wrote {lost} events to unmapped memory: they are lost");
                Ok(())
            }
        }
    }

    /// Makes sure that nothing is in flight or on the ring, so that the context can be reused.
    /// Returns false if this fails.
    fn clear(&self) -> bool {
        if self.in_flight.count() != 0 {
            return false;
        }
        // SAFETY: called by the drop, so no other thread takes completions.
        let is_empty = || unsafe { self.peek_completion() }.is_none();
        while self.poll_event.is_armed() {
            self.cancel_poll();
            if self.sleep(None).is_err() || !is_empty() {
                return false;
            }
        }
        is_empty()
    }
}

impl CompletionRing for LinuxAio {
    #[inline]
    fn peek(&self) -> Option<Completion> {
        let ring = self.header();
        // Relaxed: moved by this thread, or by a previous holder of the lock.
        let head = ring.head.load(Relaxed);
        // Acquire pairs with the kernel's write barrier between an event, together with its
        // request's effects on memory, and the tail that publishes it.
        if head == ring.tail.load(Acquire) {
            return None;
        }
        // SAFETY: *The ring stays*, and the cursor is within it.
        let event = unsafe { self.ring.add(1).cast::<abi::Event>().add(head as usize).as_ref() };
        // Relaxed: ordered by the tail, and not overwritten before the head has moved past it.
        Some(Completion { key: event.data.load(Relaxed), result: event.res.load(Relaxed) })
    }

    /// Keeps the head within the ring.
    #[inline]
    fn advance(&self) {
        let head = &self.header().head;
        let next = head.load(Relaxed) + 1;
        // Release pairs with the kernel's read of the head before it reuses the slot: this thread
        // has read its event.
        head.store(if next == self.slots { 0 } else { next }, Release);
    }
}

// SAFETY: *lent to the kernel*: an entry that `io_submit` did not count is not read later. A
// counted one has one event, which the kernel posts after its last access to the request's memory.
// `peek_completion` acquires the writes before that.
unsafe impl Backend for LinuxAio {
    type Entry = Iocb;

    #[inline]
    fn capacity(&self) -> u32 {
        self.context.depth
    }

    #[inline]
    fn prepare(&self, operation: &Operation, key: u64) -> Iocb {
        debug_assert_ne!(key, POLL_KEY, "the key is reserved for the poll request");
        let opcode = match operation.opcode {
            Opcode::Read => abi::IOCB_CMD_PREAD,
            Opcode::Write => abi::IOCB_CMD_PWRITE,
            Opcode::ReadVectored => abi::IOCB_CMD_PREADV,
            Opcode::WriteVectored => abi::IOCB_CMD_PWRITEV,
            Opcode::SyncData => abi::IOCB_CMD_FDSYNC,
            Opcode::SyncAll => abi::IOCB_CMD_FSYNC,
        };
        Iocb(abi::Iocb {
            data: key,
            opcode,
            fildes: operation.fd as u32,
            buf: operation.addr,
            nbytes: operation.len,
            offset: operation.offset as i64,
            ..Default::default()
        })
    }

    /// Not set for syncs, which the kernel would reject: they never block submit.
    #[inline]
    fn set_nowait(&self, entry: &mut Iocb, nowait: bool) {
        entry.0.rw_flags = if nowait { libc::RWF_NOWAIT } else { 0 };
    }

    #[inline]
    fn key(&self, entry: &Iocb) -> u64 {
        entry.0.data
    }

    unsafe fn submit(&self, entries: &mut [Iocb]) -> io::Result<usize> {
        // The kernel would accept more, but the poll request's slot must stay free.
        let count = self.in_flight.room(entries.len())?;
        // SAFETY: *Under the lock*.
        let pointers: &mut [*mut abi::Iocb] = unsafe { &mut *self.context.pointers.get() };
        for (pointer, entry) in pointers.iter_mut().zip(&mut entries[..count]) {
            *pointer = &raw mut entry.0;
        }
        // SAFETY: the pointers are to `entries`, which is borrowed exclusively for the call; the
        // caller is responsible for the memory that they name.
        let count = unsafe { abi::io_submit(self.ring, &pointers[..count]) }?;
        self.in_flight.add(count);
        Ok(count)
    }

    #[inline]
    unsafe fn peek_completion(&self) -> Option<Completion> {
        self.poll_event.peek(self)
    }

    #[inline]
    unsafe fn advance(&self) {
        self.in_flight.commit();
        CompletionRing::advance(self);
    }

    /// Sleeps as described by the trait, with these particulars:
    ///
    /// - It may end early. It does so when `other` is not the descriptor of the last call, because
    ///   the old one is released first, and when the kernel has no memory for the poll request: the
    ///   caller retries.
    /// - A descriptor is watched until it is readable, even if it has been closed by then. Do not
    ///   close one and pass another with the same number.
    ///
    /// # Errors
    ///
    /// `other` cannot be watched; before Linux 4.18 no descriptor can.
    ///
    /// # Panics
    ///
    /// If two threads wait at the same time.
    unsafe fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
        let _asleep = self.poll_event.fall_asleep();
        if other.map_or(Ok(true), |other| self.arm(other))? { self.sleep(timeout) } else { Ok(()) }
    }
}

impl Drop for LinuxAio {
    /// Keeps the AIO context for reuse at the same depth. With requests in flight it is destroyed
    /// instead, which waits for them.
    fn drop(&mut self) {
        let clean = self.context.is_ours() && self.clear();
        // SAFETY: taken once, here, and not used afterwards.
        let context = unsafe { ManuallyDrop::take(&mut self.context) };
        if clean {
            self.pool.put(context);
        }
    }
}

impl fmt::Debug for LinuxAio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxAio")
            .field("in_flight", &self.in_flight)
            .field("ring", self.header())
            .finish_non_exhaustive()
    }
}

/// Returns the number of events on the ring, if it has the layout that this module reads.
fn check_layout(header: &abi::Ring) -> io::Result<u32> {
    let &abi::Ring { nr, magic, incompat_features, header_length, .. } = header;
    if magic == abi::RING_MAGIC && incompat_features == 0 && header_length as usize == size_of::<abi::Ring>() {
        return Ok(nr);
    }
    let message = format!(
        "native AIO is not usable: its completion ring in memory has an unknown layout, as in some sandboxes (magic \
         {magic:#x}, incompatible features {incompat_features}, header of {header_length} bytes); use threads \
         (BackendKind::Threads)"
    );
    Err(io::Error::new(io::ErrorKind::Unsupported, message))
}

/// Explains `io_submit`'s error for the poll request, with cause and remedy.
fn poll_error(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::EINVAL) {
        let message = "the kernel refuses IOCB_CMD_POLL, with which a sleep on native AIO also waits for a descriptor: \
             it needs Linux 4.18 or later, and an epoll or eventfd descriptor";
        return explained(io::ErrorKind::Unsupported, message, error);
    }
    error
}
