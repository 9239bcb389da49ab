//! Fd handlers: functions that the loop calls when a descriptor is readable or writable (rule X4).
//!
//! Built like the bottom halves: a table under one small lock that is never held while a handler
//! runs. Reported events are queued, and a nested poll continues where the outer iteration stopped.
//! A nested poll does not call a running handler again; if it sleeps, the running handler's
//! descriptor is masked first, else the loop would spin on a readiness that cannot be served.
//!
//! epoll is used for any number of descriptors: polling it takes 143 ns with 1 descriptor as with
//! 64, where `ppoll` takes 392 and 2349 (Linux 6.18, alternating runs on one CPU), and
//! `epoll_pwait2` has ppoll's finer timeout too. So there is no second mechanism to switch to.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::context::{Key, Registry, SharedContext, call};
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

/// Called with the events that epoll reported, and the parts of a handle to the watch.
type Handler = Box<dyn FnMut(u32, &Arc<SharedContext>, Key) + Send>;

struct Entry {
    /// Keeps the descriptor open.
    _owner: Box<dyn Send + Sync>,
    /// The descriptor. Looked up once, since `as_fd` is user code, which must not run under the
    /// table's lock.
    fd: RawFd,
    interest: Interest,
    /// The descriptor is in the epoll set.
    registered: bool,
    /// Edge-triggered: reported once per change, not for as long as the condition lasts.
    edges: bool,
    /// `None` while the handler runs.
    handler: Option<Handler>,
    /// Masked because a nested poll slept while the handler ran.
    masked: bool,
    /// The owner removed the watch while its handler ran.
    removed: bool,
    /// The token is in the queue, for the events in `reported`.
    queued: bool,
    reported: u32,
    created_at: &'static Location<'static>,
}

impl Entry {
    fn events(&self) -> u32 {
        self.interest.events() | if self.edges { libc::EPOLLET as u32 } else { 0 }
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
}

#[derive(Default)]
struct Table {
    entries: Registry<Entry>,
    /// Tokens of events that are reported but not served yet.
    ready: VecDeque<u64>,
    /// Number of running handlers.
    running: usize,
}

/// All watches of a context.
#[derive(Default)]
pub(crate) struct Watches {
    table: Mutex<Table>,
    /// Number of watches with an interest, readable without the lock: most contexts have none.
    count: AtomicUsize,
    /// The level-triggered ones among them.
    levels: AtomicUsize,
    /// The last sleep has queued all pending events.
    asked: AtomicBool,
}

impl Table {
    fn entry(&mut self, token: u64) -> Option<&mut Entry> {
        self.entries.by_token(token).map(|(_, entry)| entry)
    }
}

impl Watches {
    /// Returns whether there are no watches, so that polling epoll is unnecessary.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // Relaxed: adding a watch notifies the loop, which checks again before it sleeps.
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Updates the counters for a change of interest. Under the lock.
    fn recount(&self, edges: bool, before: Interest, after: Interest) {
        let counts = if edges { &[&self.count][..] } else { &[&self.count, &self.levels][..] };
        for count in counts {
            match (before == Interest::Disabled, after == Interest::Disabled) {
                (true, false) => _ = count.fetch_add(1, Ordering::Relaxed),
                (false, true) => _ = count.fetch_sub(1, Ordering::Relaxed),
                _ => {}
            }
        }
    }

    /// Queues a reported event. An event that an outer iteration has queued and not served is
    /// merged with it.
    pub(crate) fn report(&self, ready: Ready) {
        let mut table = self.table.lock();
        let Some(entry) = table.entry(ready.token) else { return };
        entry.reported |= ready.events;
        if !std::mem::replace(&mut entry.queued, true) {
            table.ready.push_back(ready.token);
        }
    }

    /// Returns whether a sleep learns everything that an iteration's poll would: all watches are
    /// edge-triggered. Edges are reported once, and a stale one is harmless. Level-triggered events
    /// from a sleep are discarded, since another thread may have served them by the time the lock
    /// is reacquired.
    pub(crate) fn sleep_asks(&self) -> bool {
        // Relaxed: as in `is_empty`.
        self.levels.load(Ordering::Relaxed) == 0
    }

    /// As `report`, for the events that ended a sleep: queues edges only, which are not reported
    /// again.
    pub(crate) fn report_edge(&self, ready: Ready) {
        let is_edge = self.table.lock().entry(ready.token).is_some_and(|entry| entry.edges);
        if is_edge {
            self.report(ready);
        }
    }

    /// Records that a sleep has polled epoll and queued its events.
    pub(crate) fn note_asked(&self) {
        self.asked.store(self.sleep_asks(), Ordering::Relaxed);
    }

    /// Returns whether the last sleep has polled already, and clears the flag.
    pub(crate) fn take_asked(&self) -> bool {
        // Relaxed: accessed under the context's lock, except for the sleeper's own store before it
        // takes the lock.
        self.asked.load(Ordering::Relaxed) && self.asked.swap(false, Ordering::Relaxed)
    }

    /// Returns whether a reported event has not been served. False if no watch has an interest: no
    /// iteration then reads the queue, which may still contain removed watches.
    pub(crate) fn has_ready(&self) -> bool {
        !self.is_empty() && !self.table.lock().ready.is_empty()
    }

    /// Runs the handlers of the reported events. Returns whether any handler ran.
    ///
    /// # Control
    ///
    /// May enter and poll, through the handlers.
    pub(crate) fn run(&self, shared: &Arc<SharedContext>) -> bool {
        let mut progress = false;
        loop {
            let Some((key, events, handler)) = self.start_next() else { return progress };
            progress = true;
            let put_back = |handler| drop(self.finish(shared, key, handler));
            let run = |handler: &mut Handler| {
                let _span = shared.scheduler.span(Span::Watch);
                handler(events, shared, key);
            };
            put_back(call(handler, run, put_back));
        }
    }

    fn start_next(&self) -> Option<(Key, u32, Handler)> {
        let mut table = self.table.lock();
        let Table { entries, ready, running } = &mut *table;
        while let Some(token) = ready.pop_front() {
            let Some((key, entry)) = entries.by_token(token) else { continue };
            entry.queued = false;
            if entry.edges && entry.handler.is_none() {
                // An edge is reported once: keep it until the handler has returned.
                continue;
            }
            let events = std::mem::take(&mut entry.reported);
            // The interest may have changed since the report; errors always count.
            let wanted = entry.interest.events() | (libc::EPOLLERR | libc::EPOLLHUP) as u32;
            if entry.interest != Interest::Disabled && events & wanted != 0 {
                if let Some(handler) = entry.handler.take() {
                    *running += 1;
                    return Some((key, events & wanted, handler));
                }
            }
        }
        None
    }

    /// Puts the handler back after it has returned. Returns the values to drop outside the lock.
    fn finish(&self, shared: &SharedContext, key: Key, handler: Handler) -> Option<(Handler, Option<Entry>)> {
        let mut table = self.table.lock();
        let Table { entries, ready, running } = &mut *table;
        *running -= 1;
        // None: the context was closed meanwhile.
        let Some(entry) = entries.get_mut(key) else { return Some((handler, None)) };
        if entry.removed {
            return Some((handler, entries.remove(key)));
        }
        entry.handler = Some(handler);
        if std::mem::take(&mut entry.masked) {
            let restored = entry.update(&shared.epoll, key.token());
            debug_assert!(restored.is_ok(), "the entry keeps the descriptor open");
        }
        if entry.reported != 0 && !std::mem::replace(&mut entry.queued, true) {
            ready.push_back(key.token());
            shared.scheduler.wake_loop_of_another();
        }
        None
    }

    /// Removes the descriptors whose handlers are running from the set, before a nested poll
    /// sleeps.
    pub(crate) fn mask_running(&self, epoll: &Epoll) {
        if self.is_empty() {
            return;
        }
        let mut table = self.table.lock();
        if table.running == 0 {
            return;
        }
        for entry in table.entries.iter_mut() {
            if entry.handler.is_none() && entry.registered {
                entry.masked = true;
                // A failure, which is not expected, only makes the nested poll return without
                // sleeping.
                let _ = entry.update(epoll, 0);
            }
        }
    }

    /// Describes the watches, as
    /// [`BottomHalves::describe`](crate::context::bottom_half::BottomHalves::describe) does.
    pub(crate) fn describe(&self) -> Option<String> {
        let table = self.table.try_lock()?;
        let one = |(_, entry): (Key, &Entry)| {
            let running = if entry.handler.is_none() { ", handler running" } else { "" };
            format!("descriptor {} for {:?}{running}", entry.fd, entry.interest)
        };
        let all: Vec<_> = table.entries.iter().map(one).collect();
        Some(if all.is_empty() { "none".into() } else { all.join("; ") })
    }

    /// Discards the reported events, unless another thread holds the table. Drops nothing.
    pub(crate) fn forget_ready(&self) {
        if let Some(mut table) = self.table.try_lock() {
            table.ready.clear();
        }
    }

    /// Removes all watches, and rejects new ones. Returns the values to drop outside the lock.
    pub(crate) fn close(&self, epoll: &Epoll) -> impl Iterator<Item: Any> + use<> {
        let mut table = self.table.lock();
        self.count.store(0, Ordering::Relaxed);
        self.levels.store(0, Ordering::Relaxed);
        let all = table.entries.close();
        for entry in all.iter().filter(|entry| entry.registered) {
            let _ = epoll.remove(entry.fd);
        }
        all.into_iter()
            .flat_map(|Entry { _owner: owner, handler, .. }| [Box::new(owner) as Box<dyn Any>, Box::new(handler)])
    }
}
