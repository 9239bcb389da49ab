//! The machine: requests in flight, the ring, the disk, the clock, and the tape that decides.
//!
//! A request's life, top to bottom:
//!
//! | state     | where       | left by                                 |
//! |-----------|-------------|-----------------------------------------|
//! | offered   | the engine  | `submit`, which takes it, or refuses it |
//! | in flight | `in_flight` | its time; a crash                       |
//! | done      | the ring    | `commit`                                |
//!
//! What a request will come to is decided when it is taken, what it does to the disk when it
//! completes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coralio_runtime::VirtualClock;

use super::decide::Fate;
use super::faults::{Fault, Faults};
use super::names::{FileSystem, Open};
use super::ring::Ring;
use super::tape::Tape;
use super::trace::{Event, Trace, hash_of};
use super::{Entry, SLACK, Settings};
use crate::kernel::lent::Lent;
use crate::kernel::{Completion, Opcode, Operation};

/// What a look at an empty ring takes: so a loop that never sleeps sees time pass.
const LOOK: Duration = Duration::from_nanos(100);
/// How much later than the first completion a sleep ends, if it does.
const LATE: [Duration; 3] = [Duration::from_micros(20), Duration::from_millis(1), Duration::from_millis(50)];
/// A second of doing nothing else.
const MOST_LOOKS: u32 = 10_000_000;
/// Bytes of a page of the page cache.
const PAGE: u64 = 4096;
/// What is in a buffer while the kernel reads into it.
const SCRIBBLE: u8 = 0xdb;

pub(super) struct Request {
    number: u64,
    key: u64,
    opcode: Opcode,
    offset: u64,
    open: Open,
    fate: Fate,
    lent: Lent,
    /// What was in the buffer when this was taken, and has to be there until it is done.
    bytes: Vec<u8>,
    /// How far the disk was when this was taken.
    began: u64,
}

pub(crate) struct Machine {
    pub(crate) settings: Settings,
    pub(crate) faults: Faults,
    pub(crate) tape: Tape,
    pub(crate) trace: Trace,
    pub(crate) files: FileSystem,
    pub(crate) ring: Ring,
    pub(crate) script: VecDeque<Fault>,
    /// What must not be, and was.
    pub(crate) violations: Vec<String>,
    /// How many there were. Shared with who wants to know without the lock.
    pub(crate) crashes: Arc<AtomicU32>,
    /// The power goes at this rate, at each request that is taken or completes.
    pub(crate) power_fails: f64,
    pub(super) faults_so_far: u32,
    /// The context's too.
    clock: VirtualClock,
    pub(super) in_flight: BTreeMap<(Duration, u64), Request>,
    taken: u64,
    /// Requests taken, submits refused, and sleeps.
    steps: u64,
    /// Of `steps`: beyond these the run counts as endless.
    most_steps: u64,
    /// At an empty ring, since the last sleep.
    looks: u32,
    pub(super) refused_in_row: u32,
    /// How many changes there were: the disk's own time.
    at: u64,
}

impl Machine {
    pub(crate) fn new(settings: Settings, tape: Tape, tells: bool) -> Machine {
        Machine {
            faults: settings.faults.clone(),
            tape,
            trace: Trace::new(tells),
            files: FileSystem::new(settings.sector),
            ring: Ring::new(settings.depth, settings.bad_ring),
            script: VecDeque::new(),
            violations: Vec::new(),
            crashes: Arc::default(),
            power_fails: 0.0,
            faults_so_far: 0,
            clock: VirtualClock::new(),
            in_flight: BTreeMap::new(),
            taken: 0,
            steps: 0,
            most_steps: settings.most_steps,
            looks: 0,
            refused_in_row: 0,
            at: 0,
            settings,
        }
    }

    /// Time since the run began.
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

    /// The time of a change to the disk.
    pub(crate) fn tick(&mut self) -> u64 {
        self.at += 1;
        self.at
    }

    /// From now on nothing goes wrong.
    pub(crate) fn calm(&mut self) {
        self.faults = Faults::none();
        self.script.clear();
        self.power_fails = 0.0;
    }

    /// See [`SimKernel::is_overrun`](super::SimKernel::is_overrun).
    pub(crate) fn is_overrun(&mut self, slack: u64) -> bool {
        let overrun = self.steps > self.most_steps.saturating_add(slack);
        if overrun {
            self.most_steps = self.steps + SLACK;
        }
        overrun
    }

    /// Whether the run has ever made more steps than it may.
    pub(crate) fn was_overrun(&self) -> bool {
        self.most_steps != self.settings.most_steps
    }

    fn note(&mut self, event: &Event) {
        self.trace.add(self.clock.elapsed(), event);
    }

    /// # Safety
    ///
    /// As [`Kernel::submit`](crate::kernel::Kernel::submit).
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
            // SAFETY: the caller's promise: this one is counted.
            unsafe { self.take(entry) };
        }
        if self.is_in_any_order() {
            let done = self.tape.choose(self.in_flight.len() as u32 + 1);
            self.due_after(done as usize).into_iter().for_each(|due| self.advance(due));
        }
        Ok(taken)
    }

    /// How many of them are taken; or why the first is not.
    fn admit(&mut self, entries: &[Entry]) -> Result<usize, i32> {
        let room = self.settings.depth as usize - self.in_flight.len() - self.ring.len() as usize;
        if entries.len() > room {
            self.violations.push(format!("{} requests offered where the depth leaves room for {room}", entries.len()));
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
        // A bad one is refused when it is the first, and ends the batch where it stands.
        match entries[..most].iter().map(|entry| self.check(&entry.operation)).position(|checked| checked.is_err()) {
            Some(0) => self.check(&entries[0].operation).map(|()| 0),
            Some(good) => Ok(good),
            None => Ok(most),
        }
    }

    /// What `io_submit` looks at before it takes a request.
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
    /// As [`Lent::of`].
    unsafe fn take(&mut self, entry: &Entry) {
        if self.tape.chance(self.power_fails) {
            self.crash();
        }
        let Entry { operation, key } = *entry;
        let Operation { opcode, offset, .. } = operation;
        // SAFETY: the caller's promise: `complete` is the last to use it.
        let lent = unsafe { Lent::of(&operation) };
        let open = self.files.opened(operation.fd).expect("it was checked");
        let number = self.taken;
        self.taken += 1;
        self.steps += 1;
        if !opcode.is_write() {
            lent.scatter(&vec![SCRIBBLE; lent.len()]);
        }
        let bytes = lent.gather();
        self.note(&Event::Taken { number, opcode, file: open.file, offset, len: lent.len(), hash: hash_of(&bytes) });
        let (fate, time) = self.decide(opcode, offset, &open, &lent);
        if opcode.is_write() && self.clashes(offset, lent.len(), &open) {
            self.files.files[open.file].clashed = true;
        }
        let due = self.now() + time;
        let request = Request { number, key, opcode, offset, open, fate, lent, bytes, began: self.at };
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

    /// When so many of those in flight will have completed.
    fn due_after(&self, count: usize) -> Option<Duration> {
        self.in_flight.keys().nth(count.checked_sub(1)?).map(|&(due, _)| due)
    }

    /// Lets time pass, and what is due by then complete.
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
                "the buffer of request {number}, a {who}, changed while the kernel had it: somebody took it for theirs"
            ));
        }
        let at = self.tick();
        let file = &mut self.files.files[open.file];
        let (result, hash) = match fate {
            Fate::Fails(errno) => {
                if opcode.is_sync() {
                    file.give_up(began);
                }
                (-i64::from(errno), 0)
            }
            Fate::Transfers(_) if opcode.is_sync() && mem::take(&mut file.clashed) => {
                file.give_up(began);
                (-i64::from(libc::EIO), 0)
            }
            Fate::Transfers(_) if opcode.is_sync() => {
                file.sync(began);
                (0, 0)
            }
            Fate::Transfers(most) if opcode.is_write() => {
                file.write(at, offset, &bytes[..most]);
                (most as i64, 0)
            }
            Fate::Transfers(most) => {
                let read = file.read(offset, most);
                // What is somebody else's by now is not written to.
                if untouched {
                    lent.scatter(&read);
                }
                (read.len() as i64, hash_of(&read))
            }
        };
        self.ring.push(Completion { key, result }, number);
        self.note(&Event::Completed { number, result, hash });
    }

    /// The power goes, and comes back. What was not synced is on the disk, or not; what was in
    /// flight fails, and so does whatever still uses a file that is open.
    pub(crate) fn crash(&mut self) {
        self.power_fails = 0.0;
        // Relaxed: whoever reads it is on this thread.
        self.crashes.fetch_add(1, Ordering::Relaxed);
        let requests: Vec<_> = mem::take(&mut self.in_flight).into_values().collect();
        for request in &requests {
            // It may have got to the disk, or some of it.
            if let Fate::Transfers(most) = request.fate
                && request.opcode.is_write()
            {
                let at = self.tick();
                self.files.files[request.open.file].write(at, request.offset, &request.bytes[..most]);
            }
        }
        let damage = self.files.crash(&mut self.tape, self.settings.tears);
        self.note(&Event::Crashed { damage, in_flight: requests.len() });
        for request in requests {
            self.complete(Request { fate: Fate::Fails(libc::EIO), ..request });
        }
    }

    pub(crate) fn cancel(&mut self, key: u64) {
        let Some((&place, request)) = self.in_flight.iter().find(|(_, request)| request.key == key) else { return };
        let number = request.number;
        let stopped = self.goes_wrong(|faults| faults.cancelled);
        self.note(&Event::Cancelled { number, stopped });
        if stopped {
            let request = self.in_flight.remove(&place).expect("it was found");
            let due = place.0.min(self.now() + LOOK);
            self.in_flight.insert((due, number), Request { fate: Fate::Fails(libc::ECANCELED), ..request });
        }
    }

    /// # Panics
    ///
    /// If the loop looks again and again without a sleep between.
    pub(crate) fn peek(&mut self) -> Option<Completion> {
        if self.ring.is_empty() {
            self.looks += 1;
            // Once: whoever unwinds may have to look too.
            assert!(
                self.looks != MOST_LOOKS,
                "the loop has looked at an empty ring {MOST_LOOKS} times without a sleep"
            );
            self.advance(self.now() + LOOK);
        }
        self.ring.front().map(|(completion, _)| completion)
    }

    pub(crate) fn commit(&mut self) {
        match self.ring.pop() {
            Some((_, number)) => self.note(&Event::Reaped { number }),
            None => self.violations.push("the cursor was moved past a completion that is not there".into()),
        }
    }

    /// Sleeps. Returns whether anything could end it.
    pub(crate) fn sleep(&mut self, min: u32, timeout: Option<Duration>) -> bool {
        self.looks = 0;
        self.steps += 1;
        if min == 0 || !self.ring.is_empty() {
            return true;
        }
        let until = timeout.map(|timeout| self.now().saturating_add(timeout));
        let most = self.in_flight.len();
        let mut count = (min as usize).min(most);
        if self.is_in_any_order() {
            count += self.tape.choose((most - count) as u32 + 1) as usize;
        }
        let done = self.due_after(count);
        if done.is_some() && self.goes_wrong(|faults| faults.early) {
            self.advance(self.now() + LOOK);
            return true;
        }
        let done = done.map(|due| match self.goes_wrong(|faults| faults.late) {
            true => due + LATE[self.tape.choose(3) as usize],
            false => due,
        });
        let Some(target) = done.into_iter().chain(until).min() else { return false };
        self.advance(target);
        self.note(&Event::Slept);
        true
    }
}
