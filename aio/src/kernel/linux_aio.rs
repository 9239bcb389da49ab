//! Linux native AIO, with its ring read in memory and no eventfd.
//!
//! - Completions are taken off the ring in user space: a completion costs a few loads, no system call.
//! - To sleep without taking anything (another thread may be taking), `io_getevents` is given memory that it cannot
//!   write. It waits as always; then its copy fails with `EFAULT` before it has moved the head. So `EFAULT` means:
//!   something is there.
//! - What else may end the sleep is watched by one `IOCB_CMD_POLL` request in the same context. So nothing per request is
//!   paid for being woken; an eventfd per request (`IOCB_FLAG_RESFD`) would cost 80 ns each.
//! - `io_destroy` takes up to 100 ms, so idle contexts are kept for whoever comes next.
//!
//! If the ring is not laid out as expected, completions are taken by `io_getevents`, one at a time.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use super::{Completion, Kernel, Opcode, Operation};

mod abi;

use abi::{Event, RawIocb, RingHeader};

/// The key of the poll request, which is nobody's.
const POLL_KEY: u64 = u64::MAX;
/// The deepest queue that can be asked for. Beyond it lies no gain: devices take a few hundred.
const MAX_DEPTH: u32 = 32768;
/// Idle contexts kept.
const KEPT: usize = 8;

/// A request in native AIO's form: an iocb.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub struct Iocb(RawIocb);

// SAFETY: the addresses in it are plain numbers to whoever holds it; only `submit` gives them meaning.
unsafe impl Send for Iocb {}

/// An AIO context and its ring.
#[derive(Debug)]
pub struct LinuxAio {
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: abi::ContextId,
    /// The process that made it; another one, after a fork, cannot use it.
    process: u32,
    depth: u32,
    /// `None`: the ring is not laid out as expected.
    ring: Option<Ring>,
    /// Without a ring in memory: an event that was taken and not committed.
    taken: Mutex<Option<Completion>>,
    /// Pointers to the iocbs of one submit; under the context's lock.
    batch: UnsafeCell<Box<[*mut RawIocb]>>,
    poll: UnsafeCell<Box<RawIocb>>,
    /// Whether the poll request is with the kernel.
    armed: AtomicBool,
    /// The descriptor that it watches.
    watched: AtomicI32,
}

// SAFETY: *one lock*: `batch` is used by `submit` alone, which is called under the context's lock. `poll` is used by `wait`
// alone, by the home thread, and at drop. The ring's header is atomics; events are read after the tail that covers them.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// The ring, as the kernel has mapped it into this process.
#[derive(Clone, Copy, Debug)]
struct Ring {
    header: NonNull<RingHeader>,
    events: NonNull<Event>,
    nr: u32,
}

impl Ring {
    /// # Safety
    ///
    /// `id` is a context's, and the ring is not used after its end.
    unsafe fn of(id: abi::ContextId) -> Option<Ring> {
        let header = NonNull::new(ptr::with_exposed_provenance_mut::<RingHeader>(id as usize))?;
        // SAFETY: the id is the address of the ring's mapping, at least a page long; these fields do not change.
        let RingHeader { nr, magic, incompat_features, header_length, .. } = unsafe { header.as_ref() };
        let fits = *magic == abi::RING_MAGIC
            && *incompat_features == 0
            && *header_length as usize == size_of::<RingHeader>()
            && *nr > 0;
        // SAFETY: the events follow the header.
        fits.then(|| Ring { header, events: unsafe { header.add(1) }.cast(), nr: *nr })
    }

    #[inline]
    fn header(&self) -> &RingHeader {
        // SAFETY: the mapping lives as long as the context, which the owner of this Ring ends.
        unsafe { self.header.as_ref() }
    }

    #[inline]
    fn peek(&self) -> Option<Completion> {
        // Relaxed: only whoever holds the context's lock writes the head.
        let head = self.header().head.load(Ordering::Relaxed);
        // Acquire pairs with the kernel's barrier between the event and the tail.
        if head == self.header().tail.load(Ordering::Acquire) {
            return None;
        }
        // Whoever has written the head has kept it below `nr`; a ring that was tampered with must not be followed.
        assert!(head < self.nr);
        // SAFETY: `head` is in range, and the event there is complete, since the tail is beyond it.
        Some(unsafe { self.events.add(head as usize).as_ref() }.completion())
    }

    #[inline]
    fn commit(&self) {
        let head = self.header().head.load(Ordering::Relaxed) + 1;
        // Release: the event was read before the kernel may write its place again.
        self.header().head.store(if head == self.nr { 0 } else { head }, Ordering::Release);
    }
}

impl Event {
    #[inline]
    fn completion(&self) -> Completion {
        Completion { key: self.data, result: self.res }
    }
}

/// Idle contexts, for whoever asks for the same depth.
static IDLE: Mutex<Vec<Inner>> = Mutex::new(Vec::new());

impl LinuxAio {
    /// A context that takes `depth` requests at once.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: `depth` is 0 or above 32768. Else what the kernel says, with cause and remedy: `fs.aio-max-nr` is
    /// used up, or native AIO is not allowed here.
    pub fn new(depth: u32) -> io::Result<LinuxAio> {
        if depth == 0 || depth > MAX_DEPTH {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a queue depth of {depth} cannot be; choose 1 to {MAX_DEPTH}, and best below the device's 256"),
            ));
        }
        let mut idle = IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let process = std::process::id();
        if let Some(index) = idle.iter().position(|inner| inner.depth == depth && inner.process == process) {
            return Ok(LinuxAio { inner: Some(idle.swap_remove(index)) });
        }
        drop(idle);
        // One more, for the poll request.
        let id = match abi::setup(depth + 1) {
            Ok(id) => id,
            // Idle contexts count against the limit too.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && release_idle() => {
                abi::setup(depth + 1).map_err(|error| explain_setup(error, depth))?
            }
            Err(error) => return Err(explain_setup(error, depth)),
        };
        // SAFETY: `id` is the context's that was just made, and `Inner` ends both.
        let ring = unsafe { Ring::of(id) };
        Ok(LinuxAio { inner: Some(Inner::new(id, depth, ring)) })
    }

    #[inline]
    fn inner(&self) -> &Inner {
        // Taken out at drop alone.
        self.inner.as_ref().expect("a context is there until it is dropped")
    }
}

/// Ends the idle contexts. Returns whether there were any.
fn release_idle() -> bool {
    let idle = std::mem::take(&mut *IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    !idle.is_empty()
}

#[cold]
fn explain_setup(error: io::Error, depth: u32) -> io::Error {
    let setting = |name: &str| {
        fs::read_to_string(format!("/proc/sys/fs/{name}")).map_or("?".into(), |text| text.trim().to_string())
    };
    let why = match error.raw_os_error() {
        Some(libc::EAGAIN) => format!(
            "the system's AIO requests are used up (fs.aio-nr {}, fs.aio-max-nr {}); use a smaller depth, end other \
             programs that use AIO, or raise the limit: sysctl fs.aio-max-nr=1048576",
            setting("aio-nr"),
            setting("aio-max-nr")
        ),
        Some(libc::EPERM | libc::EACCES) => "native AIO is forbidden here, by a seccomp filter perhaps".into(),
        Some(libc::ENOSYS) => "this kernel has no native AIO (CONFIG_AIO), or a seccomp filter hides it".into(),
        _ => "the kernel refused".into(),
    };
    io::Error::new(error.kind(), format!("cannot make an AIO context of depth {depth}: {why} ({error})"))
}

impl Inner {
    fn new(id: abi::ContextId, depth: u32, ring: Option<Ring>) -> Inner {
        Inner {
            id,
            process: std::process::id(),
            depth,
            ring,
            taken: Mutex::new(None),
            batch: UnsafeCell::new(vec![ptr::null_mut(); depth as usize].into_boxed_slice()),
            poll: UnsafeCell::default(),
            armed: AtomicBool::new(false),
            watched: AtomicI32::new(-1),
        }
    }

    /// The next completion that is somebody's.
    #[inline]
    fn peek(&self) -> Option<Completion> {
        match &self.ring {
            Some(ring) => match ring.peek()? {
                poll if poll.key == POLL_KEY => self.peek_behind_poll(),
                completion => Some(completion),
            },
            None => self.take(),
        }
    }

    #[inline]
    fn commit(&self) {
        match &self.ring {
            Some(ring) => ring.commit(),
            None => *self.lock_taken() = None,
        }
    }

    /// The poll request's completion is at the cursor: passes it.
    #[cold]
    fn peek_behind_poll(&self) -> Option<Completion> {
        self.commit();
        // Release pairs with the acquire in `watch`: the iocb may be written again.
        self.armed.store(false, Ordering::Release);
        self.peek()
    }

    /// Without a ring in memory: takes one completion from the kernel, and keeps it until it is committed.
    #[cold]
    fn take(&self) -> Option<Completion> {
        let mut taken = self.lock_taken();
        if taken.is_none() {
            let mut event = Event::default();
            // SAFETY: room for one event.
            let count = unsafe { abi::get_events(self.id, 0, 1, &mut event, Some(Duration::ZERO)) };
            *taken = matches!(count, Ok(1)).then_some(event.completion());
        }
        let completion = (*taken)?;
        drop(taken);
        if completion.key == POLL_KEY { self.peek_behind_poll() } else { Some(completion) }
    }

    fn lock_taken(&self) -> MutexGuard<'_, Option<Completion>> {
        self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Has `fd` watched by the poll request.
    fn watch(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let armed = self.armed.load(Ordering::Acquire);
        if armed && self.watched.load(Ordering::Relaxed) == fd.as_raw_fd() {
            return Ok(());
        }
        self.unwatch();
        // SAFETY: *one lock*: the poll request is not with the kernel, and only the home thread comes here.
        let poll = unsafe { &mut **self.poll.get() };
        *poll = RawIocb {
            data: POLL_KEY,
            opcode: abi::CMD_POLL,
            fd: fd.as_raw_fd() as u32,
            buf: libc::POLLIN as u64,
            ..RawIocb::default()
        };
        self.watched.store(fd.as_raw_fd(), Ordering::Relaxed);
        self.armed.store(true, Ordering::Relaxed);
        // SAFETY: the iocb is in a box of this context's; a poll names no memory.
        let submitted = unsafe { abi::submit(self.id, &[ptr::from_mut(poll)]) };
        submitted.map(drop).map_err(|error| {
            self.armed.store(false, Ordering::Relaxed);
            match error.raw_os_error() {
                Some(libc::EINVAL) => io::Error::new(
                    io::ErrorKind::Unsupported,
                    "this kernel cannot poll a descriptor by AIO (IOCB_CMD_POLL); Linux 4.18 or newer can",
                ),
                _ => error,
            }
        })
    }

    /// Takes the poll request back. With nothing else in flight; or it stays on the ring to be passed by `peek`.
    fn unwatch(&self) {
        if self.armed.load(Ordering::Acquire) {
            // SAFETY: *one lock*: only the home thread comes here; the kernel does not write the iocb.
            let poll = unsafe { &**self.poll.get() };
            // An error means that it has completed: either way its event comes.
            let _ = abi::cancel(self.id, poll);
        }
    }

    /// Waits until the poll request's event was passed, with nothing else in flight.
    fn drain(&self) {
        self.unwatch();
        while self.armed.load(Ordering::Acquire) {
            assert!(self.peek().is_none(), "an AIO context is dropped with completions that nobody took");
            if self.armed.load(Ordering::Acquire) {
                let _ = self.sleep(1, None);
            }
        }
    }

    /// Waits until `min` events are there, and takes none.
    fn sleep(&self, min: u32, timeout: Option<Duration>) -> io::Result<()> {
        if self.lock_taken().is_some() {
            return Ok(());
        }
        // SAFETY: memory that cannot be written.
        let woken = unsafe { abi::get_events(self.id, min, min, unwritable()?, timeout) };
        match woken {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EFAULT | libc::EINTR) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

/// Memory that the kernel cannot write: a page mapped for reading.
fn unwritable() -> io::Result<*mut Event> {
    static PAGE: OnceLock<usize> = OnceLock::new();
    if let Some(&address) = PAGE.get() {
        return Ok(ptr::with_exposed_provenance_mut(address));
    }
    // SAFETY: a fresh private mapping, at an address that the kernel chooses. It stays for the life of the process.
    let page =
        unsafe { libc::mmap(ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(ptr::with_exposed_provenance_mut(*PAGE.get_or_init(|| page.expose_provenance())))
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            // SAFETY: the ring goes with this.
            unsafe { abi::destroy(self.id) };
        }
    }
}

impl Drop for LinuxAio {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else { return };
        if inner.process != std::process::id() {
            return;
        }
        inner.drain();
        let mut idle = IDLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if idle.len() < KEPT {
            idle.push(inner);
        }
    }
}

// SAFETY: iocbs are copied by the kernel during `io_submit`, which takes from the front those that it counts; a request's
// memory is not touched once its event is on the ring, and each has one event.
unsafe impl Kernel for LinuxAio {
    type Entry = Iocb;

    fn capacity(&self) -> u32 {
        self.inner().depth
    }

    #[inline]
    fn prepare(&self, operation: &Operation, key: u64) -> Iocb {
        let opcode = match operation.opcode {
            Opcode::Read => abi::CMD_PREAD,
            Opcode::Write => abi::CMD_PWRITE,
            Opcode::ReadVectored => abi::CMD_PREADV,
            Opcode::WriteVectored => abi::CMD_PWRITEV,
            Opcode::SyncData => abi::CMD_FDSYNC,
            Opcode::SyncAll => abi::CMD_FSYNC,
        };
        Iocb(RawIocb {
            data: key,
            opcode,
            fd: operation.fd as u32,
            buf: operation.addr,
            nbytes: operation.len,
            offset: operation.offset as i64,
            ..RawIocb::default()
        })
    }

    #[inline]
    fn key(&self, entry: &Iocb) -> u64 {
        entry.0.data
    }

    #[inline]
    unsafe fn submit(&self, entries: &mut [Iocb]) -> io::Result<usize> {
        let inner = self.inner();
        // SAFETY: *one lock*: submit is called under the context's lock.
        let batch = unsafe { &mut **inner.batch.get() };
        let count = entries.len().min(batch.len());
        for (place, entry) in batch.iter_mut().zip(entries.iter_mut()) {
            *place = &raw mut entry.0;
        }
        loop {
            // SAFETY: the caller's promise.
            match unsafe { abi::submit(inner.id, &batch[..count]) } {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    #[inline]
    fn peek(&self) -> Option<Completion> {
        self.inner().peek()
    }

    #[inline]
    fn commit(&self) {
        self.inner().commit();
    }

    fn wait(&self, min: u32, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
        let inner = self.inner();
        if let Some(other) = other {
            inner.watch(other)?;
        }
        inner.sleep(min.clamp(1, inner.depth), timeout)
    }
}
