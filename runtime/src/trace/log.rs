//! The log itself: an event is packed into four words when it is written, and unpacked when it is
//! read.

#![allow(unsafe_code)]

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::Location;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::trace::event::{
    CoroutineIndex, CoroutineInfo, Event, Record, Recording, RequestState, Span, WaitKind, Wake,
};
use crate::trace::ring::{Ring, WORDS};

/// A handle to an event log. Contexts write to the log that they are
/// [created](crate::ContextBuilder::trace) with.
///
/// ```
/// use coralio_runtime::trace::Trace;
/// use coralio_runtime::{AioContext, spawn, yield_now};
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
    ring: Ring,
    contexts: AtomicU16,
    /// The names of named coroutines, and texts; at most as many of each as the ring has records.
    words: Mutex<Words>,
    capacity: usize,
}

#[derive(Default)]
struct Words {
    names: VecDeque<(Id, String)>,
    texts: VecDeque<String>,
    /// The number of texts dropped, which is also the number of the first text left.
    forgotten: u64,
}

/// Identifies a coroutine on any thread: control block and generation.
pub(crate) type Id = (u64, u64);

impl Trace {
    /// Creates a log of the most recent `capacity` events (40 bytes each), and of at most as many
    /// names and texts.
    pub fn new(capacity: usize) -> Trace {
        let (ring, contexts, words) = (Ring::new(capacity), AtomicU16::new(0), Mutex::default());
        Trace { log: Arc::new(Log { ring, contexts, words, capacity: capacity.max(1) }) }
    }

    /// Creates the tracer of one more context.
    pub(crate) fn tracer(&self) -> Tracer {
        let context = self.log.contexts.fetch_add(1, Ordering::Relaxed);
        Tracer { log: Arc::clone(&self.log), context }
    }

    /// Returns the contents of the log. Events that other threads are writing at this moment may be
    /// missing.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn recording(&self) -> Recording {
        let (total, raw) = self.log.ring.read();
        let words = self.log.words.lock();
        let mut reader = Reader::new(&words);
        for &(number, words) in &raw {
            reader.read(number, words);
        }
        let mut recording = reader.recording;
        recording.threads = reader.threads.len();
        recording.lost = total - raw.len() as u64;
        recording
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("capacity", &self.log.capacity).finish_non_exhaustive()
    }
}

/// The kind of a record, stored in its low byte.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    Create,
    Enter,
    Yield,
    End,
    Wake,
    Begin,
    Finish,
    Request,
    Counters,
    Acquire,
    Release,
    Violation,
    Mark,
}

/// Writes the events of one context to a log. For authors of engines:
/// [`AioContext::tracer`](crate::AioContext::tracer).
#[derive(Clone)]
pub struct Tracer {
    log: Arc<Log>,
    context: u16,
}

impl Tracer {
    #[inline]
    fn push(&self, kind: Kind, detail: u8, a: u64, b: u64, at: Option<&'static Location<'static>>) {
        let head = u64::from(kind as u8) | u64::from(detail) << 8 | u64::from(self.context) << 16 | thread() << 32;
        // Exposed: the reader turns the address back into a reference.
        let at = at.map_or(0, |at| ptr::from_ref(at).expose_provenance() as u64);
        self.log.ring.push([head, a, b, at]);
    }

    #[cold]
    pub(crate) fn create(&self, (a, b): Id, name: Option<&str>, at: &'static Location<'static>) {
        if let Some(name) = name {
            let mut words = self.log.words.lock();
            if words.names.len() == self.log.capacity {
                words.names.pop_front();
            }
            words.names.push_back(((a, b), name.into()));
        }
        self.push(Kind::Create, 0, a, b, Some(at));
    }

    /// `at` is the line at which the coroutine continues.
    #[cold]
    pub(crate) fn enter(&self, (a, b): Id, unwinds: bool, at: &'static Location<'static>) {
        self.push(Kind::Enter, u8::from(unwinds), a, b, Some(at));
    }

    #[cold]
    pub(crate) fn yielded(&self, (a, b): Id, waits: WaitKind, at: &'static Location<'static>) {
        self.push(Kind::Yield, WAITS.iter().position(|&w| w == waits).unwrap_or(0) as u8, a, b, Some(at));
    }

    #[cold]
    pub(crate) fn end(&self, (a, b): Id) {
        self.push(Kind::End, 0, a, b, None);
    }

    #[cold]
    pub(crate) fn wake(&self, (a, b): Id, how: Wake, at: &'static Location<'static>) {
        self.push(Kind::Wake, WAKES.iter().position(|&w| w == how).unwrap_or(0) as u8, a, b, Some(at));
    }

    #[cold]
    pub(crate) fn lock(&self, taken: bool) {
        self.push(if taken { Kind::Acquire } else { Kind::Release }, 0, 0, 0, None);
    }

    /// Records the beginning of a piece of work; its end is recorded when the returned value is
    /// dropped.
    #[cold]
    #[track_caller]
    #[must_use = "dropping the span records its end"]
    pub fn span(&self, span: Span) -> SpanGuard<'_> {
        let detail = SPANS.iter().position(|&s| s == span).unwrap_or(0) as u8;
        self.push(Kind::Begin, detail, 0, 0, Some(Location::caller()));
        SpanGuard(self, detail)
    }

    /// Records a state change of the request that `key` identifies within its engine.
    #[cold]
    #[track_caller]
    pub fn request(&self, key: u64, state: RequestState) {
        let (detail, result) = match state {
            RequestState::Pending => (0, 0),
            RequestState::InFlight => (1, 0),
            RequestState::Done(result) => (2, result),
            RequestState::Refused(result) => (3, result),
            RequestState::Cancelled => (4, 0),
        };
        self.push(Kind::Request, detail, key, result as u64, Some(Location::caller()));
    }

    /// Records an engine's counters.
    #[cold]
    #[track_caller]
    pub fn counters(&self, in_flight: u32, pending: u32, plugged: u32) {
        let both = u64::from(in_flight) << 32 | u64::from(pending);
        self.push(Kind::Counters, 0, both, u64::from(plugged), Some(Location::caller()));
    }

    /// Records the violation of a rule.
    #[cold]
    #[track_caller]
    pub fn violation(&self, what: impl Into<String>) {
        self.say(Kind::Violation, what.into(), Location::caller());
    }

    /// Records a text of the program's own.
    #[cold]
    #[track_caller]
    pub fn mark(&self, what: impl Into<String>) {
        self.say(Kind::Mark, what.into(), Location::caller());
    }

    fn say(&self, kind: Kind, what: String, at: &'static Location<'static>) {
        let number = {
            let mut words = self.log.words.lock();
            if words.texts.len() == self.log.capacity {
                words.texts.pop_front();
                words.forgotten += 1;
            }
            words.texts.push_back(what);
            words.forgotten + words.texts.len() as u64 - 1
        };
        self.push(kind, 0, number, 0, Some(at));
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("context", &self.context).finish_non_exhaustive()
    }
}

/// Records the end of a piece of work when dropped. Created by [`Tracer::span`].
#[derive(Debug)]
pub struct SpanGuard<'a>(&'a Tracer, u8);

impl Drop for SpanGuard<'_> {
    fn drop(&mut self) {
        self.0.push(Kind::Finish, self.1, 0, 0, None);
    }
}

/// Returns this thread's number among the threads that have written to any log.
fn thread() -> u64 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local! {
        static NUMBER: u32 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    // All threads whose thread-locals are destroyed share the last number.
    u64::from(NUMBER.try_with(|&number| number).unwrap_or(u32::MAX))
}

const WAKES: [Wake; 4] = [Wake::Immediate, Wake::Deferred, Wake::Scheduled, Wake::AlreadyEntered];

const SPANS: [Span; 8] =
    [Span::Round, Span::BottomHalf, Span::Watch, Span::PollHandler, Span::Timer, Span::Sleep, Span::Submit, Span::Reap];

const WAITS: [WaitKind; 10] = [
    WaitKind::Enter,
    WaitKind::Turn,
    WaitKind::Join,
    WaitKind::Lock,
    WaitKind::Message,
    WaitKind::Time,
    WaitKind::Descriptor,
    WaitKind::Io,
    WaitKind::Future,
    WaitKind::Scope,
];

/// Unpacks records, numbering coroutines, threads and requests in order of first appearance.
struct Reader<'a> {
    recording: Recording,
    names: HashMap<Id, &'a str>,
    texts: &'a Words,
    lanes: HashMap<Id, CoroutineIndex>,
    threads: HashMap<u64, usize>,
    requests: HashMap<(usize, u64), u64>,
}

impl<'a> Reader<'a> {
    fn new(words: &'a Words) -> Reader<'a> {
        Reader {
            recording: Recording::default(),
            names: words.names.iter().map(|(id, name)| (*id, name.as_str())).collect(),
            texts: words,
            lanes: HashMap::new(),
            threads: HashMap::new(),
            requests: HashMap::new(),
        }
    }

    fn lane(&mut self, id: Id, context: usize) -> CoroutineIndex {
        let next = CoroutineIndex(self.recording.lanes.len());
        match self.lanes.entry(id) {
            Entry::Occupied(lane) => *lane.get(),
            Entry::Vacant(lane) => {
                let name = self.names.get(&id).map_or_else(|| format!("#{}", next.0), |name| (*name).to_string());
                self.recording.lanes.push(CoroutineInfo { name, context, created_at: None });
                *lane.insert(next)
            }
        }
    }

    fn text(&self, number: u64) -> String {
        let place = number.checked_sub(self.texts.forgotten);
        place.and_then(|place| self.texts.texts.get(place as usize)).map_or("(forgotten)", String::as_str).into()
    }

    fn read(&mut self, number: u64, [head, a, b, at]: [u64; WORDS]) {
        let (kind, detail, context) = (head as u8, (head >> 8) as u8 as usize, (head >> 16) as u16 as usize);
        // SAFETY: each word of a record was written by some writer, and writers store the address
        // of a `'static` location, or 0, in this word.
        let at = unsafe { ptr::with_exposed_provenance::<Location<'static>>(at as usize).as_ref() };
        let threads = self.threads.len();
        let thread = *self.threads.entry(head >> 32).or_insert(threads);
        let id = (a, b);
        let event = match kind {
            k if k == Kind::Create as u8 => {
                let lane = self.lane(id, context);
                self.recording.lanes[lane.0].created_at = at;
                Event::Create(lane)
            }
            k if k == Kind::Enter as u8 => Event::Enter { lane: self.lane(id, context), unwinds: detail == 1 },
            k if k == Kind::Yield as u8 => Event::Yield { lane: self.lane(id, context), waits: WAITS[detail] },
            k if k == Kind::End as u8 => Event::End(self.lane(id, context)),
            k if k == Kind::Wake as u8 => Event::Wake { lane: self.lane(id, context), how: WAKES[detail] },
            k if k == Kind::Begin as u8 => Event::Begin(SPANS[detail]),
            k if k == Kind::Finish as u8 => Event::Finish(SPANS[detail]),
            k if k == Kind::Request as u8 => {
                let requests = self.requests.len() as u64;
                let request = *self.requests.entry((context, a)).or_insert(requests);
                let state = match detail {
                    0 => RequestState::Pending,
                    1 => RequestState::InFlight,
                    2 => RequestState::Done(b as i64),
                    3 => RequestState::Refused(b as i64),
                    _ => RequestState::Cancelled,
                };
                Event::Request { request, state }
            }
            k if k == Kind::Counters as u8 => {
                Event::Counters { in_flight: (a >> 32) as u32, pending: a as u32, plugged: b as u32 }
            }
            k if k == Kind::Acquire as u8 => Event::Acquire,
            k if k == Kind::Release as u8 => Event::Release,
            k if k == Kind::Violation as u8 => Event::Violation(self.text(a)),
            _ => Event::Mark(self.text(a)),
        };
        self.recording.records.push(Record { number, thread, context, event, at });
    }
}
