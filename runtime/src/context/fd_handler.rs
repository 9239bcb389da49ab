//! Fd handlers: functions that the loop calls when a descriptor is readable or writable (rule X4).
//!
//! Reported events are queued, and a nested poll continues where the outer iteration stopped. A
//! nested poll does not call a running handler again; if it sleeps, the running handler's
//! descriptor is masked first, else the loop would spin on a readiness that cannot be served.
//!
//! Sockets (`net::CoFd`) are watched edge-triggered. They have a listener instead of a handler: it
//! only records the edge and names the coroutines to wake, so it needs neither the queue nor the
//! mask.
//!
//! epoll is used for any number of descriptors: polling it takes 143 ns with 1 descriptor as with
//! 64, where `ppoll` takes 392 and 2349 (Linux 6.18, alternating runs on one CPU), and
//! `epoll_pwait2` has ppoll's finer timeout too. So there is no second mechanism to switch to.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;
use std::{mem, ptr};

use slab::Slab;

use crate::context::registration::{Entry, Kind, Started, State, Table};
use crate::context::{NOTIFY_TOKEN, SharedContext};
use crate::coroutine::CoroutineId;
use crate::scheduler::SharedScheduler;
use crate::sys::{Epoll, Ready, prefetch};
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

/// What an edge-triggered watch notifies instead of calling a handler.
pub(crate) trait EdgeListener: Send + Sync {
    /// Records epoll's events, and moves the coroutines that wait for them to `woken`. Called with
    /// the table of watches locked, so this runs no foreign code.
    fn report(&self, events: u32, woken: &mut Vec<CoroutineId>);

    /// Prefetches the memory that `report` uses.
    fn prefetch(&self);
}

/// How the events of a watch are served.
pub(crate) enum Mode {
    /// The handler is called while the descriptor is ready. The owner keeps the descriptor open.
    Level { _owner: Box<dyn Send + Sync> },
    /// Epoll reports each change once, to the listener. There is no handler, and the creator keeps
    /// the descriptor open.
    Edge(Arc<dyn EdgeListener>),
}

pub(crate) struct Watch {
    mode: Mode,
    /// The descriptor. Looked up once, since `as_fd` is user code, which must not run under the
    /// table's lock.
    fd: RawFd,
    interest: Interest,
    /// The descriptor is in the epoll set.
    registered: bool,
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
/// Set in the tokens of edge-triggered watches, which epoll returns, and in [`NOTIFY_TOKEN`].
/// [`Key::token`](crate::context::registration::Key::token) leaves it 0.
const EDGE: u64 = 1 << 63;

#[derive(Default)]
pub(crate) struct Queues {
    /// Tokens of level-triggered events that are reported but not served yet.
    ready: VecDeque<u64>,
    /// Edges that are reported but not passed on to their listeners yet.
    edges: Vec<Ready>,
    /// Empty; its memory is used again and again.
    woken: Vec<CoroutineId>,
    /// Number of watches with an interest: each watch for edges counts 1, each other one `LEVEL`.
    /// Most contexts have no watch.
    interested: u64,
}

impl Watch {
    /// Creates a watch without interest.
    fn new(fd: RawFd, mode: Mode) -> Watch {
        let interest = Interest::Disabled;
        Watch { mode, fd, interest, registered: false, masked: false, queued: false, reported: 0 }
    }

    fn is_edge_triggered(&self) -> bool {
        matches!(self.mode, Mode::Edge(_))
    }

    fn events(&self) -> u32 {
        self.interest.events() | if self.is_edge_triggered() { (libc::EPOLLET | libc::EPOLLPRI) as u32 } else { 0 }
    }

    /// Makes the epoll set agree with the entry. An entry without interest is removed from the set:
    /// with an empty event mask, epoll would still report a hang-up, repeatedly.
    fn update(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        let token = token | if self.is_edge_triggered() { EDGE } else { 0 };
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
        let counts = if self.is_edge_triggered() { 1 } else { LEVEL };
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

/// Returns the index in a token.
fn index_of(token: u64) -> usize {
    token as u32 as usize
}

impl State<Watch> {
    /// Returns the entry whose key has this token (`Key::token`).
    fn by_token(&mut self, token: u64) -> Option<&mut Entry<Watch>> {
        self.entries.get_mut(index_of(token)).filter(|entry| entry.key.token() == token)
    }

    /// Queues a reported event. A level-triggered event that an outer iteration has queued and not
    /// served is merged with it.
    fn report(&mut self, ready: Ready) {
        if ready.token & EDGE != 0 {
            return self.queues.edges.push(ready);
        }
        let Some(Entry { kind: watch, .. }) = self.by_token(ready.token) else { return };
        watch.reported |= ready.events;
        if !mem::replace(&mut watch.queued, true) {
            self.queues.ready.push_back(ready.token);
        }
    }

    /// Returns the listener of an edge-triggered watch, if the watch still exists.
    #[inline]
    fn listener(entries: &Slab<Entry<Watch>>, token: u64) -> Option<&dyn EdgeListener> {
        let entry = entries.get(index_of(token)).filter(|entry| entry.key.token() == token & !EDGE)?;
        match &entry.kind.mode {
            Mode::Edge(listener) => Some(&**listener),
            Mode::Level { .. } => None,
        }
    }

    /// Passes the queued edges on to their listeners. Returns whether there were any.
    ///
    /// Everything is prefetched a few edges in advance: with a thousand sockets, the cache has
    /// evicted most of it since the last edge.
    fn pass_edges_on(&mut self, scheduler: &SharedScheduler) -> bool {
        const ENTRY_AHEAD: usize = 8;
        const AHEAD: usize = 4;
        let State { entries, queues, .. } = self;
        let Queues { edges, woken, .. } = queues;
        for (i, &Ready { token, events }) in edges.iter().enumerate() {
            if let Some(entry) = edges.get(i + ENTRY_AHEAD).and_then(|later| entries.get(index_of(later.token))) {
                prefetch(ptr::from_ref(entry).cast(), size_of::<Entry<Watch>>());
            }
            if let Some(later) = edges.get(i + AHEAD).and_then(|later| Self::listener(entries, later.token)) {
                later.prefetch();
            }
            if let Some(listener) = Self::listener(entries, token) {
                let _span = scheduler.span(Span::Watch);
                listener.report(events, woken);
            }
        }
        for (i, &id) in woken.iter().enumerate() {
            if let Some(later) = woken.get(i + AHEAD) {
                later.block.prefetch();
            }
            scheduler.wake_later(id);
        }
        woken.clear();
        let progress = !edges.is_empty();
        edges.clear();
        progress
    }

    fn start_next(&mut self) -> Option<(Started<u32>, u32)> {
        while let Some(token) = self.queues.ready.pop_front() {
            let Some(Entry { key, kind: watch, .. }) = self.by_token(token) else { continue };
            let key = *key;
            watch.queued = false;
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
    /// Polls epoll without waiting, and queues the events. `notified` is called if the loop was
    /// notified.
    pub(crate) fn poll(&self, epoll: &Epoll, notified: impl Fn()) -> io::Result<usize> {
        // Locked once for all events, and only if there are any.
        let mut state = None;
        epoll.wait(Some(Duration::ZERO), |ready| match ready.token {
            NOTIFY_TOKEN => notified(),
            _ => state.get_or_insert_with(|| self.lock()).report(ready),
        })
    }

    /// Sleeps in epoll, and queues the edges among the events that ended the sleep, which are not
    /// reported again. Level-triggered events from a sleep are discarded, since another thread may
    /// have served them by the time the context's lock is reacquired.
    pub(crate) fn sleep(&self, epoll: &Epoll, timeout: Option<Duration>) -> io::Result<usize> {
        let mut state = None;
        epoll.wait(timeout, |ready| {
            if ready.token & EDGE != 0 && ready.token != NOTIFY_TOKEN {
                state.get_or_insert_with(|| self.lock()).report(ready);
            }
        })
    }

    /// Returns whether a sleep's events can replace an iteration's poll: if all watches are
    /// edge-triggered. A stale edge is harmless.
    pub(crate) fn sleep_asks(&self) -> bool {
        self.pending() < LEVEL
    }

    /// Returns whether a reported event has not been served. False if no watch has an interest: no
    /// iteration then reads the queues, which may still contain removed watches.
    pub(crate) fn has_ready(&self) -> bool {
        !self.is_empty() && {
            let state = self.lock();
            !(state.queues.ready.is_empty() && state.queues.edges.is_empty())
        }
    }

    /// Passes reported edges on to their listeners, and runs the handlers of the other reported
    /// events. Returns whether there were any.
    ///
    /// # Control
    ///
    /// May enter and poll, through the handlers.
    pub(crate) fn run_ready(&self, shared: &Arc<SharedContext>) -> bool {
        let mut state = self.lock();
        let progress = state.pass_edges_on(&shared.scheduler);
        self.run(state, shared, State::start_next) || progress
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
