//! Fd handlers: functions that the loop calls when a descriptor is readable or writable (rule X4).
//!
//! Reported events are queued, and a nested poll continues where the outer iteration stopped. A
//! nested poll does not call a running handler again; if it sleeps, the running handler's
//! descriptor is masked first, else the loop would spin on a readiness that cannot be served.
//!
//! epoll is used for any number of descriptors: polling it takes 143 ns with 1 descriptor as with
//! 64, where `ppoll` takes 392 and 2349 (Linux 6.18, alternating runs on one CPU), and
//! `epoll_pwait2` has ppoll's finer timeout too. So there is no second mechanism to switch to.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::context::SharedContext;
use crate::context::registration::{Entry, Kind, Started, State, Table};
use crate::sys::{Epoll, Ready};
use crate::trace::Span;

mod handle;

pub use handle::{FdHandler, FdHandlerInfo};

/// The condition that a watch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// The descriptor is readable.
    Read,
    /// The descriptor is writable.
    Write,
    /// Either.
    ReadWrite,
    /// Nothing, for the time being; not even a hang-up is reported.
    Disabled,
}

impl Interest {
    fn events(self) -> u32 {
        let events = match self {
            Interest::Read => libc::EPOLLIN | libc::EPOLLRDHUP,
            Interest::Write => libc::EPOLLOUT,
            Interest::ReadWrite => libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLOUT,
            Interest::Disabled => 0,
        };
        events as u32
    }
}

/// The operations that a descriptor is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// A read does not block: there is data, end of file, or an error.
    pub readable: bool,
    /// A write does not block: there is space, or an error.
    pub writable: bool,
}

impl Readiness {
    pub(crate) fn of(events: u32) -> Readiness {
        let has = |bits: libc::c_int| events & bits as u32 != 0;
        // A read or write will report the error or hang-up.
        let broken = has(libc::EPOLLERR | libc::EPOLLHUP);
        Readiness { readable: broken || has(libc::EPOLLIN | libc::EPOLLRDHUP), writable: broken || has(libc::EPOLLOUT) }
    }
}

pub(crate) struct Watch {
    /// Keeps the descriptor open.
    _owner: Box<dyn Send + Sync>,
    /// The descriptor. Looked up once, since `as_fd` is user code, which must not run under the
    /// table's lock.
    fd: RawFd,
    interest: Interest,
    /// The descriptor is in the epoll set.
    registered: bool,
    /// The watch is edge-triggered: epoll reports each change once, instead of a lasting condition.
    edges: bool,
    /// Masked because a nested poll slept while the handler ran.
    masked: bool,
    /// The token is in the queue, for the events in `reported`.
    queued: bool,
    reported: u32,
}

/// All watches of a context.
pub(crate) type Watches = Table<Watch>;

/// The contribution of a level-triggered watch to [`Queues::interested`].
const LEVEL: u64 = 1 << 32;

#[derive(Default)]
pub(crate) struct Queues {
    /// Tokens of events that are reported but not served yet.
    ready: VecDeque<u64>,
    /// Number of watches with an interest: each watch for edges counts 1, each other one `LEVEL`.
    /// Most contexts have no watch.
    interested: u64,
}

impl Watch {
    fn events(&self) -> u32 {
        self.interest.events() | if self.edges { (libc::EPOLLET | libc::EPOLLPRI) as u32 } else { 0 }
    }

    /// Makes the epoll set agree with the entry. An entry without interest is removed from the set:
    /// with an empty event mask, epoll would still report a hang-up, repeatedly.
    fn update(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        let wanted = self.interest != Interest::Disabled && !self.masked;
        match (self.registered, wanted) {
            (false, false) => {}
            (false, true) => epoll.add(self.fd, self.events(), token)?,
            (true, true) => epoll.modify(self.fd, self.events(), token)?,
            (true, false) => epoll.remove(self.fd)?,
        }
        self.registered = wanted;
        Ok(())
    }

    /// Changes the interest.
    fn set(&mut self, interest: Interest, token: u64, queues: &mut Queues, epoll: &Epoll) -> io::Result<()> {
        let before = mem::replace(&mut self.interest, interest);
        if let Err(error) = self.update(epoll, token) {
            self.interest = before;
            return Err(error);
        }
        let counts = if self.edges { 1 } else { LEVEL };
        queues.interested -= if before == Interest::Disabled { 0 } else { counts };
        queues.interested += if interest == Interest::Disabled { 0 } else { counts };
        if interest == Interest::Disabled {
            // The reported events may be stale when the interest returns.
            self.reported = 0;
        }
        Ok(())
    }
}

impl Kind for Watch {
    /// The events that epoll reported.
    type Event = u32;
    type Queues = Queues;
    const CREATION: &'static str = "watch a descriptor";
    const SPAN: Span = Span::Watch;

    fn table(shared: &SharedContext) -> &Watches {
        &shared.watches
    }

    fn pending(state: &State<Self>) -> u64 {
        state.queues.interested
    }

    fn cancel(entry: &mut Entry<Self>, queues: &mut Queues, shared: &SharedContext) {
        if mem::take(&mut entry.kind.registered) {
            let _ = shared.epoll.remove(entry.kind.fd);
        }
        let set = entry.kind.set(Interest::Disabled, 0, queues, &shared.epoll);
        debug_assert!(set.is_ok(), "not registered, so no system call is made");
    }

    fn requeue(state: &mut State<Self>, index: usize, shared: &SharedContext) -> bool {
        let Entry { key, kind: watch, .. } = &mut state.entries[index];
        if mem::take(&mut watch.masked) {
            let restored = watch.update(&shared.epoll, key.token());
            debug_assert!(restored.is_ok(), "the entry keeps the descriptor open");
        }
        watch.reported != 0 && !mem::replace(&mut watch.queued, true) && {
            state.queues.ready.push_back(key.token());
            true
        }
    }
}

impl State<Watch> {
    /// Returns the entry whose key has this token (`Key::token`).
    fn by_token(&mut self, token: u64) -> Option<&mut Entry<Watch>> {
        self.entries.get_mut((token & 0xffff_ffff) as usize).filter(|entry| entry.key.token() == token)
    }

    /// Queues a reported event. An event that an outer iteration has queued and not served is
    /// merged with it.
    fn report(&mut self, ready: Ready, only_edges: bool) {
        let Some(Entry { kind: watch, .. }) = self.by_token(ready.token) else { return };
        if only_edges && !watch.edges {
            return;
        }
        watch.reported |= ready.events;
        if !mem::replace(&mut watch.queued, true) {
            self.queues.ready.push_back(ready.token);
        }
    }

    fn start_next(&mut self) -> Option<(Started<u32>, u32)> {
        while let Some(token) = self.queues.ready.pop_front() {
            let Some(Entry { key, kind: watch, is_running, .. }) = self.by_token(token) else { continue };
            let key = *key;
            watch.queued = false;
            if watch.edges && *is_running {
                // An edge is reported once: keep it until the handler has returned.
                continue;
            }
            // The interest may have changed since the report; errors always count.
            let wanted = watch.events() | (libc::EPOLLERR | libc::EPOLLHUP) as u32;
            let events = mem::take(&mut watch.reported) & wanted;
            if watch.interest != Interest::Disabled && events != 0 {
                if let Some(started) = self.start(key) {
                    return Some((started, events));
                }
            }
        }
        None
    }
}

impl Watches {
    /// Queues an event that an iteration's poll of epoll reported.
    pub(crate) fn report(&self, ready: Ready) {
        self.lock().report(ready, false);
    }

    /// Returns whether a sleep's events can replace an iteration's poll: if all watches are
    /// edge-triggered. An edge is reported once, and a stale edge is harmless. Level-triggered
    /// events from a sleep are discarded, since another thread may have served them by the time the
    /// lock is reacquired.
    pub(crate) fn sleep_asks(&self) -> bool {
        self.pending() < LEVEL
    }

    /// As `report`, for the events that ended a sleep: queues edges only, which are not reported
    /// again.
    pub(crate) fn report_edge(&self, ready: Ready) {
        self.lock().report(ready, true);
    }

    /// Returns whether a reported event has not been served. False if no watch has an interest: no
    /// iteration then reads the queue, which may still contain removed watches.
    pub(crate) fn has_ready(&self) -> bool {
        !self.is_empty() && !self.lock().queues.ready.is_empty()
    }

    /// Runs the handlers of the reported events. Returns whether any handler ran.
    ///
    /// # Control
    ///
    /// May enter and poll, through the handlers.
    pub(crate) fn run_ready(&self, shared: &Arc<SharedContext>) -> bool {
        self.run(self.lock(), shared, State::start_next)
    }

    /// Removes the descriptors whose handlers are running from the set, before a nested poll
    /// sleeps.
    pub(crate) fn mask_running(&self, epoll: &Epoll) {
        if self.is_empty() {
            return;
        }
        let mut state = self.lock();
        if state.running == 0 {
            return;
        }
        for (_, entry) in state.entries.iter_mut().filter(|(_, entry)| entry.is_running && entry.kind.registered) {
            entry.kind.masked = true;
            // A failure, which is not expected, only makes the nested poll return without
            // sleeping.
            let _ = entry.kind.update(epoll, 0);
        }
    }

    /// Describes the watches, for a dump.
    pub(crate) fn description(&self) -> String {
        self.describe(|state| {
            let one = |(_, entry): (usize, &Entry<Watch>)| {
                let running = if entry.is_running { ", handler running" } else { "" };
                format!("descriptor {} for {:?}{running}", entry.kind.fd, entry.kind.interest)
            };
            let all: Vec<_> = state.entries.iter().map(one).collect();
            if all.is_empty() { "none".into() } else { all.join("; ") }
        })
    }
}
