//! Watches: handlers that the loop calls when a descriptor can be read or written (rule X4).
//!
//! Built like the bottom halves: a table under one small lock that is never held while a handler runs; what epoll
//! reported is queued, and a nested poll goes on where the outer round stands. A handler that runs is not called again
//! by a nested poll; if that poll wants to sleep, the running handler's descriptor is masked first, else the loop would
//! spin on a readiness that nobody can serve.
//!
//! The set is epoll's whatever the number: to ask it takes 143 ns with 1 descriptor as with 64, `ppoll` takes 392 and 2349
//! (Linux 6.18, in turns on one CPU), and its finer timeout `epoll_pwait2` has too. So there is nothing to switch between.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use slab::Slab;

use crate::os_error::explained;
use crate::sys::{Epoll, Ready};
use crate::trace::Span;

use super::AioContext;
use super::shared::Shared;

/// What a watch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// That it can be read.
    Read,
    /// That it can be written.
    Write,
    /// Either.
    Both,
    /// Nothing, for the time being.
    None,
}

impl Interest {
    fn events(self) -> u32 {
        let events = match self {
            Interest::Read => libc::EPOLLIN | libc::EPOLLRDHUP,
            Interest::Write => libc::EPOLLOUT,
            Interest::Both => libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLOUT,
            Interest::None => 0,
        };
        events as u32
    }
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// A read will not block: there is data, the end, or an error.
    pub readable: bool,
    /// A write will not block: there is room, or an error.
    pub writable: bool,
}

impl Readiness {
    pub(super) fn of(events: u32) -> Readiness {
        let has = |bits: libc::c_int| events & bits as u32 != 0;
        // An error or a hang-up is found out by reading or writing.
        let broken = has(libc::EPOLLERR | libc::EPOLLHUP);
        Readiness { readable: broken || has(libc::EPOLLIN | libc::EPOLLRDHUP), writable: broken || has(libc::EPOLLOUT) }
    }
}

/// Called with what epoll reported.
type Handler = Box<dyn FnMut(u32) + Send>;

struct Entry {
    fd: Box<dyn AsFdSend>,
    interest: Interest,
    /// Reported once for each change, not for as long as it lasts.
    edges: bool,
    /// `None` while it runs.
    handler: Option<Handler>,
    /// Masked because a nested poll wanted to sleep while it ran.
    masked: bool,
    /// Removed by its owner while it ran.
    removed: bool,
    /// Its token is in the queue, for these events.
    queued: bool,
    reported: u32,
    serial: u64,
}

impl Entry {
    fn events(&self) -> u32 {
        self.interest.events() | if self.edges { libc::EPOLLET as u32 } else { 0 }
    }
}

/// Whatever owns the descriptor, kept alive by the watch.
trait AsFdSend: AsFd + Send + Sync {}
impl<T: AsFd + Send + Sync> AsFdSend for T {}

#[derive(Default)]
struct Table {
    entries: Slab<Entry>,
    /// Reported and not served yet.
    ready: VecDeque<u64>,
    /// Handlers that run.
    running: usize,
    serials: u64,
}

/// All watches of a context.
#[derive(Default)]
pub(crate) struct Watches {
    table: Mutex<Table>,
    /// Their number, to be read without the lock: most contexts have none.
    count: AtomicUsize,
    /// Those among them that are reported for as long as they are ready.
    levels: AtomicUsize,
    /// The sleep that has ended has queued all that there was.
    asked: AtomicBool,
}

/// A token tells the watches that had the same key one after the other apart.
fn token(key: usize, serial: u64) -> u64 {
    (serial & 0x7fff_ffff) << 32 | key as u64
}

impl Table {
    fn entry(&mut self, token: u64) -> Option<(usize, &mut Entry)> {
        let key = (token & 0xffff_ffff) as usize;
        let entry = self.entries.get_mut(key)?;
        (self::token(key, entry.serial) == token).then_some((key, entry))
    }
}

impl Watches {
    /// Whether there are none, so that nobody need ask the kernel.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // Relaxed: who adds one notifies the loop, which looks again before it sleeps.
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Queues what epoll reports. What an outer round has queued and not served yet is served once.
    pub(crate) fn report(&self, ready: Ready) {
        let mut table = self.table.lock();
        let Some((_, entry)) = table.entry(ready.token) else { return };
        entry.reported |= ready.events;
        if !std::mem::replace(&mut entry.queued, true) {
            table.ready.push_back(ready.token);
        }
    }

    /// Whether whoever sleeps gets to know all that a round would ask for: nothing is watched but edges. Those are reported once,
    /// and one that is out of date does no harm. Of levels the sleep keeps nothing: another thread may have served them by the
    /// time the lock is back.
    pub(crate) fn sleep_asks(&self) -> bool {
        // Relaxed: as in `is_empty`.
        self.levels.load(Ordering::Relaxed) == 0
    }

    /// As `report`, for what ended a sleep: edges alone, which are not reported again.
    pub(crate) fn report_edge(&self, ready: Ready) {
        let is_edge = self.table.lock().entry(ready.token).is_some_and(|(_, entry)| entry.edges);
        if is_edge {
            self.report(ready);
        }
    }

    /// A sleep has asked, and reported what there was.
    pub(crate) fn note_asked(&self) {
        self.asked.store(self.sleep_asks(), Ordering::Relaxed);
    }

    /// Whether the last sleep has asked already; once.
    pub(crate) fn take_asked(&self) -> bool {
        // Relaxed: written and read under the context's lock, but for the sleeper's own store, before it takes it.
        self.asked.load(Ordering::Relaxed) && self.asked.swap(false, Ordering::Relaxed)
    }

    /// Whether something reported has not been served.
    pub(crate) fn has_ready(&self) -> bool {
        !self.table.lock().ready.is_empty()
    }

    /// Serves what was reported. Returns whether any handler ran.
    ///
    /// # Control
    ///
    /// May enter and poll, by what the handlers do.
    pub(crate) fn run(&self, shared: &Shared) -> bool {
        /// Puts the handler back though it panicked.
        struct Running<'a>(&'a Watches, &'a Epoll, u64, Option<Handler>);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                let handler = self.3.take().expect("put back once");
                let unneeded = self.0.finish(self.1, self.2, handler);
                drop(unneeded);
            }
        }
        let mut progress = false;
        loop {
            let Some((token, events, handler)) = self.start_next() else { return progress };
            progress = true;
            let mut running = Running(self, &shared.epoll, token, Some(handler));
            let _told = shared.traced(Span::Watch);
            running.3.as_mut().expect("just put there")(events);
        }
    }

    fn start_next(&self) -> Option<(u64, u32, Handler)> {
        let mut table = self.table.lock();
        while let Some(token) = table.ready.pop_front() {
            let Some((_, entry)) = table.entry(token) else { continue };
            entry.queued = false;
            let events = std::mem::take(&mut entry.reported);
            // What it is ready for may be unwanted by now; errors are always wanted.
            let wanted = entry.interest.events() | (libc::EPOLLERR | libc::EPOLLHUP) as u32;
            if entry.interest != Interest::None
                && events & wanted != 0
                && let Some(handler) = entry.handler.take()
            {
                table.running += 1;
                return Some((token, events & wanted, handler));
            }
        }
        None
    }

    fn finish(&self, epoll: &Epoll, token: u64, handler: Handler) -> Option<(Handler, Option<Entry>)> {
        let mut table = self.table.lock();
        // Another table, if the context was closed from within.
        table.running = table.running.saturating_sub(1);
        let Some((key, entry)) = table.entry(token) else { return Some((handler, None)) };
        if entry.removed {
            let entry = table.entries.remove(key);
            return Some((handler, Some(entry)));
        }
        entry.handler = Some(handler);
        if std::mem::take(&mut entry.masked) {
            let restored = epoll.add(entry.fd.as_fd(), entry.events(), token);
            debug_assert!(restored.is_ok(), "the entry keeps the descriptor open");
        }
        None
    }

    /// Before a nested poll sleeps: takes the descriptors whose handlers run beneath it out of the set. To watch them
    /// for nothing would not do: a hang-up is reported all the same.
    pub(crate) fn mask_running(&self, epoll: &Epoll) {
        if self.is_empty() {
            return;
        }
        let mut table = self.table.lock();
        if table.running == 0 {
            return;
        }
        for (_, entry) in &mut table.entries {
            if entry.handler.is_none() && !entry.masked && !entry.removed {
                entry.masked = epoll.remove(entry.fd.as_fd()).is_ok();
            }
        }
    }

    /// In words; as [`BottomHalves::describe`](super::bottom_half::BottomHalves::describe).
    pub(crate) fn describe(&self) -> Option<String> {
        let table = self.table.try_lock()?;
        let one = |(_, entry): (usize, &Entry)| {
            let running = if entry.handler.is_none() { ", its handler runs" } else { "" };
            format!("descriptor {} for {:?}{running}", entry.fd.as_fd().as_raw_fd(), entry.interest)
        };
        let all: Vec<_> = table.entries.iter().map(one).collect();
        Some(if all.is_empty() { "none".into() } else { all.join("; ") })
    }

    /// Nothing that was reported is served; unless another thread holds the table. Drops nothing.
    pub(crate) fn forget_ready(&self) {
        if let Some(mut table) = self.table.try_lock() {
            table.ready.clear();
        }
    }

    /// Removes all of them; handlers are dropped outside the lock.
    pub(crate) fn clear(&self, epoll: &Epoll) {
        let all = std::mem::take(&mut *self.table.lock());
        self.count.store(0, Ordering::Relaxed);
        self.levels.store(0, Ordering::Relaxed);
        for (_, entry) in &all.entries {
            if !entry.removed {
                let _ = epoll.remove(entry.fd.as_fd());
            }
        }
        drop(all);
    }
}

impl AioContext {
    /// Calls `handler` whenever `fd` is ready for what `interest` says. The watch keeps `fd` open; share it as an `Arc`.
    ///
    /// It is level-triggered: the handler is called again until it has read or written. It is `Send`, since another
    /// thread's poll may call it.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`: the descriptor is watched already; use [`Watch::set_interest`]. `PermissionDenied`: it cannot be
    /// watched, as regular files cannot; they are always ready. Or no memory.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "aio_set_fd_handler")]
    pub fn watch(
        &self,
        fd: impl AsFd + Send + Sync + 'static,
        interest: Interest,
        mut handler: impl FnMut(Readiness) + Send + 'static,
    ) -> io::Result<Watch> {
        self.watch_events(fd, interest, false, move |events| handler(Readiness::of(events)))
    }

    /// As [`watch`](Self::watch), with what epoll says; for `edges`, the handler is called once for each change.
    pub(super) fn watch_events(
        &self,
        fd: impl AsFd + Send + Sync + 'static,
        interest: Interest,
        edges: bool,
        handler: impl FnMut(u32) + Send + 'static,
    ) -> io::Result<Watch> {
        let watches = &self.shared.watches;
        let mut table = watches.table.lock();
        table.serials += 1;
        let serial = table.serials;
        let key = table.entries.vacant_key();
        let token = token(key, serial);
        let entry = Entry {
            fd: Box::new(fd),
            interest,
            edges,
            handler: Some(Box::new(handler)),
            masked: false,
            removed: false,
            queued: false,
            reported: 0,
            serial,
        };
        self.shared.epoll.add(entry.fd.as_fd(), entry.events(), token).map_err(explain)?;
        table.entries.insert(entry);
        watches.count.fetch_add(1, Ordering::Relaxed);
        watches.levels.fetch_add(usize::from(!edges), Ordering::Relaxed);
        drop(table);
        self.shared.notify();
        Ok(Watch { shared: Arc::clone(&self.shared), token })
    }
}

fn explain(error: io::Error) -> io::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EEXIST) => "it is watched already; change that watch's interest instead",
        Some(libc::EPERM) => "it cannot be watched, as regular files cannot, being always ready; read it through File",
        Some(libc::EBADF) => "it is not open",
        Some(libc::ENOSPC) => "too many watches; raise fs.epoll.max_user_watches",
        _ => "the kernel refused",
    };
    explained(error.kind(), format!("cannot watch the descriptor: {hint} ({error})"), error)
}

/// A descriptor that the loop watches. Dropping it ends that, also within its handler.
#[must_use = "dropping it ends the watch"]
pub struct Watch {
    pub(super) shared: Arc<Shared>,
    token: u64,
}

impl Watch {
    /// Changes what is waited for. From any thread.
    ///
    /// # Errors
    ///
    /// What the kernel says, if it refuses.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn set_interest(&self, interest: Interest) -> io::Result<()> {
        let mut table = self.shared.watches.table.lock();
        let Some((_, entry)) = table.entry(self.token) else { return Ok(()) };
        let before = std::mem::replace(&mut entry.interest, interest);
        if !entry.masked
            && let Err(error) = self.shared.epoll.modify(entry.fd.as_fd(), entry.events(), self.token)
        {
            entry.interest = before;
            return Err(error);
        }
        drop(table);
        self.shared.notify();
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut table = self.shared.watches.table.lock();
        let Some((key, entry)) = table.entry(self.token) else { return };
        let _ = self.shared.epoll.remove(entry.fd.as_fd());
        self.shared.watches.count.fetch_sub(1, Ordering::Relaxed);
        self.shared.watches.levels.fetch_sub(usize::from(!entry.edges), Ordering::Relaxed);
        if entry.handler.is_none() {
            entry.removed = true;
            return;
        }
        let entry = table.entries.remove(key);
        drop(table);
        drop(entry);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
