//! The part of a context that every thread may touch.

use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use parking_lot::Mutex;

use crate::home::Home;
use crate::sys::{Epoll, EventFd};
use crate::trace::{Opened, Span, Tracer};

use super::bottom_half::BottomHalves;
use super::clock::Clock;
use super::fd::Watches;
use super::identity::HomeThread;
use super::lock::ContextLock;
use super::notify::SleepState;
use super::poll_while::Onlookers;
use super::polling::Pollers;
use super::source::Source;
use super::stall::Beat;
use super::timer::Timers;
use super::wake::{Arrival, Arrivals};

/// The token by which the epoll set reports the loop's own eventfd.
pub(crate) const KICK_TOKEN: u64 = u64::MAX;

pub(crate) struct Shared {
    pub(crate) thread: HomeThread,
    /// What timers go by.
    pub(crate) clock: Clock,
    /// Counted by the loop, if it is watched for stalls.
    pub(crate) beat: Beat,
    pub(crate) lock: ContextLock,
    pub(crate) sleep: SleepState,
    pub(crate) epoll: Epoll,
    kick: EventFd,
    pub(crate) arrivals: Arrivals,
    pub(crate) bottom_halves: BottomHalves,
    pub(crate) watches: Watches,
    pub(crate) timers: Timers,
    pub(crate) onlookers: Onlookers,
    pub(crate) pollers: Pollers,
    /// For how long the loop may look before it sleeps, in nanoseconds.
    pub(crate) poll_limit: AtomicU64,
    /// Counts rounds that had other work, so that watches get their turn.
    pub(crate) busy_rounds: AtomicU32,
    /// For polls from other threads; the home thread has it at hand. Gone when the context has ended.
    pub(crate) source: Mutex<Option<Arc<dyn Source>>>,
    /// The way into the event log, if there is one.
    pub(crate) tracer: Option<Tracer>,
}

impl Shared {
    /// For the thread that calls.
    pub(crate) fn new(clock: Clock, tracer: Option<Tracer>) -> io::Result<Arc<Shared>> {
        let epoll = Epoll::new()?;
        let kick = EventFd::new()?;
        // Edges: the counter need never be read back.
        epoll.add(kick.as_fd(), (libc::EPOLLIN | libc::EPOLLET) as u32, KICK_TOKEN)?;
        Ok(Arc::new(Shared {
            thread: HomeThread::here(),
            clock,
            beat: Beat::default(),
            lock: ContextLock::default(),
            sleep: SleepState::new(),
            epoll,
            kick,
            arrivals: Arrivals::new(),
            bottom_halves: BottomHalves::default(),
            watches: Watches::default(),
            timers: Timers::default(),
            onlookers: Onlookers::default(),
            pollers: Pollers::default(),
            poll_limit: AtomicU64::new(0),
            busy_rounds: AtomicU32::new(0),
            source: Mutex::new(None),
            tracer,
        }))
    }

    /// A number that tells this context from every other that lives.
    #[inline]
    pub(crate) fn id(&self) -> usize {
        ptr::from_ref(self).addr()
    }

    /// The home of this context, if this is its thread.
    #[inline]
    pub(crate) fn home<'a>(&self) -> Option<&'a Home> {
        Home::current().filter(|home| ptr::eq(&*home.shared, self))
    }

    /// A piece of work begins that the event log shows, and is over when the value is dropped.
    #[inline]
    #[track_caller]
    pub(crate) fn traced(&self, span: Span) -> Option<Opened<'_>> {
        self.tracer.as_ref().map(|tracer| tracer.span(span))
    }

    /// Wakes the loop if it sleeps or is about to (rule X6). The work that it shall find is on its queue already.
    pub(crate) fn notify(&self) {
        if self.sleep.needs_kick() {
            self.kick.signal();
        }
    }

    /// A round has found the kick among what epoll reports. If another thread's round has, the loop may not have seen it: an edge
    /// is reported once.
    pub(crate) fn hand_kick_on(&self) {
        if self.sleep.is_kicked() {
            self.kick.signal();
        }
    }

    /// Makes the loop return from a blocking poll, now or the next time: what it polls for may have come true.
    pub(crate) fn kick(&self) {
        self.sleep.look_again();
        self.notify();
    }

    /// Has `begin` called at home, in the loop's next round; drops it if the context has ended.
    pub(crate) fn arrive(&self, begin: Box<dyn FnOnce() + Send>) {
        match self.arrivals.push(Arrival::Begin(begin)) {
            Ok(()) => self.notify(),
            Err(refused) => drop(refused),
        }
    }

    /// Drops what users registered: after this the context does nothing any more.
    pub(crate) fn close(&self) {
        let source = self.source.lock().take();
        drop(source);
        self.bottom_halves.clear();
        self.watches.clear(&self.epoll);
        self.timers.clear();
        self.pollers.clear();
        drop(self.arrivals.close());
    }
}
