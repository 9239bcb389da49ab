//! The simulated machine: requests in flight, the ring, the disk, the clock, and the tape that
//! decides.
//!
//! The states of a request, in order:
//!
//! | state     | where       | ended by                                 |
//! |-----------|-------------|------------------------------------------|
//! | offered   | the engine  | `submit`, which accepts it or refuses it |
//! | in flight | `in_flight` | its completion time; a crash             |
//! | done      | the ring    | `advance`                                 |
//!
//! A request's outcome is decided when it is accepted; its effect on the disk happens when it
//! completes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coralio_runtime::{Coroutine, VirtualClock};

use super::directory::{FileSystem, Open};
use super::fate::Outcome;
use super::faults::{Fault, Faults};
use super::tape::Tape;
use super::trace::{Event, Name, Trace, hash_of};
use super::{Entry, SLACK, Settings};
use crate::backend::io_buffers::IoBuffers;
use crate::backend::{Completion, Opcode, Operation};

/// Duration of a look at an empty ring, so that time passes for a loop that never sleeps.
const EMPTY_POLL_TIME: Duration = Duration::from_nanos(100);
/// How much later than the first completion a delayed wake-up happens.
const LATE: [Duration; 3] = [Duration::from_micros(20), Duration::from_millis(1), Duration::from_millis(50)];
/// One second of virtual time without a sleep.
const MAX_LOOKS: u32 = 10_000_000;
/// Size of a page of the page cache in bytes.
const PAGE: u64 = 4096;
/// Contents of a buffer while the kernel reads into it.
const POISON_BYTE: u8 = 0xdb;

/// Names the running coroutine, if there is one, for the log.
fn by_current() -> String {
    Coroutine::current().map(|coroutine| format!(" by {coroutine}")).unwrap_or_default()
}

pub(super) struct Request {
    number: u64,
    key: u64,
    opcode: Opcode,
    offset: u64,
    open: Open,
    fate: Outcome,
    lent: IoBuffers,
    /// The buffer's contents when the request was accepted; they must not change before it
    /// completes.
    bytes: Vec<u8>,
    /// The disk's time when the request was accepted.
    began: u64,
}

pub(crate) struct Machine {
    pub(crate) settings: Settings,
    pub(crate) faults: Faults,
    pub(crate) tape: Tape,
    pub(crate) trace: Trace,
    pub(crate) files: FileSystem,
    /// The completion ring, with the numbers of the requests.
    pub(crate) ring: VecDeque<(Completion, u64)>,
    pub(crate) script: VecDeque<Fault>,
    /// Violations of invariants found so far.
    pub(crate) violations: Vec<String>,
    /// The number of crashes. Shared, so that it can be read without the lock.
    pub(crate) crashes: Arc<AtomicU32>,
    /// Rate of power failures, applied when a request is accepted and when one completes.
    pub(crate) power_fails: f64,
    pub(super) faults_so_far: u32,
    /// Shared with the context.
    clock: VirtualClock,
    /// By key, the coroutines whose requests are pending. Only for the log.
    requesters: HashMap<u64, String>,
    pub(super) in_flight: BTreeMap<(Duration, u64), Request>,
    taken: u64,
    /// Requests accepted, submits refused, and sleeps.
    steps: u64,
    /// With more `steps` than this the run counts as endless.
    max_steps: u64,
    /// Looks at an empty ring since the last sleep.
    looks: u32,
    pub(super) refused_in_row: u32,
}

impl Machine {
    pub(crate) fn new(settings: Settings, tape: Tape, tells: bool) -> Machine {
        Machine {
            faults: settings.faults.clone(),
            tape,
            trace: Trace::new(tells),
            files: FileSystem::new(settings.sector_size),
            ring: VecDeque::new(),
            script: VecDeque::new(),
            violations: Vec::new(),
            crashes: Arc::default(),
            power_fails: 0.0,
            faults_so_far: 0,
            clock: VirtualClock::new(),
            requesters: HashMap::new(),
            in_flight: BTreeMap::new(),
            taken: 0,
            steps: 0,
            max_steps: settings.max_steps,
            looks: 0,
            refused_in_row: 0,
            settings,
        }
    }

    /// Returns the virtual time since the run began.
    pub(crate) fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    pub(crate) fn clock(&self) -> VirtualClock {
        self.clock.clone()
    }

    fn pass_until(&self, then: Duration) {
        self.clock.advance(then.saturating_sub(self.now()));
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Turns all faults off.
    pub(crate) fn calm(&mut self) {
        self.faults = Faults::none();
        self.script.clear();
        self.power_fails = 0.0;
    }

    /// See [`SimulatedBackend::check_steps`](super::SimulatedBackend::check_steps).
    pub(crate) fn is_overrun(&mut self, slack: u64) -> bool {
        let overrun = self.steps > self.max_steps.saturating_add(slack);
        if overrun {
            self.max_steps = self.steps + SLACK;
        }
        overrun
    }

    /// Whether the run has ever exceeded its maximum number of steps.
    pub(crate) fn was_overrun(&self) -> bool {
        self.max_steps != self.settings.max_steps
    }

    fn note(&mut self, event: &Event) {
        self.trace.add(self.clock.elapsed(), event);
    }

    /// Records who makes the request `key`.
    pub(crate) fn prepared(&mut self, key: u64) {
        if self.trace.has_log() {
            self.requesters.insert(key, by_current());
        }
    }

    /// Performs an operation that is not a request. `what` describes it.
    pub(crate) fn perform<T>(
        &mut self,
        what: impl FnOnce(&FileSystem) -> String,
        f: impl FnOnce(&mut FileSystem) -> io::Result<T>,
    ) -> io::Result<T> {
        let what = what(&self.files);
        let done = f(&mut self.files);
        let by = Name(if self.trace.has_log() { by_current() } else { String::new() });
        self.note(&Event::Performed { what, by, error: done.as_ref().err().map(io::Error::to_string) });
        done
    }

    /// # Safety
    ///
    /// As [`Backend::submit`](crate::backend::Backend::submit).
    pub(crate) unsafe fn submit(&mut self, entries: &[Entry]) -> io::Result<usize> {
        if entries.is_empty() {
            return Ok(0);
        }
        let offered = entries.len();
        let taken = self.admit(entries).map_err(|errno| {
            self.steps += 1;
            self.note(&Event::Refused { offered, errno });
            io::Error::from_raw_os_error(errno)
        })?;
        self.refused_in_row = 0;
        self.note(&Event::Submitted { offered, taken });
        for entry in &entries[..taken] {
            // SAFETY: promised by the caller: this entry is counted.
            unsafe { self.take(entry) };
        }
        if self.is_in_any_order() {
            let done = self.tape.choose(self.in_flight.len() as u32 + 1);
            self.due_after(done as usize).into_iter().for_each(|due| self.advance(due));
        }
        Ok(taken)
    }

    /// Decides how many entries are accepted, or why the first is not.
    fn admit(&mut self, entries: &[Entry]) -> Result<usize, i32> {
        let room = self.settings.depth as usize - self.in_flight.len() - self.ring.len();
        if entries.len() > room {
            self.violations.push(format!("{} requests offered: the queue depth leaves room for {room}", entries.len()));
        }
        if room == 0 {
            return Err(libc::EAGAIN);
        }
        let most = match self.scripted(true) {
            Some(Fault::Refuse(errno)) => return Err(errno),
            Some(Fault::Take(most)) => most.clamp(1, entries.len()),
            _ => self.draw_most(entries.len())?,
        };
        let most = most.min(room);
        // A bad request is rejected if it is the first, and otherwise ends the batch.
        match entries[..most].iter().map(|entry| self.check(&entry.operation)).position(|checked| checked.is_err()) {
            Some(0) => self.check(&entries[0].operation).map(|()| 0),
            Some(good) => Ok(good),
            None => Ok(most),
        }
    }

    /// Performs the checks of `io_submit` before it accepts a request.
    fn check(&mut self, operation: &Operation) -> Result<(), i32> {
        let open = self.files.opened(operation.fd).map_err(|error| error.raw_os_error().unwrap_or(libc::EBADF))?;
        let allowed = match operation.opcode {
            Opcode::Read | Opcode::ReadVectored => open.access.read,
            Opcode::Write | Opcode::WriteVectored => open.access.write,
            Opcode::SyncData | Opcode::SyncAll => true,
        };
        if !allowed {
            return Err(libc::EBADF);
        }
        if operation.offset > i64::MAX as u64 { Err(libc::EINVAL) } else { Ok(()) }
    }

    /// # Safety
    ///
    /// As [`IoBuffers::of`].
    unsafe fn take(&mut self, entry: &Entry) {
        if self.tape.chance(self.power_fails) {
            self.crash();
        }
        let Entry { operation, key } = *entry;
        let Operation { opcode, offset, .. } = operation;
        // SAFETY: promised by the caller: `complete` is the last to use it.
        let lent = unsafe { IoBuffers::of(&operation) };
        let open = self.files.opened(operation.fd).expect("the request was checked");
        let number = self.taken;
        self.taken += 1;
        self.steps += 1;
        if !opcode.is_write() {
            lent.scatter(&vec![POISON_BYTE; lent.len()]);
        }
        let bytes = lent.gather();
        let by = Name(self.requesters.remove(&key).unwrap_or_default());
        let name = Name(if self.trace.has_log() { self.files.name(open.file) } else { String::new() });
        let (len, hash) = (lent.len(), hash_of(&bytes));
        self.note(&Event::Taken { number, opcode, file: open.file, offset, len, hash, name, by });
        let (fate, time) = self.decide(opcode, offset, &open, &lent);
        if opcode.is_write() && self.clashes(offset, lent.len(), &open) {
            self.files.files[open.file].clashed = true;
        }
        // Saturating: a panic here would leave accepted requests uncounted.
        let due = self.now().saturating_add(time);
        let request = Request { number, key, opcode, offset, open, fate, lent, bytes, began: self.files.now() };
        self.in_flight.insert((due, number), request);
        if time.is_zero() {
            self.advance(self.now());
        }
    }

    /// Whether a write of the other kind, direct or page-cached, is in flight on a page of this
    /// range.
    fn clashes(&self, offset: u64, len: usize, open: &Open) -> bool {
        let pages = |offset: u64, len: usize| offset / PAGE..(offset + len as u64).div_ceil(PAGE);
        let ours = pages(offset, len);
        self.in_flight.values().any(|other| {
            let theirs = pages(other.offset, other.lent.len());
            other.opcode.is_write()
                && (other.open.file == open.file && other.open.access.direct != open.access.direct)
                && (ours.start < theirs.end && theirs.start < ours.end)
        })
    }

    /// Returns the time when `count` of the requests in flight will have completed.
    fn due_after(&self, count: usize) -> Option<Duration> {
        self.in_flight.keys().nth(count.checked_sub(1)?).map(|&(due, _)| due)
    }

    /// Lets time pass, and completes the requests that are due.
    pub(crate) fn advance(&mut self, until: Duration) {
        while let Some(first) = self.in_flight.first_entry().filter(|first| first.key().0 <= until) {
            let ((due, _), request) = first.remove_entry();
            self.pass_until(due);
            self.complete(request);
            if self.tape.chance(self.power_fails) {
                self.crash();
            }
        }
        self.pass_until(until);
    }

    fn complete(&mut self, request: Request) {
        let Request { number, key, opcode, offset, open, fate, lent, bytes, began } = request;
        let untouched = lent.gather() == bytes;
        if !untouched {
            let who = if opcode.is_write() { "write" } else { "read" };
            self.violations.push(format!(
                "the buffer of request {number}, a {who}, changed while the kernel had it: other code wrote to it"
            ));
        }
        let at = self.files.tick();
        let file = &mut self.files.files[open.file];
        let (result, hash) = match fate {
            Outcome::Fails(errno) => {
                if opcode.is_sync() {
                    file.give_up(began);
                }
                (-i64::from(errno), 0)
            }
            Outcome::Transfers(_) if opcode.is_sync() && mem::take(&mut file.clashed) => {
                file.give_up(began);
                (-i64::from(libc::EIO), 0)
            }
            Outcome::Transfers(_) if opcode.is_sync() => {
                file.sync(began);
                (0, 0)
            }
            Outcome::Transfers(most) if opcode.is_write() => {
                let offset = if open.access.append { file.len() } else { offset };
                file.write(at, offset, &bytes[..most]);
                (most as i64, 0)
            }
            Outcome::Transfers(most) => {
                let read = file.read(offset, most);
                // A buffer that changed may have another owner by now, so it is not written to.
                if untouched {
                    lent.scatter(&read);
                }
                (read.len() as i64, hash_of(&read))
            }
        };
        self.ring.push_back((Completion { key, result }, number));
        self.note(&Event::Completed { number, result, hash });
    }

    /// Simulates a power failure and restart. Unsynced data may or may not be on the disk. Requests
    /// in flight fail, and so does further use of open files.
    pub(crate) fn crash(&mut self) {
        self.power_fails = 0.0;
        // Relaxed: read on this thread.
        self.crashes.fetch_add(1, Ordering::Relaxed);
        let requests: Vec<_> = mem::take(&mut self.in_flight).into_values().collect();
        for request in &requests {
            // All or part of it may have reached the disk.
            if let (Outcome::Transfers(most), true) = (request.fate, request.opcode.is_write()) {
                let at = self.files.tick();
                let file = &mut self.files.files[request.open.file];
                let offset = if request.open.access.append { file.len() } else { request.offset };
                file.write(at, offset, &request.bytes[..most]);
            }
        }
        let damage = self.files.crash(&mut self.tape, self.settings.torn_writes);
        self.note(&Event::Crashed { damage, in_flight: requests.len() });
        for request in requests {
            self.complete(Request { fate: Outcome::Fails(libc::EIO), ..request });
        }
    }

    pub(crate) fn cancel(&mut self, key: u64) {
        let Some((&place, request)) = self.in_flight.iter().find(|(_, request)| request.key == key) else { return };
        let number = request.number;
        let stopped = self.goes_wrong(|faults| faults.cancelled);
        self.note(&Event::Cancelled { number, stopped });
        if stopped {
            let request = self.in_flight.remove(&place).expect("the request was found");
            let due = place.0.min(self.now() + EMPTY_POLL_TIME);
            self.in_flight.insert((due, number), Request { fate: Outcome::Fails(libc::ECANCELED), ..request });
        }
    }

    /// # Panics
    ///
    /// If the loop keeps looking at an empty ring without sleeping.
    pub(crate) fn peek(&mut self) -> Option<Completion> {
        if self.ring.is_empty() {
            self.looks += 1;
            // Panics only once: destructors that run during the unwinding may poll too.
            assert!(self.looks != MAX_LOOKS, "the loop polled an empty ring {MAX_LOOKS} times without sleeping");
            self.advance(self.now() + EMPTY_POLL_TIME);
        }
        self.ring.front().map(|&(completion, _)| completion)
    }

    pub(crate) fn commit(&mut self) {
        match self.ring.pop_front() {
            Some((_, number)) => self.note(&Event::Reaped { number }),
            None => self.violations.push("the cursor was moved past the last completion".into()),
        }
    }

    /// Sleeps. Returns whether anything could end the sleep.
    pub(crate) fn sleep(&mut self, timeout: Option<Duration>) -> bool {
        self.looks = 0;
        self.steps += 1;
        if !self.ring.is_empty() {
            return true;
        }
        let until = timeout.map(|timeout| self.now().saturating_add(timeout));
        let mut count = 1;
        if self.is_in_any_order() {
            count += self.tape.choose(self.in_flight.len().max(1) as u32) as usize;
        }
        let done = self.due_after(count);
        if done.is_some() && self.goes_wrong(|faults| faults.early) {
            self.advance(self.now() + EMPTY_POLL_TIME);
            return true;
        }
        let done = done.map(|due| match self.goes_wrong(|faults| faults.late) {
            true => due.saturating_add(LATE[self.tape.choose(3) as usize]),
            false => due,
        });
        let Some(target) = done.into_iter().chain(until).min() else { return false };
        self.advance(target);
        self.note(&Event::Slept);
        true
    }
}
