//! The log itself: a ring of the most recent events. Coroutines and requests are numbered when the
//! log is read.

mod reader;

use std::collections::VecDeque;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::sys::{Clock, in_child};
use crate::trace::event::{CoroutineIndex, Event, Recording, RequestState, Span, WaitKind, Wake};
use crate::trace::source::{Resolver, addresses};
use reader::Reader;

/// A handle to an event log. Contexts write to the log that they are
/// [created](crate::ContextBuilder::trace) with.
///
/// ```
/// use coralio::trace::Trace;
/// use coralio::{spawn, yield_now};
/// use coralio::context::AioContext;
///
/// let trace = Trace::new(10_000);
/// AioContext::builder().trace(&trace).run_coroutine(|_| spawn(|| yield_now()).join().unwrap())?;
/// let recording = trace.recording();
/// recording.check().unwrap();
/// println!("{}", recording.text());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Trace {
    log: Arc<Log>,
}

struct Log {
    contexts: AtomicU32,
    ring: Mutex<Ring>,
    capacity: usize,
    /// Whether events store the return addresses on the stack.
    with_source: AtomicBool,
    /// The system's time at which the log was created, in nanoseconds.
    created: u64,
}

struct Ring {
    /// Once it is full, the oldest event is at `oldest`.
    events: Vec<Raw>,
    oldest: usize,
    /// Number of events that were overwritten.
    lost: u64,
    /// The names of named coroutines; at most as many as there are events.
    names: VecDeque<(Id, String)>,
}

/// An event as it was written: `event` contains the engine's key in place of a request's number,
/// and `id` identifies its coroutine.
struct Raw {
    /// In nanoseconds, by the context's clock: since the log, or the virtual clock, was created.
    time: u64,
    thread: u32,
    context: u32,
    event: Event,
    id: Id,
    at: Option<&'static Location<'static>>,
    /// The return addresses on the stack.
    calls: Option<Box<[usize]>>,
}

/// Identifies a coroutine on any thread: control block and generation.
pub(crate) type Id = (u64, u64);

/// Stands for the coroutine that [`Raw::id`] identifies.
const UNNUMBERED: CoroutineIndex = CoroutineIndex(0);
/// The identity in events that have no coroutine.
const NONE: Id = (0, 0);

impl Trace {
    /// Creates a log of the most recent `capacity` events (88 bytes each, without the texts), and of
    /// at most as many names.
    pub fn new(capacity: usize) -> Trace {
        let capacity = capacity.max(1);
        let events = Vec::with_capacity(capacity);
        let ring = Mutex::new(Ring { events, oldest: 0, lost: 0, names: VecDeque::new() });
        let with_source = AtomicBool::new(false);
        let log = Log { contexts: AtomicU32::new(0), ring, capacity, with_source, created: Clock::Real.nanos() };
        Trace { log: Arc::new(log) }
    }

    /// Makes each later event record the lines of the program that led to it:
    /// [`Record::calls`](super::Record::calls). The [page](Recording::html) then shows the
    /// program's source beside the lanes.
    ///
    /// Off by default: each event walks the stack, which takes microseconds, some KiB of the
    /// current stack, and up to 512 bytes of memory. Lines are known only of code that
    /// was built with line tables, as in debug builds.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use coralio::trace::{SourceLine, Trace};
    ///
    /// let trace = Trace::new(10_000).with_source();
    /// AioContext::builder().trace(&trace).run_coroutine(|_| coralio::yield_now())?;
    /// for record in &trace.recording().records {
    ///     for SourceLine { file, line, .. } in &record.calls {
    ///         println!("{}: {}:{line}", record.number, file.display());
    ///     }
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn with_source(self) -> Trace {
        self.log.with_source.store(true, Ordering::Relaxed);
        self
    }

    /// Creates the tracer of one more context, which uses `clock`.
    pub(crate) fn tracer(&self, clock: &Clock) -> Tracer {
        let context = self.log.contexts.fetch_add(1, Ordering::Relaxed);
        let origin = if clock.is_virtual() { 0 } else { self.log.created };
        Tracer { log: Arc::clone(&self.log), context, clock: clock.clone(), origin }
    }

    /// Returns the contents of the log; nothing in the child of a fork.
    pub fn recording(&self) -> Recording {
        // Another thread may have held the lock when this child was forked.
        if in_child() {
            return Recording::default();
        }
        let ring = self.log.ring.lock();
        let mut reader = Reader {
            recording: Recording { lost: ring.lost, ..Recording::default() },
            names: ring.names.iter().map(|(id, name)| (*id, name.as_str())).collect(),
            ..Reader::default()
        };
        let (newer, older) = ring.events.split_at(ring.oldest);
        let events = || older.iter().chain(newer);
        (ring.lost..).zip(events()).for_each(|(number, raw)| reader.read(number, raw));
        let calls: Vec<_> = events().map(|raw| raw.calls.clone()).collect();
        let (threads, mut recording) = (reader.threads.len(), reader.recording);
        // Resolving is slow, so it takes place after the ring is unlocked: contexts continue.
        drop(ring);
        let mut resolver = Resolver::default();
        for (record, calls) in recording.records.iter_mut().zip(calls) {
            record.calls = resolver.lines(&calls.unwrap_or_default());
        }
        Recording { threads, ..recording }
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("capacity", &self.log.capacity).finish_non_exhaustive()
    }
}

/// Writes the events of one context to a log. For authors of engines:
/// [`AioContext::tracer`](crate::AioContext::tracer).
#[derive(Clone)]
pub struct Tracer {
    log: Arc<Log>,
    context: u32,
    clock: Clock,
    /// The time of `clock` from which the events' times are counted.
    origin: u64,
}

impl Tracer {
    /// Returns whether events record lines: see [`Trace::with_source`].
    pub(crate) fn has_source(&self) -> bool {
        self.log.with_source.load(Ordering::Relaxed)
    }

    fn push(&self, event: Event, id: Id, at: Option<&'static Location<'static>>) {
        let calls = self.has_source().then(addresses);
        self.push_with(event, id, at, calls);
    }

    /// Writes an event that happened on a stack with the addresses `calls`.
    fn push_with(&self, event: Event, id: Id, at: Option<&'static Location<'static>>, calls: Option<Box<[usize]>>) {
        // The child of a fork has a copy of the log, which a thread of the parent may have locked.
        if in_child() {
            return;
        }
        let thread = thread();
        let mut ring = self.log.ring.lock();
        // Read under the lock: the events of all threads have ascending times.
        let time = self.clock.nanos().saturating_sub(self.origin);
        let raw = Raw { time, thread, context: self.context, event, id, at, calls };
        let Ring { events, oldest, lost, .. } = &mut *ring;
        if events.len() < self.log.capacity {
            return events.push(raw);
        }
        events[*oldest] = raw;
        *oldest = if *oldest + 1 == events.len() { 0 } else { *oldest + 1 };
        *lost += 1;
    }

    #[cold]
    pub(crate) fn create(&self, id: Id, name: Option<&str>, at: &'static Location<'static>) {
        if let Some(name) = name.filter(|_| !in_child()) {
            let mut ring = self.log.ring.lock();
            if ring.names.len() == self.log.capacity {
                ring.names.pop_front();
            }
            ring.names.push_back((id, name.into()));
        }
        self.push(Event::Create(UNNUMBERED), id, Some(at));
    }

    /// `at` is the line at which the coroutine continues.
    #[cold]
    pub(crate) fn enter(&self, id: Id, unwinds: bool, at: &'static Location<'static>) {
        self.push(Event::Enter { lane: UNNUMBERED, unwinds }, id, Some(at));
    }

    #[cold]
    pub(crate) fn yielded(&self, id: Id, waits: WaitKind, at: &'static Location<'static>, calls: Option<Box<[usize]>>) {
        self.push_with(Event::Yield { lane: UNNUMBERED, waits }, id, Some(at), calls);
    }

    #[cold]
    pub(crate) fn end(&self, id: Id) {
        // No lines: the coroutine's stack is empty by now.
        self.push_with(Event::End(UNNUMBERED), id, None, None);
    }

    #[cold]
    pub(crate) fn wake(&self, id: Id, how: Wake, at: &'static Location<'static>) {
        self.push(Event::Wake { lane: UNNUMBERED, how }, id, Some(at));
    }

    #[cold]
    pub(crate) fn lock(&self, taken: bool) {
        self.push(if taken { Event::Acquire } else { Event::Release }, NONE, None);
    }

    /// Records the beginning of a piece of work; its end is recorded when the returned value is
    /// dropped. For authors of engines.
    #[cold]
    #[track_caller]
    #[must_use = "dropping the span records its end"]
    pub fn span(&self, span: Span) -> SpanGuard<'_> {
        self.push(Event::Begin(span), NONE, Some(Location::caller()));
        SpanGuard(self, span)
    }

    /// Records a state change of the request that `key` identifies within its engine.
    #[cold]
    #[track_caller]
    pub fn request(&self, key: u64, state: RequestState) {
        self.push(Event::Request { request: key, state }, NONE, Some(Location::caller()));
    }

    /// Records an engine's counters. For authors of engines.
    #[cold]
    #[track_caller]
    pub fn counters(&self, in_flight: u32, pending: u32, plugged: u32) {
        self.push(Event::Counters { in_flight, pending, plugged }, NONE, Some(Location::caller()));
    }

    /// Records the violation of a rule. For authors of engines.
    #[cold]
    #[track_caller]
    pub fn violation(&self, what: impl Into<String>) {
        self.push(Event::Violation(what.into()), NONE, Some(Location::caller()));
    }

    /// Records a text of the program's own.
    #[cold]
    #[track_caller]
    pub fn mark(&self, what: impl Into<String>) {
        self.push(Event::Mark(what.into()), NONE, Some(Location::caller()));
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("context", &self.context).finish_non_exhaustive()
    }
}

/// Records the end of a piece of work when dropped. Created by [`Tracer::span`].
#[derive(Debug)]
pub struct SpanGuard<'a>(&'a Tracer, Span);

impl Drop for SpanGuard<'_> {
    fn drop(&mut self) {
        self.0.push(Event::Finish(self.1), NONE, None);
    }
}

/// Returns this thread's number among the threads that have written to any log.
fn thread() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local! {
        static NUMBER: u32 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    // All threads whose thread-locals are destroyed share the last number.
    NUMBER.try_with(|&number| number).unwrap_or(u32::MAX)
}
