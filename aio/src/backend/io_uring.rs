//! Linux io_uring: requests are submitted with `io_uring_enter`, completions are read from a ring
//! in memory.
//!
//! Each [`IoUring`] owns one ring. Its particulars:
//!
//! - A request belongs to the *thread* that submitted it: the kernel finishes some requests,
//!   page-cached reads among them, in the context of that thread. When the thread ends, they fail
//!   (with `EFAULT`, three of four reads in a trial). So only the home thread submits
//!   ([`Backend::SUBMITS_AT_HOME`]): it outlives its requests, other polling threads may not.
//! - A sleep is `io_uring_enter`, which waits for a completion; a poll request on the ring
//!   completes when `other` is readable (`poll_event.rs`). A `ppoll` of the ring's descriptor and
//!   of `other` would need no such request, but is interrupted and restarted by each completion
//!   that the kernel posts in the context of this thread: 10.0 microseconds of CPU time for a read
//!   with a sleep on a loop device whose worker is on the same CPU, against 8.7. Valgrind 3.19 does
//!   not know that `io_uring_enter` may sleep, and makes all other threads wait; native AIO is the
//!   better choice there.
//! - Requests cost less on files that are registered with the ring (`files.rs`): 651 ns against 705
//!   for a 4 KiB read at depth 32. On a disk they cost less with registered buffers too
//!   (`buffers.rs`). A registered ring is worth 10 ns or less.
//!
//! The ring is set up without flags:
//!
//! - `DEFER_TASKRUN` makes the kernel post completions only when the one permitted thread asks for
//!   them by a system call. This backend reads the ring in memory, from several threads.
//! - `SINGLE_ISSUER` by itself has no measurable benefit, and would tie a ring to the thread that
//!   created it.
//! - `COOP_TASKRUN` avoids interrupting a busy thread, but a completion may appear only when that
//!   thread enters the kernel, and a loop that polls in memory never does. It had no benefit
//!   either.
//! - `SQPOLL` burns a CPU on a kernel thread.
//!
//! Linux 6.0 is required: older kernels cannot cancel a poll request without an extra completion.
//!
//! Creating and dropping a ring takes 25 microseconds, so idle rings are not kept.
//!
//! A forked child has no part in its parent's rings and must not use its `IoUring`s; dropping them
//! is fine.
//!
//! # Invariants that the SAFETY comments cite
//!
//! - *Under the lock*: `submit`, `peek_completion` and `advance` are called by one thread at a
//!   time. Only the soundness of `submit` depends on it: the others use atomics. The home thread
//!   may also peek without the lock, to check whether there is a completion.
//! - *One submits*: the same thread submits and waits with a descriptor; two concurrent waiters are
//!   rejected.
//! - *The rings stay*: they are mapped as long as their `Rings` exists.

#![allow(unsafe_code)]

mod buffers;
mod files;
mod ring;
mod setup;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::process;
use std::ptr;
use std::time::Duration;

use io_uring::{opcode, squeue, types};

use super::poll_event::{Arm, CompletionRing, POLL_KEY, PollEvent};
use super::queue_depth::InFlight;
use super::{Backend, Completion, Opcode, Operation};
use buffers::Buffers;
use files::Files;
use ring::Rings;

/// The longest sleep, 136 years: the kernel adds it to the current time.
const LONGEST: Duration = Duration::from_secs(1 << 32);

/// A request in the form that io_uring takes.
#[derive(Debug)]
pub struct Entry(squeue::Entry);

/// The io_uring [`Backend`]: one ring.
pub struct IoUring {
    /// Declared before `ring` so that the mappings are dropped first.
    rings: Rings,
    ring: io_uring::IoUring,
    files: Files,
    buffers: Buffers,
    in_flight: InFlight,
    poll_event: PollEvent,
    /// The process that created the ring. In a forked child nothing completes.
    process: u32,
}

impl IoUring {
    /// Creates a ring for up to `depth` requests in flight (1 to 32768).
    ///
    /// # Errors
    ///
    /// The depth is out of range, or io_uring is unavailable; the message gives the remedy.
    pub fn new(depth: u32) -> io::Result<IoUring> {
        let in_flight = InFlight::new(depth)?;
        let ring = setup::set_up(depth)?;
        let rings = Rings::map(&ring)?;
        let files = Files::new(&ring);
        let (buffers, poll_event) = (Buffers::new(), PollEvent::default());
        Ok(IoUring { rings, ring, files, buffers, in_flight, poll_event, process: process::id() })
    }

    fn is_ours(&self) -> bool {
        self.process == process::id()
    }

    /// Puts entries on the submission ring, which has room for them.
    ///
    /// # Safety
    ///
    /// *One submits*: no other thread does so meanwhile. The memory that the entries name is valid,
    /// as [`Backend::submit`] says.
    #[inline]
    unsafe fn push(&self, entries: &[Entry]) {
        // SAFETY: *One submits*, so there is no other view of the submission ring. Dropping it
        // publishes the entries to the kernel.
        let mut queue = unsafe { self.ring.submission_shared() };
        for entry in entries {
            // SAFETY: the caller is responsible for the memory that the entry names.
            unsafe { queue.push(&entry.0) }.expect("the ring has as many entries as the depth");
        }
    }

    /// Lets the kernel consume the first `count` entries on the submission ring.
    #[inline]
    fn enter(&self, count: u32) -> io::Result<()> {
        loop {
            // Not by the crate, whose call takes another 40 instructions.
            // SAFETY: no flags and no argument: the call consumes entries of the ring.
            let entered = unsafe {
                let nothing = ptr::null::<libc::sigset_t>();
                libc::syscall(libc::SYS_io_uring_enter, self.ring.as_raw_fd(), count, 0, 0, nothing, 0usize)
            };
            if entered >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Sleeps until a completion arrives or `timeout` expires. A signal ends the sleep early, and
    /// so does a lack of kernel memory for the poll request: the caller retries.
    fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|time| types::Timespec::from(time.min(LONGEST)));
        let mut args = types::SubmitArgs::new();
        if let Some(timeout) = &timeout {
            args = args.timespec(timeout);
        }
        match self.ring.submitter().submit_with_args(1, &args) {
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
            Ok(_) => Ok(()),
        }
    }
}

// SAFETY: *lent to the kernel*: an entry that was neither consumed nor deferred is taken off the ring
// before `submit` returns. A consumed one has one completion, which the kernel posts after its last access
// to the request's memory. `peek_completion` acquires the writes before that.
unsafe impl Backend for IoUring {
    const SUBMITS_AT_HOME: bool = true;

    const DEFERS: bool = true;

    type Entry = Entry;

    #[inline]
    fn capacity(&self) -> u32 {
        self.in_flight.depth()
    }

    unsafe fn register(&self, fd: BorrowedFd<'_>) -> RawFd {
        if self.is_ours() { self.files.register(&self.ring, fd) } else { fd.as_raw_fd() }
    }

    unsafe fn unregister(&self, number: RawFd) {
        // In a forked child, the ring and its registered files belong to the parent.
        if self.is_ours() {
            self.files.unregister(&self.ring, number);
        }
    }

    #[inline]
    fn prepare(&self, operation: &Operation, key: u64) -> Entry {
        let Operation { opcode, addr, .. } = *operation;
        let (fd, flags) = files::named(operation.fd);
        let addr = addr as usize;
        // The kernel transfers less than 2 GiB per request anyway.
        let len = u32::try_from(operation.len).unwrap_or(u32::MAX);
        // u64::MAX means the descriptor's own position here: use another offset beyond any file's
        // end.
        let offset = operation.offset.min(u64::MAX - 1);
        let chunk = || self.buffers.number_of(&self.ring, addr, len as usize);
        let (from, to) = (ptr::without_provenance(addr), ptr::without_provenance_mut(addr));
        let entry = match opcode {
            Opcode::Read => match chunk() {
                Some(chunk) => opcode::ReadFixed::new(fd, to, len, chunk).offset(offset).build(),
                None => opcode::Read::new(fd, to, len).offset(offset).build(),
            },
            Opcode::Write => match chunk() {
                Some(chunk) => opcode::WriteFixed::new(fd, from, len, chunk).offset(offset).build(),
                None => opcode::Write::new(fd, from, len).offset(offset).build(),
            },
            Opcode::ReadVectored => opcode::Readv::new(fd, ptr::without_provenance(addr), len).offset(offset).build(),
            Opcode::WriteVectored => opcode::Writev::new(fd, ptr::without_provenance(addr), len).offset(offset).build(),
            Opcode::SyncData => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Opcode::SyncAll => opcode::Fsync::new(fd).build(),
        };
        Entry(entry.flags(flags).user_data(key))
    }

    #[inline]
    fn key(&self, entry: &Entry) -> u64 {
        entry.0.get_user_data()
    }

    /// A request that cannot be performed, for example on a bad descriptor, is accepted too; its
    /// completion has the error.
    unsafe fn submit(&self, entries: &mut [Entry]) -> io::Result<usize> {
        let count = self.in_flight.room(entries.len())?;
        let all = self.rings.unsubmitted() + count as u32;
        if all == 0 {
            return Ok(0);
        }
        // SAFETY: the caller's promise.
        unsafe { self.push(&entries[..count]) };
        let said = self.enter(all);
        // The return value may exceed the number consumed if something intercepts the call (strace,
        // a sandbox).
        let taken = count - self.rings.withdraw(count);
        self.in_flight.add(taken);
        match said {
            _ if taken > 0 || entries.is_empty() => Ok(taken),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
        }
    }

    unsafe fn defer(&self, entries: &mut [Entry]) -> usize {
        let count = self.in_flight.room(entries.len()).unwrap_or(0);
        // SAFETY: the caller's promise.
        unsafe { self.push(&entries[..count]) };
        self.in_flight.add(count);
        count
    }

    #[inline]
    fn has_deferred(&self) -> bool {
        self.rings.unsubmitted() > 0
    }

    /// Uses a call without a completion of its own, so that no extra completions have to be filtered
    /// or can flood the ring. It does not wait: a request that the device already has completes in
    /// its own time.
    unsafe fn cancel(&self, key: u64) {
        let now = types::Timespec::new();
        // Whatever this returns, the request's completion arrives: cancelled or done.
        let _ = self.ring.submitter().register_sync_cancel(Some(now), types::CancelBuilder::user_data(key));
    }

    #[inline]
    unsafe fn peek_completion(&self) -> Option<Completion> {
        self.poll_event.peek(&self.rings)
    }

    #[inline]
    unsafe fn advance(&self) {
        self.in_flight.commit();
        self.rings.advance();
    }

    /// Sleeps as described by the trait. The sleep ends early when `other` is not the descriptor of
    /// the last call: the old one is released first.
    ///
    /// # Panics
    ///
    /// If two threads wait at the same time.
    unsafe fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
        let _asleep = self.poll_event.fall_asleep();
        match other.map(|other| (other, self.poll_event.arm(other.as_raw_fd()))) {
            None | Some((_, Arm::Watched)) => self.sleep(timeout),
            Some((_, Arm::Elsewhere)) => {
                // SAFETY: the poll request is this backend's own.
                unsafe { self.cancel(POLL_KEY) };
                self.sleep(timeout)
            }
            Some((other, Arm::Submit)) => {
                let request = opcode::PollAdd::new(types::Fd(other.as_raw_fd()), libc::POLLIN as u32);
                let request = [Entry(request.build().user_data(POLL_KEY))];
                let is_full = || self.rings.unsubmitted() >= self.ring.params().sq_entries();
                // If the kernel is out of memory for deferred entries, the loop tries again.
                if is_full() && (self.enter(self.rings.unsubmitted()).is_err() || is_full()) {
                    self.poll_event.unarmed();
                    return Ok(());
                }
                // SAFETY: *One submits*, which is this thread. The entry names no memory.
                unsafe { self.push(&request) };
                let slept = self.sleep(timeout);
                if self.rings.withdraw(1) > 0 {
                    self.poll_event.unarmed();
                }
                slept
            }
        }
    }
}

impl Drop for IoUring {
    /// Waits for requests in flight: the kernel would continue them after the ring is closed.
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: `drop` has exclusive access.
            unsafe { self.in_flight.discard(self) };
        }
    }
}

impl fmt::Debug for IoUring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoUring")
            .field("in_flight", &self.in_flight)
            .field("ring", &self.ring.params())
            .finish_non_exhaustive()
    }
}
