//! The baseline: a careful handwritten loop on the kernel's interface. All requests are created
//! once and reused. All ready requests go into one `io_submit`. Completions are read from the ring
//! in memory; it waits in `io_getevents` only when there are none. No eventfd, no coroutine, one
//! request in flight per buffer.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use coralio::AlignedBuf;
use libc::{c_long, iocb, syscall};

use crate::bare::Bare;
use crate::options::Options;
use crate::target::Target;
use crate::work::{Work, failed};

const RING_MAGIC: u32 = 0xa10a_10a1;
const CMD_PREAD: u16 = 0;
const CMD_PWRITE: u16 = 1;

/// The ring that the kernel maps at the address returned by `io_setup`. `len` events follow.
#[repr(C)]
struct Ring {
    id: u32,
    len: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
    compatible: u32,
    incompatible: u32,
    header_len: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Event {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// A kernel context, its ring, and one request per buffer. Requests and buffers never move during
/// its lifetime.
pub struct Raw {
    context: u64,
    requests: Box<[iocb]>,
    /// Kept alive for the kernel, which has their addresses.
    _buffers: Vec<AlignedBuf>,
    /// Requests to submit: the first `ready` entries.
    batch: Box<[*mut iocb]>,
    ready: usize,
    in_flight: usize,
    /// The events returned by `io_getevents`.
    waited: Box<[Event]>,
    submits: u64,
    sleeps: u64,
}

impl Bare for Raw {
    const SETUP: &str = "io_setup";
    const REMEDY: &str = "reduce --depth, or raise fs.aio-max-nr";

    fn new(options: &Options, target: &Target) -> io::Result<Raw> {
        let depth = options.depth as usize;
        let mut context = 0u64;
        // SAFETY: `context` is writable and holds zero, as io_setup requires.
        check(unsafe { syscall(libc::SYS_io_setup, options.depth, &raw mut context) })?;
        let mut buffers: Vec<_> = (0..depth).map(|_| target.buffer(options)).collect();
        let requests = buffers.iter_mut().map(|buffer| {
            // SAFETY: an iocb contains only integers, for which zero is valid; reserved fields must
            // be zero.
            let mut request: iocb = unsafe { std::mem::zeroed() };
            request.aio_lio_opcode = if options.write { CMD_PWRITE } else { CMD_PREAD };
            request.aio_fildes = target.file.as_fd().as_raw_fd() as u32;
            request.aio_buf = buffer.as_mut_ptr() as u64;
            request.aio_nbytes = options.block_size;
            request
        });
        let raw = Raw {
            context,
            requests: requests.collect(),
            _buffers: buffers,
            batch: vec![ptr::null_mut(); depth].into(),
            ready: 0,
            in_flight: 0,
            waited: vec![Event { data: 0, request: 0, result: 0, result2: 0 }; depth].into(),
            submits: 0,
            sleeps: 0,
        };
        // SAFETY: io_setup has mapped a ring there.
        let ring = unsafe { &*(context as *const Ring) };
        if ring.magic != RING_MAGIC || ring.incompatible != 0 {
            return Err(io::Error::other(
                "unknown layout of the completion ring; --versus bare does not support this kernel",
            ));
        }
        Ok(raw)
    }

    fn run(&mut self, work: &Rc<Work>) -> Result<(), String> {
        for (i, request) in self.requests.iter_mut().enumerate() {
            let Some(offset) = work.next(i) else { break };
            request.aio_offset = offset as i64;
            self.batch[self.ready] = request;
            self.ready += 1;
        }
        while self.ready + self.in_flight > 0 {
            if self.ready > 0 {
                self.submit().map_err(|e| format!("io_submit: {e}"))?;
            }
            if !self.reap(work)? {
                self.wait(work)?;
            }
        }
        Ok(())
    }

    fn calls(&self) -> Option<(u64, u64)> {
        Some((self.submits, self.sleeps))
    }
}

impl Raw {
    fn submit(&mut self) -> io::Result<()> {
        self.submits += 1;
        // SAFETY: the first `ready` entries of the batch point to requests in `self`, whose buffers
        // live until `drop` has waited for all of them.
        let status = unsafe { syscall(libc::SYS_io_submit, self.context, self.ready, self.batch.as_ptr()) };
        if status == self.ready as c_long {
            self.in_flight += self.ready;
            self.ready = 0;
            return Ok(());
        }
        match check(status) {
            Ok(taken) => {
                self.batch.copy_within(taken..self.ready, 0);
                self.ready -= taken;
                self.in_flight += taken;
                Ok(())
            }
            // The ring is full: the next reap makes room.
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && self.in_flight > 0 => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Processes the completions on the ring. Returns false if there are none.
    #[inline]
    fn reap(&mut self, work: &Work) -> Result<bool, String> {
        // SAFETY: the ring is mapped until io_destroy in `drop`; without atomics the kernel writes
        // only events, and only those beyond `tail`.
        let ring = unsafe { &*(self.context as *const Ring) };
        let mut head = ring.head.load(Ordering::Relaxed);
        // Acquire: pairs with the kernel's update of the tail after writing the events.
        let tail = ring.tail.load(Ordering::Acquire);
        if head == tail {
            return Ok(false);
        }
        // SAFETY: the events directly follow the header, whose magic has been checked.
        let events = unsafe { ptr::from_ref(ring).add(1).cast::<Event>() };
        while head != tail {
            // SAFETY: head is below the ring's length, and before the tail.
            let event = unsafe { &*events.add(head as usize) };
            self.complete(event.request as *mut iocb, event.result, work)?;
            head += 1;
            if head == ring.len {
                head = 0;
            }
        }
        // Release: the events have been read before the kernel may overwrite them.
        ring.head.store(head, Ordering::Release);
        Ok(true)
    }

    /// Sleeps until a request completes, and processes the completions.
    fn wait(&mut self, work: &Work) -> Result<(), String> {
        self.sleeps += 1;
        // SAFETY: `waited` has room for as many events as there are requests.
        let status = unsafe {
            let none = ptr::null_mut::<libc::timespec>();
            let room = self.waited.len();
            syscall(libc::SYS_io_getevents, self.context, 1, room, self.waited.as_mut_ptr(), none)
        };
        let count = match check(status) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(format!("io_getevents: {e}")),
        };
        for i in 0..count {
            let event = self.waited[i];
            self.complete(event.request as *mut iocb, event.result, work)?;
        }
        Ok(())
    }

    /// Checks a completed request and prepares it for the next offset.
    #[inline]
    fn complete(&mut self, request: *mut iocb, result: i64, work: &Work) -> Result<(), String> {
        self.in_flight -= 1;
        // SAFETY: an event refers to a submitted request, which is in `self.requests` and no longer
        // used by the kernel.
        let request = unsafe { &mut *request };
        if result != request.aio_nbytes as i64 {
            let verb = if request.aio_lio_opcode == CMD_PWRITE { "write" } else { "read" };
            return Err(failed(verb, request.aio_nbytes, request.aio_offset as u64, result));
        }
        // The number of the buffer.
        let number = (ptr::from_ref(request).addr() - self.requests.as_ptr().addr()) / size_of::<iocb>();
        if let Some(offset) = work.next(number) {
            request.aio_offset = offset as i64;
            // SAFETY: the batch has room for every request, and this one was not in it.
            unsafe { *self.batch.get_unchecked_mut(self.ready) = request };
            self.ready += 1;
        }
        Ok(())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: this object owns the context. The call waits for all requests in flight; the
        // buffers are freed after it.
        unsafe { syscall(libc::SYS_io_destroy, self.context) };
    }
}

/// Returns the count, or the error in `errno`.
fn check(status: c_long) -> io::Result<usize> {
    usize::try_from(status).map_err(|_| io::Error::last_os_error())
}
