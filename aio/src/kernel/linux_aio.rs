//! Linux native AIO: requests go in by `io_submit`, and what became of them is read from a ring in memory.
//!
//! One [`LinuxAio`] owns one AIO context. The engine calls it and it calls nobody. Taking a completion costs no system
//! call; sleeping costs one, and this is the part that needs tricks:
//!
//! - `io_getevents` would take the events that it waits for, while another thread may be taking them from the ring in
//!   memory. So it is given a *trap*, memory that it cannot write: if there are events, it fails with `EFAULT` before it
//!   moves the cursor, and that means "something is there".
//! - The sleep must also end when `other` (the loop's epoll or eventfd) is readable. A poll request in the same context
//!   watches it, whose completion is an event like any other; `peek` swallows it.
//! - A thread that peeks while the home thread sleeps must not swallow that event: it is what ends the sleep. It leaves it
//!   on the ring, which looks empty to it until the home thread is up.
//!
//! Should the ring not look as we know it, nothing is read from memory: events are taken one at a time by `io_getevents`,
//! without the trap, since nothing is known of that kernel.
//!
//! A forked child has no part in its parent's contexts and must leave its `LinuxAio`s alone; to drop them is fine.
//!
//! # Invariants that the SAFETY comments cite
//!
//! - *Under the lock*: `submit`, `peek` and `commit` are called by one thread at a time (rule E9). Only `submit`'s soundness
//!   rests on it: the others make do with atomics, so that a breach mixes up events but is no undefined behaviour. The
//!   home thread may also peek without the lock, for a look whether something is there.
//! - *The ring stays*: it is mapped from `io_setup` to `io_destroy`, which `Context`'s drop alone calls; a header with `slots`
//!   events behind it, written by the kernel and through atomics.
//! - *Who arms, owns*: the poll request's memory is written by the one who moves `watch` from unarmed to armed; it
//!   becomes unarmed only after the event was seen, which the kernel posts after its last look at that memory.

#![allow(unsafe_code)]

mod abi;
mod context;
#[cfg(test)]
mod tests;

use context::{Context, Pool, setup_error, trap};

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Completion, Kernel, Opcode, Operation};

/// The deepest queue on offer: half of what `fs.aio-max-nr` usually grants to the whole machine.
const MAX_DEPTH: u32 = 32768;

/// The key of the poll request, which no caller uses.
const POLL_KEY: u64 = u64::MAX;

/// In [`LinuxAio::watch`]: a poll request is out, or its event is on the ring. The low 32 bits say for which descriptor.
const ARMED: u64 = 1 << 32;
/// In [`LinuxAio::watch`]: the home thread sleeps, or is about to, and the poll request's event is to wake it.
const ASLEEP: u64 = 1 << 33;
/// In [`LinuxAio::watch`]: the poll request's event is being taken off the ring.
const SWALLOWING: u64 = 1 << 34;

/// A request in the form that `io_submit` takes.
#[repr(transparent)]
#[derive(Debug)]
pub struct Iocb(abi::Iocb);

/// The [`Kernel`] that Linux native AIO is: one AIO context.
pub struct LinuxAio {
    /// The mapped ring. Its address is the context's name.
    ring: NonNull<abi::Ring>,
    /// How many events the ring holds; 0 if its layout is not known and it is not to be looked at.
    slots: u32,
    /// Submitted and not yet committed. Changed under the lock with plain loads and stores.
    in_flight: AtomicU32,
    /// The poll request: [`ARMED`] with its descriptor, and [`ASLEEP`].
    watch: AtomicU64,
    /// Without a ring to look at: the completion that was taken and not yet committed.
    taken: Mutex<Option<Completion>>,
    /// Memory that `io_getevents` cannot write.
    trap: *mut abi::Event,
    context: ManuallyDrop<Context>,
    pool: &'static Pool,
}

// SAFETY: the ring is memory of the process (*The ring stays*), the trap is never touched, and an AIO context may be used by
// any thread of the process.
unsafe impl Send for LinuxAio {}
// SAFETY: as above; of the cells in the context, `pointers` is used *Under the lock*, and of `poll` *Who arms, owns*.
unsafe impl Sync for LinuxAio {}

impl LinuxAio {
    /// A context for up to `depth` requests in flight (1 to 32768).
    ///
    /// # Errors
    ///
    /// The depth is out of range, the machine's AIO requests are used up, or native AIO is not to be had; the message says
    /// what to do about it.
    pub fn new(depth: u32) -> io::Result<LinuxAio> {
        static IDLE: Pool = Pool::new();
        LinuxAio::from_pool(depth, &IDLE)
    }

    /// Itself, if the kernel does all that an engine asks for: it may hide `io_submit` alone, or be older than the poll request.
    pub(crate) fn probed(self) -> io::Result<LinuxAio> {
        let readable = context::readable()?;
        let waited = self.wait(1, Some(readable.as_fd()), Some(Duration::from_secs(1)));
        waited.map_err(|error| setup_error(error, self.context.depth))?;
        match self.peek() {
            None => Ok(self),
            Some(completion) => panic!("nothing was asked of it yet, and here is {completion:?}"),
        }
    }

    fn from_pool(depth: u32, pool: &'static Pool) -> io::Result<LinuxAio> {
        if depth == 0 || depth > MAX_DEPTH {
            let message = format!("queue depth {depth} is not in 1..={MAX_DEPTH}: 32 suits most, 256 a fast disk");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let trap = trap()?;
        let context = pool.get(depth).map_or_else(|| Context::new(depth, pool), Ok)?;
        let ring = context.ring;
        // SAFETY: *The ring stays*; what does not call itself a ring has at least its header mapped.
        let header = unsafe { ring.as_ref() };
        let known = header.magic == abi::RING_MAGIC
            && header.incompat_features == 0
            && header.header_length as usize == size_of::<abi::Ring>();
        Ok(LinuxAio {
            ring,
            slots: if known { header.nr } else { 0 },
            in_flight: AtomicU32::new(0),
            watch: AtomicU64::new(0),
            taken: Mutex::new(None),
            trap,
            context: ManuallyDrop::new(context),
            pool,
        })
    }

    #[inline]
    fn header(&self) -> &abi::Ring {
        // SAFETY: *The ring stays*.
        unsafe { self.ring.as_ref() }
    }

    /// The slot after `head`. Always within the ring, so that the cursor is too.
    #[inline]
    fn after(&self, head: u32) -> u32 {
        if head + 1 == self.slots { 0 } else { head + 1 }
    }

    /// The poll request's event is at `head`: takes it off the ring, unless the home thread sleeps, or another takes it.
    #[cold]
    fn swallow(&self, head: u32) -> bool {
        let watch = self.watch.load(Relaxed);
        // Unarmed before the cursor moves: a home thread that still sees "armed" must find the event, or have left word
        // that it sleeps. Release pairs with the Acquire in `arm`: who owns the poll request next comes after the event.
        let free = watch & (ARMED | ASLEEP | SWALLOWING) == ARMED;
        if !free || self.watch.compare_exchange(watch, SWALLOWING, Release, Relaxed).is_err() {
            return false;
        }
        // As in `commit`. Nobody gets past the event but us, so that the head is still this one.
        self.header().head.store(self.after(head), Release);
        // Release pairs with the Acquire of `arm` too, and so of the next to swallow: it finds the head moved.
        self.watch.fetch_and(!SWALLOWING, Release);
        true
    }

    /// Sees to it that a poll request watches `other`; or, if one still watches another descriptor, cancels that one, so
    /// that its event comes. False if the kernel has no room for one now: then nothing would end a sleep.
    fn arm(&self, other: BorrowedFd<'_>) -> io::Result<bool> {
        let fd = other.as_raw_fd() as u32;
        let poll = self.context.poll.get();
        // Acquire pairs with the Release in `swallow`.
        let watch = self.watch.load(Acquire);
        if watch & ARMED != 0 {
            if watch as u32 != fd {
                // It fails if the event is there already, which is as good.
                // SAFETY: the address it was submitted from, for the kernel to read.
                let _ = unsafe { abi::io_cancel(self.ring, poll) };
            }
            return Ok(true);
        }
        let armed = watch | ARMED | u64::from(fd);
        // Before the submit: another thread may have swallowed the event by the time it returns.
        if self.watch.compare_exchange(watch, armed, Relaxed, Relaxed).is_err() {
            return self.arm(other);
        }
        let request = abi::Iocb {
            data: POLL_KEY,
            opcode: abi::IOCB_CMD_POLL,
            fildes: fd,
            buf: libc::POLLIN as u64,
            ..Default::default()
        };
        // SAFETY: *Who arms, owns*. The request names no memory, and the kernel holds the file itself.
        match unsafe {
            poll.write(request);
            abi::io_submit(self.ring, &[poll])
        } {
            Ok(1) => Ok(true),
            said => {
                self.unarmed();
                match said {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(poll_error(error)),
                    _ => Ok(false),
                }
            }
        }
    }

    /// Sleeps until `min` events are there, whatever they are.
    fn sleep(&self, min: u32, timeout: Option<Duration>) -> io::Result<()> {
        let slept = if self.slots == 0 {
            self.take(min, timeout).map(|taken| match taken {
                Some(Completion { key: POLL_KEY, .. }) => self.unarmed(),
                None => {}
                completion => *self.taken() = completion,
            })
        } else {
            // SAFETY: nobody can write the trap.
            let events = unsafe { abi::io_getevents(self.ring, min, min.max(1), self.trap, timeout) };
            events.map(|lost| assert!(lost == 0, "the kernel wrote {lost} events to read-only memory: they are lost"))
        };
        match slept {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EINTR)) => Ok(()),
            slept => slept,
        }
    }

    /// Takes one event by system call, whoever's it is.
    fn take(&self, min: u32, timeout: Option<Duration>) -> io::Result<Option<Completion>> {
        let mut event = abi::Event::default();
        // SAFETY: room for one event.
        let count = unsafe { abi::io_getevents(self.ring, min, 1, &raw mut event, timeout) }?;
        Ok((count == 1).then(|| Completion { key: *event.data.get_mut(), result: *event.res.get_mut() }))
    }

    /// The poll request's event is off the ring, or it never was submitted.
    fn unarmed(&self) {
        // Release as in `swallow`.
        self.watch.fetch_and(ASLEEP, Release);
    }

    fn taken(&self) -> MutexGuard<'_, Option<Completion>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `peek` without a look at memory. While the home thread sleeps it is the one who takes events, and leaves them here:
    /// one taken behind its back could be the one that was to wake it.
    #[cold]
    fn peek_taken(&self) -> Option<Completion> {
        let mut taken = self.taken();
        while taken.is_none() && self.watch.load(Relaxed) & ASLEEP == 0 {
            match self.take(0, None) {
                Ok(None) => break,
                Ok(Some(Completion { key: POLL_KEY, .. })) => self.unarmed(),
                Ok(completion) => *taken = completion,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("io_getevents on an AIO context of this process: {error}"),
            }
        }
        *taken
    }

    /// Leaves nothing in flight and nothing on the ring, so that the context can serve somebody else.
    fn clear(&self) -> bool {
        if self.in_flight.load(Relaxed) != 0 {
            return false;
        }
        while self.watch.load(Relaxed) & ARMED != 0 {
            // SAFETY: the address it was submitted from. It fails if the event is there already, which is as good.
            let _ = unsafe { abi::io_cancel(self.ring, self.context.poll.get()) };
            if self.sleep(1, None).is_err() || self.peek().is_some() {
                return false;
            }
        }
        self.peek().is_none()
    }
}

// SAFETY: *lent to the kernel*: an entry that `io_submit` did not count is not read later, and one that it did count has one event,
// which the kernel posts after its last access to the request's memory. `peek` acquires what was written before that.
unsafe impl Kernel for LinuxAio {
    type Entry = Iocb;

    #[inline]
    fn capacity(&self) -> u32 {
        self.context.depth
    }

    #[inline]
    fn prepare(&self, operation: &Operation, key: u64) -> Iocb {
        debug_assert_ne!(key, POLL_KEY, "this key is the poll request's");
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

    /// Of the syncs the kernel would not take it: they never block submit.
    #[inline]
    fn set_nowait(&self, entry: &mut Iocb, nowait: bool) {
        entry.0.rw_flags = if nowait { libc::RWF_NOWAIT } else { 0 };
    }

    #[inline]
    fn key(&self, entry: &Iocb) -> u64 {
        entry.0.data
    }

    unsafe fn submit(&self, entries: &mut [Iocb]) -> io::Result<usize> {
        let in_flight = self.in_flight.load(Relaxed);
        // The kernel would take more, but the poll request's slot must stay free.
        let room = self.context.depth.saturating_sub(in_flight) as usize;
        if room == 0 && !entries.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        // SAFETY: *Under the lock*.
        let pointers: &mut [*mut abi::Iocb] = unsafe { &mut *self.context.pointers.get() };
        let count = entries.len().min(room);
        for (pointer, entry) in pointers.iter_mut().zip(&mut entries[..count]) {
            *pointer = &raw mut entry.0;
        }
        // SAFETY: the pointers are to `entries`, which is ours for the call; the caller answers for what they name.
        let count = unsafe { abi::io_submit(self.ring, &pointers[..count]) }?;
        self.in_flight.store(in_flight + count as u32, Relaxed);
        Ok(count)
    }

    #[inline]
    fn peek(&self) -> Option<Completion> {
        if self.slots == 0 {
            return self.peek_taken();
        }
        let ring = self.header();
        loop {
            // Relaxed: the lock's holder before us moved it, if we did not.
            let head = ring.head.load(Relaxed);
            // Acquire pairs with the write barrier in the kernel between an event, with what its request did to memory, and
            // the tail that shows it.
            if head == ring.tail.load(Acquire) {
                return None;
            }
            // SAFETY: *The ring stays*, and the cursor is within it.
            let event = unsafe { self.ring.add(1).cast::<abi::Event>().add(head as usize).as_ref() };
            // Relaxed: ordered by the tail, and not overwritten before the head is past it.
            let key = event.data.load(Relaxed);
            if key != POLL_KEY {
                return Some(Completion { key, result: event.res.load(Relaxed) });
            }
            if !self.swallow(head) {
                return None;
            }
        }
    }

    #[inline]
    fn commit(&self) {
        // Wrapping: a caller who breaks rule E9 shall find out from its own counter.
        self.in_flight.store(self.in_flight.load(Relaxed).wrapping_sub(1), Relaxed);
        if self.slots == 0 {
            *self.taken() = None;
            return;
        }
        let head = &self.header().head;
        // Release pairs with the kernel's read of the head before it hands the slot to another event: we have read ours.
        head.store(self.after(head.load(Relaxed)), Release);
    }

    /// Sleeps as the trait says. Some things to know:
    ///
    /// - It may end early, and does so when `other` is not the descriptor of the last call: the old one is let go first. And
    ///   when the kernel has no memory for the poll request: who waits comes again.
    /// - A descriptor is watched until it is readable, even if it is closed by then. Don't close one and bring another with
    ///   the same number.
    /// - `min` counts from an empty ring: with a completion already there the kernel does not wait for more. Before
    ///   Linux 6.8, and without a ring to look at, a `min` above 1 is 1.
    ///
    /// # Errors
    ///
    /// `other` cannot be watched; before Linux 4.18 none can.
    ///
    /// # Panics
    ///
    /// If two threads wait at once.
    fn wait(&self, min: u32, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
        let watch = self.watch.load(Relaxed);
        let moved = other.is_some_and(|other| watch & ARMED != 0 && watch as u32 != other.as_raw_fd() as u32);
        let min = if moved || self.slots == 0 { min.min(1) } else { min };
        if min > 1 {
            // `other` alone would not end it: whoever peeks may swallow the event.
            let armed = other.map_or(Ok(true), |other| self.arm(other))?;
            return if armed { self.sleep(min, timeout) } else { Ok(()) };
        }
        {
            let taken = self.taken();
            if taken.is_some() {
                return Ok(());
            }
            // Relaxed: all changes of `watch` are read-modify-writes, so that this one comes before a `swallow`, which
            // then leaves the event to us, or after it, and `arm` sees that nothing is armed. Under the mutex for
            // `peek_taken`'s sake: it has found nothing, or will see this.
            let before = self.watch.fetch_or(ASLEEP, Relaxed);
            assert!(before & ASLEEP == 0, "two threads wait for the same AIO context: only its home thread may");
        }
        let armed = other.map_or(Ok(true), |other| self.arm(other));
        let result = armed.and_then(|armed| if armed { self.sleep(min, timeout) } else { Ok(()) });
        self.watch.fetch_and(!ASLEEP, Relaxed);
        result
    }
}

impl Drop for LinuxAio {
    /// Keeps the context for the next one who wants the same depth. With requests in flight it is destroyed instead, which
    /// waits for them.
    fn drop(&mut self) {
        let clean = self.context.is_ours() && self.clear();
        // SAFETY: taken once, here; nobody uses it afterwards.
        let context = unsafe { ManuallyDrop::take(&mut self.context) };
        if clean {
            self.pool.put(context);
        }
    }
}

impl fmt::Debug for LinuxAio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxAio")
            .field("depth", &self.context.depth)
            .field("in_flight", &self.in_flight)
            .field("ring", &(self.slots != 0).then(|| self.header()))
            .finish_non_exhaustive()
    }
}

/// What `io_submit` said to the poll request, with cause and remedy.
fn poll_error(error: io::Error) -> io::Error {
    if error.raw_os_error() == Some(libc::EINVAL) {
        let message = "the kernel refuses IOCB_CMD_POLL, by which a sleep on native AIO also waits for a descriptor: \
                       it takes Linux 4.18 or later, and an epoll or eventfd descriptor";
        return io::Error::new(io::ErrorKind::Unsupported, message);
    }
    error
}
