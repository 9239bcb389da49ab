//! The events of a run, and a recording as a list of them.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use crate::sys::format_fn;
use crate::trace::source::SourceLine;

/// Identifies a coroutine of a [`Recording`]: an index into [`Recording::lanes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CoroutineIndex(pub usize);

/// Describes a coroutine of a [`Recording`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoroutineInfo {
    /// The coroutine's name, or its number in the recording (`#3`) if it has none.
    pub name: String,
    /// The context, numbered from 0 in the order in which contexts were created with this log.
    pub context: usize,
    /// Where the coroutine was created; `None` if that event was overwritten.
    pub created_at: Option<&'static Location<'static>>,
}

/// How a coroutine was woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// No coroutine was running: the woken one is entered immediately.
    Immediate,
    /// The woken coroutine runs when the current one yields or ends.
    Deferred,
    /// The woken coroutine runs in the loop's next iteration.
    Scheduled,
    /// The coroutine is entered already and checks its result before it suspends.
    AlreadyEntered,
}

/// A piece of work of the loop or an engine, with a beginning and an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// One iteration of the loop.
    Round,
    /// A bottom half's callback.
    BottomHalf,
    /// An fd handler's callback.
    Watch,
    /// A poll handler's callback.
    PollHandler,
    /// A timer's callback, or the wake-up of a sleeping coroutine.
    Timer,
    /// The loop sleeps.
    Sleep,
    /// An engine submits.
    Submit,
    /// An engine reaps.
    Reap,
}

/// The states of a request, in order: `Pending`, `InFlight`, then one of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState {
    /// Queued, not yet submitted.
    Pending,
    /// Accepted by the backend.
    InFlight,
    /// Completion reaped: the number of bytes, or a negative `errno`.
    Done(i64),
    /// Refused at submit, with a negative `errno`.
    Refused(i64),
    /// Removed from the queue before it was submitted.
    Cancelled,
}

/// The reason why a coroutine yields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitKind {
    /// To be entered or woken.
    Enter,
    /// Its turn in the run queue.
    Turn,
    /// The end of another coroutine.
    Join,
    /// A lock between coroutines.
    Lock,
    /// A queue, semaphore, channel or one-shot value.
    Message,
    /// Time.
    Time,
    /// A descriptor.
    Descriptor,
    /// I/O.
    Io,
    /// A future.
    Future,
    /// The coroutines of its scope.
    Scope,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A coroutine was created.
    Create(CoroutineIndex),
    /// A coroutine is entered: control moves to it.
    Enter {
        /// The coroutine.
        lane: CoroutineIndex,
        /// Whether it is entered to be unwound.
        unwinds: bool,
    },
    /// A coroutine yields: control returns to its most recent enterer.
    Yield {
        /// The coroutine.
        lane: CoroutineIndex,
        /// The reason.
        waits: WaitKind,
    },
    /// A coroutine has ended: control returns to its most recent enterer.
    End(CoroutineIndex),
    /// A coroutine is woken.
    Wake {
        /// The coroutine.
        lane: CoroutineIndex,
        /// When it will run.
        how: Wake,
    },
    /// A piece of work begins.
    Begin(Span),
    /// The innermost piece of work ends.
    Finish(Span),
    /// A request changes its state.
    Request {
        /// The request's number, unique within the recording.
        request: u64,
        /// The new state.
        state: RequestState,
    },
    /// An engine's counters have changed.
    Counters {
        /// Requests in flight.
        in_flight: u32,
        /// Requests waiting to be submitted.
        pending: u32,
        /// Plug depth.
        plugged: u32,
    },
    /// The thread acquired the context's lock.
    Acquire,
    /// The thread released the context's lock.
    Release,
    /// A rule was violated, with the message.
    Violation(String),
    /// A text that the program logged with [`Tracer::mark`](super::Tracer::mark).
    Mark(String),
}

/// One event of a [`Recording`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The event's number, counted from 0 over all threads.
    pub number: u64,
    /// The time since the log was created, in nanoseconds of the monotonic clock; no less than that
    /// of the event before. A context with a [virtual clock](crate::VirtualClock) writes virtual
    /// times, which are the same in each run.
    pub time: Duration,
    /// The thread of the event, numbered from 0 in order of first appearance.
    pub thread: usize,
    /// The context of the event, numbered as in [`CoroutineInfo`].
    pub context: usize,
    /// The event itself.
    pub event: Event,
    /// The source line of the event if known; for an enter, the line at which the coroutine
    /// continues.
    pub at: Option<&'static Location<'static>>,
    /// The lines of the program's own code on the current stack, innermost call first, up to the
    /// function that the current coroutine runs. Empty without
    /// [`with_source`](super::Trace::with_source), and for a coroutine's end.
    pub calls: Vec<SourceLine>,
}

/// The contents of a log when [`Trace::recording`](super::Trace::recording) was called.
///
/// ```
/// use coralio::context::AioContext;
/// use coralio::trace::{TextOptions, Trace};
/// use coralio::{spawn, yield_now};
///
/// let trace = Trace::new(1000);
/// AioContext::builder().trace(&trace).run_coroutine(|_| spawn(yield_now).join().unwrap())?;
/// let recording = trace.recording();
/// println!("{}", recording.text_with(TextOptions::default().sources())); // file and line of each event
/// assert!(recording.text_with(TextOptions::everything()).len() > recording.text().len());
/// assert!(recording.html_titled("one yield", None).contains("one yield"));
/// assert!(recording.perfetto().starts_with(['{', '['])); // JSON, for ui.perfetto.dev
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recording {
    /// The events, in order of their numbers.
    pub records: Vec<Record>,
    /// The coroutines, in order of first appearance.
    pub lanes: Vec<CoroutineInfo>,
    /// The number of threads that appear.
    pub threads: usize,
    /// Events that were overwritten before they could be read.
    pub lost: u64,
}

impl Recording {
    /// Returns the name of a coroutine.
    pub fn name(&self, lane: CoroutineIndex) -> &str {
        &self.lanes[lane.0].name
    }

    /// Describes an event: "enters 'A'".
    pub fn describe<'a>(&'a self, event: &'a Event) -> impl fmt::Display + 'a {
        format_fn(move |f| match event {
            Event::Create(lane) => write!(f, "creates {}", self.name(*lane)),
            Event::Enter { lane, unwinds: false } => write!(f, "enters {}", self.name(*lane)),
            Event::Enter { lane, unwinds: true } => write!(f, "enters {} to unwind it", self.name(*lane)),
            Event::Yield { lane, waits } => write!(f, "{} yields, waits for {waits}", self.name(*lane)),
            Event::End(lane) => write!(f, "{} ends", self.name(*lane)),
            Event::Wake { lane, how: how @ Wake::AlreadyEntered } => write!(f, "{} {how}", self.name(*lane)),
            Event::Wake { lane, how } => write!(f, "wakes {}: {how}", self.name(*lane)),
            Event::Begin(span) => write!(f, "{span}"),
            Event::Finish(span) => write!(f, "end of {span}"),
            Event::Request { request, state } => write!(f, "request {request}: {state}"),
            Event::Counters { in_flight, pending, plugged } => {
                write!(f, "{in_flight} in flight, {pending} pending")?;
                if *plugged > 0 { write!(f, ", plugged {plugged} deep") } else { Ok(()) }
            }
            Event::Acquire => f.write_str("takes the lock"),
            Event::Release => f.write_str("gives the lock up"),
            Event::Violation(what) => write!(f, "VIOLATION: {what}"),
            Event::Mark(what) => f.write_str(what),
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Span::Round => "iteration",
            Span::BottomHalf => "bottom half",
            Span::Watch => "fd handler",
            Span::PollHandler => "poll handler",
            Span::Timer => "timer",
            Span::Sleep => "sleep",
            Span::Submit => "submit",
            Span::Reap => "reap",
        })
    }
}

impl fmt::Display for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wake::Immediate => "runs now",
            Wake::Deferred => "runs when this one yields",
            Wake::Scheduled => "runs in the next iteration",
            Wake::AlreadyEntered => "is entered: left alone",
        })
    }
}

impl fmt::Display for RequestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestState::Pending => f.write_str("pending"),
            RequestState::InFlight => f.write_str("in flight"),
            RequestState::Done(result) if *result < 0 => write!(f, "done, errno {}", result.unsigned_abs()),
            RequestState::Done(result) => write!(f, "done, {result} bytes"),
            RequestState::Refused(result) => write!(f, "refused, errno {}", result.unsigned_abs()),
            RequestState::Cancelled => f.write_str("cancelled before submit"),
        }
    }
}

impl fmt::Display for WaitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WaitKind::Enter => "an enter or a wake",
            WaitKind::Turn => "its turn",
            WaitKind::Join => "another one's end",
            WaitKind::Lock => "a lock",
            WaitKind::Message => "a message",
            WaitKind::Time => "time to pass",
            WaitKind::Descriptor => "a descriptor",
            WaitKind::Io => "I/O",
            WaitKind::Future => "a future",
            WaitKind::Scope => "the coroutines of its scope",
        })
    }
}
