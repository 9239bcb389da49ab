//! A simulated backend: in-memory disk, virtual time, every decision drawn from a recorded tape.
//!
//! ```text
//!   engine ---- submit, peek, commit, wait ----> SimulatedBackend
//!                                                  |  one lock
//!   Sim (used by the test) ----------------------> Machine     requests in flight, ring, clock
//!                                                  |- Tape     every choice, seeded and recorded
//!                                                  |- Faults   injected, by rate or by script
//!                                                  |- FileSystem, SimFile    durable and volatile state
//!                                                  '- Trace    the events, as a hash and as a log
//! ```
//!
//! Programs do not use it directly: [`simulate`](crate::simulate::simulate) sets it up, and
//! [`File`](crate::File) works on it.
//!
//! In edge cases it behaves like Linux native AIO. A request on a bad descriptor is rejected at
//! submit if it is the first, and otherwise ends the batch. Unaligned direct I/O is accepted, and
//! fails. A full ring returns EAGAIN. A cancel stops nothing unless the faults say so (io_uring's
//! may). A ring that cannot be read in memory is read one event at a time. Later syncs do
//! not write the data that a failed sync should have made durable. If a direct and a page-cached
//! write of one page were in flight at the same time, the next sync of the file fails with EIO, as
//! it may on Linux.
//!
//! # Departs from Linux
//!
//! - Only requests and sleeps take time; in addition, each look at an empty ring takes a tenth of a
//!   microsecond. Operations that block the thread on Linux (opening, renaming, allocating) take
//!   none.
//! - While a read is in flight its buffer contains garbage; a part that is not read keeps the
//!   garbage.
//! - A write changes the file in one step, when it completes, and a read sees the file as it is at
//!   the read's completion.
//! - Crashes are harsher than ext4's: a file's sync does not make its name durable, only
//!   [`sync_dir`](crate::fs::sync_dir) does; sectors are lost independently; and a sector
//!   may be torn.
//! - Directories also exist without being created, as long as they contain something. There are no
//!   symbolic links, permissions, locks or times, and the disk has no size limit.
//! - `sync_data` and `sync_all` are the same. Holes and blocks of zeroes are the same.
//! - Only this one thread is simulated. Another thread's `notify` ends a sleep at a moment that is
//!   not recorded on the tape.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use coralio_runtime::AioContext;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

pub use super::Entry;
use super::sys::poll;
use super::{Backend, Completion, Operation};

pub use faults::{Fault, Faults, Latency};
pub(crate) use machine::Machine;
use tape::Tape;

mod directory;
mod disk;
mod fate;
mod faults;
mod machine;
pub(crate) mod tape;
mod trace;

pub(crate) use directory::{Access, FileSystem as SimulatedFiles};

/// Additional steps allowed for a run that should be ending.
pub(crate) const SLACK: u64 = 1000;

/// The properties of a simulated machine.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) depth: u32,
    /// In bytes, a power of two.
    pub(crate) sector_size: usize,
    pub(crate) latency: Latency,
    pub(crate) faults: Faults,
    pub(crate) torn_writes: bool,
    /// Maximum number of requests accepted, submits refused and sleeps; a run with more counts as
    /// endless.
    pub(crate) max_steps: u64,
}

/// A simulated backend, see the [module](self). Clones share their state: one for the engine, one
/// for the test.
#[derive(Clone)]
pub struct SimulatedBackend {
    machine: Arc<Mutex<Machine>>,
    depth: u32,
    /// The context that the backend belongs to, for the dump of a failure.
    context: Option<AioContext>,
}

impl SimulatedBackend {
    pub(crate) fn new(settings: Settings, tape: Tape, tells: bool) -> SimulatedBackend {
        let depth = settings.depth;
        SimulatedBackend { machine: Arc::new(Mutex::new(Machine::new(settings, tape, tells))), depth, context: None }
    }

    /// Returns the backend for an engine of `context`.
    pub(crate) fn of_context(&self, context: &AioContext) -> SimulatedBackend {
        SimulatedBackend { context: Some(context.clone()), ..self.clone() }
    }

    pub(crate) fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock()
    }

    pub(crate) fn is(&self, other: &SimulatedBackend) -> bool {
        Arc::ptr_eq(&self.machine, &other.machine)
    }

    pub(crate) fn sector(&self) -> usize {
        self.machine().settings.sector_size
    }

    /// Returns the files and names.
    pub(crate) fn files(&self) -> MappedMutexGuard<'_, SimulatedFiles> {
        MutexGuard::map(self.machine(), |machine| &mut machine.files)
    }

    /// Performs an operation on names or ranges. `what` describes it, for the run's log.
    pub(crate) fn perform<T>(
        &self,
        what: impl FnOnce(&SimulatedFiles) -> String,
        f: impl FnOnce(&mut SimulatedFiles) -> io::Result<T>,
    ) -> io::Result<T> {
        self.machine().perform(what, f)
    }

    /// Returns a pair of numbers that identifies the file of the open descriptor `fd`.
    pub(crate) fn inode(&self, fd: RawFd) -> (u64, u64) {
        (Arc::as_ptr(&self.machine) as u64, self.files().inode(fd) as u64)
    }

    /// Fails the run if it has exceeded its maximum number of steps by more than `slack`, and again
    /// after [`SLACK`] further steps, in case the panic of the first time was caught.
    #[track_caller]
    fn check_steps(&self, slack: u64) {
        if !self.machine().is_overrun(slack) {
            return;
        }
        let message = format!(
            "the run does not end: more requests, refused submits and sleeps than Simulation::max_steps allows; does \
             something retry for ever? raise max_steps if the run is meant to be this long\n{}",
            self.dump()
        );
        // Also recorded, because the panic may end up in a join handle.
        self.machine().violations.push(message.clone());
        panic!("{message}");
    }

    /// Whether nothing is in flight or on the ring.
    pub(crate) fn is_idle(&self) -> bool {
        let machine = self.machine();
        machine.in_flight() == 0 && machine.ring.is_empty()
    }

    /// Returns what each coroutine waits for.
    fn dump(&self) -> String {
        self.context.as_ref().map(|context| context.dump().to_string()).unwrap_or_default()
    }
}

/// Whether `other` is readable, or becomes so before the timeout.
fn is_readable(other: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
    poll([Some(other), None], timeout).is_ok_and(|[readable, _]| readable)
}

// SAFETY: a request's memory is accessed only in `Machine::take` and `Machine::complete`, the
// latter of which puts its completion on the ring; an entry that was not counted is not kept.
unsafe impl Backend for SimulatedBackend {
    type Entry = Entry;

    fn capacity(&self) -> u32 {
        self.depth
    }

    fn prepare(&self, operation: &Operation, key: u64) -> Entry {
        self.machine().prepared(key);
        Entry { operation: *operation, key }
    }

    fn key(&self, entry: &Entry) -> u64 {
        entry.key
    }

    unsafe fn submit(&self, entries: &mut [Entry]) -> io::Result<usize> {
        // SAFETY: promised by the caller.
        unsafe { self.machine().submit(entries) }
    }

    unsafe fn cancel(&self, key: u64) {
        self.machine().cancel(key);
    }

    unsafe fn peek_completion(&self) -> Option<Completion> {
        self.machine().peek()
    }

    unsafe fn advance(&self) {
        self.machine().commit();
    }

    /// # Panics
    ///
    /// If nothing could end the sleep.
    unsafe fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
        let told = other.is_some_and(|other| is_readable(other, Some(Duration::ZERO)));
        if told || self.machine().sleep(timeout) {
            return Ok(());
        }
        let other = other.expect("this sleep would never end: nothing is in flight");
        is_readable(other, None);
        Ok(())
    }

    /// # Panics
    ///
    /// If the run exceeds its maximum number of steps: a coroutine whose requests all complete
    /// within submit never returns to the loop.
    fn before_request(&self) {
        if !thread::panicking() {
            self.check_steps(SLACK);
        }
    }

    /// # Panics
    ///
    /// If the run exceeds its maximum number of steps.
    fn before_dispatch(&self) {
        self.check_steps(0);
    }

    /// # Panics
    ///
    /// If no completion would end the sleep; if requests are pending that nothing would submit; if
    /// nothing could ever end the sleep. A run cannot hang in any other way.
    fn sleep_idle(
        &self,
        in_flight: u32,
        pending: usize,
        waits: bool,
        other: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> Option<io::Result<()>> {
        if in_flight > 0 && !self.is_idle() {
            assert!(waits, "the loop sleeps, but no completion would wake it (in_flight {in_flight})");
            return None;
        }
        assert!(
            pending == 0 || in_flight > 0,
            "the loop sleeps with {pending} requests pending and none in flight: they are never submitted"
        );
        if !is_readable(other, Some(Duration::ZERO)) && !self.machine().sleep(timeout) {
            panic!("deadlock: every coroutine waits, and no request is in flight\n{}", self.dump());
        }
        Some(Ok(()))
    }
}

impl std::fmt::Debug for SimulatedBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let machine = self.machine();
        write!(f, "SimulatedBackend({} in flight, {} on the ring)", machine.in_flight(), machine.ring.len())
    }
}

#[cfg(test)]
mod tests;
