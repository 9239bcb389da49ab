//! What can happen, and a run as a list of it.

use std::fmt;
use std::panic::Location;

/// A coroutine of a [`Recording`]: index into [`Recording::lanes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub usize);

/// What a [`Recording`] knows of a coroutine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneInfo {
    /// Its name; one without a name is called by its number in the recording: `#3`.
    pub name: String,
    /// Its context, counted from 0 in the order in which they were made with this log.
    pub context: usize,
    /// Where it was created; `None` if the log has lost that.
    pub created_at: Option<&'static Location<'static>>,
}

/// How a coroutine was woken (rule W1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Nobody was running: it is entered at once.
    Now,
    /// It runs when the coroutine that runs yields or ends.
    AfterYield,
    /// It runs in the loop's next round.
    Scheduled,
    /// It is entered already, and looks before it suspends (rule E6).
    LeftEntered,
}

/// Something that the loop or an engine does, with a beginning and an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// One round of the loop.
    Round,
    /// A bottom half's callback.
    BottomHalf,
    /// A watch's callback.
    Watch,
    /// A poll handler's callback.
    PollHandler,
    /// A timer's callback, or its coroutine being woken.
    Timer,
    /// The loop sleeps.
    Sleep,
    /// An engine submits.
    Submit,
    /// An engine reaps.
    Reap,
}

/// A request's life, top to bottom: the first two once each, then one of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState {
    /// It waits to be submitted.
    Pending,
    /// The kernel has it.
    InFlight,
    /// Its completion was reaped: bytes, or a negative `errno`.
    Done(i64),
    /// The kernel refused it at submit: a negative `errno`.
    Refused(i64),
    /// It was taken off the queue before the kernel had it.
    TakenBack,
}

/// What a coroutine yields for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Waits {
    /// That somebody enters or wakes it.
    Enter,
    /// Its turn.
    Turn,
    /// Another one's end.
    Join,
    /// A lock among coroutines.
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

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A coroutine was made.
    Create(Lane),
    /// A coroutine is entered: this thread goes on in it.
    Enter {
        /// Which.
        lane: Lane,
        /// It is to unwind.
        unwinds: bool,
    },
    /// A coroutine yields, back to whoever entered it last.
    Yield {
        /// Which.
        lane: Lane,
        /// What for.
        waits: Waits,
    },
    /// A coroutine has ended; back to whoever entered it last.
    End(Lane),
    /// A coroutine is woken.
    Wake {
        /// Which.
        lane: Lane,
        /// In which of the ways.
        how: Wake,
    },
    /// A piece of work begins.
    Begin(Span),
    /// The innermost piece of work is over.
    Finish(Span),
    /// A request changes its state.
    Request {
        /// Which: a number that no other request of the recording has.
        request: u64,
        /// To what.
        state: RequestState,
    },
    /// An engine's counters have changed.
    Counters {
        /// Requests that the kernel has.
        in_flight: u32,
        /// Requests that wait to be submitted.
        pending: u32,
        /// Plugs that are in.
        plugged: u32,
    },
    /// This thread has taken the context's lock.
    Acquire,
    /// This thread has given the context's lock up.
    Release,
    /// A rule was broken; what the message said.
    Violation(String),
    /// A word by the program, by [`Tracer::mark`](super::Tracer::mark).
    Mark(String),
}

/// One event of a [`Recording`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Counts from 0, over all threads.
    pub number: u64,
    /// The thread that did it, counted from 0 in order of first appearance.
    pub thread: usize,
    /// The context that it concerns, as in [`LaneInfo`].
    pub context: usize,
    /// What happened.
    pub event: Event,
    /// The line that did it, where one is known; for an enter, the one that goes on.
    pub at: Option<&'static Location<'static>>,
}

/// A log, read: what it still had when [`Trace::recording`](super::Trace::recording) was called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recording {
    /// In order of their numbers.
    pub records: Vec<Record>,
    /// The coroutines, in order of first appearance.
    pub lanes: Vec<LaneInfo>,
    /// Threads that appear.
    pub threads: usize,
    /// Events that were overwritten before they could be read.
    pub lost: u64,
}

impl Recording {
    /// A coroutine's name.
    pub fn name(&self, lane: Lane) -> &str {
        &self.lanes[lane.0].name
    }

    /// An event in words: "enters 'A'".
    pub fn describe<'a>(&'a self, event: &'a Event) -> impl fmt::Display + 'a {
        struct Told<'a>(&'a Recording, &'a Event);
        impl fmt::Display for Told<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                tell(self.0, self.1, f)
            }
        }
        Told(self, event)
    }
}

fn tell(recording: &Recording, event: &Event, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match event {
        Event::Create(lane) => write!(f, "creates {}", recording.name(*lane)),
        Event::Enter { lane, unwinds: false } => write!(f, "enters {}", recording.name(*lane)),
        Event::Enter { lane, unwinds: true } => write!(f, "enters {} to unwind it", recording.name(*lane)),
        Event::Yield { lane, waits } => write!(f, "{} yields, waits for {waits}", recording.name(*lane)),
        Event::End(lane) => write!(f, "{} ends", recording.name(*lane)),
        Event::Wake { lane, how } => write!(f, "wakes {}: {how}", recording.name(*lane)),
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
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Span::Round => "round of the loop",
            Span::BottomHalf => "bottom half",
            Span::Watch => "watch",
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
            Wake::Now => "runs at once",
            Wake::AfterYield => "runs when this one yields",
            Wake::Scheduled => "runs in the next round",
            Wake::LeftEntered => "is entered, left alone",
        })
    }
}

impl fmt::Display for RequestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestState::Pending => f.write_str("pending"),
            RequestState::InFlight => f.write_str("in flight"),
            RequestState::Done(result) if *result < 0 => write!(f, "done, errno {}", -result),
            RequestState::Done(result) => write!(f, "done, {result} bytes"),
            RequestState::Refused(result) => write!(f, "refused, errno {}", -result),
            RequestState::TakenBack => f.write_str("taken back"),
        }
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Waits::Enter => "an enter or a wake",
            Waits::Turn => "its turn",
            Waits::Join => "another one's end",
            Waits::Lock => "a lock",
            Waits::Message => "a message",
            Waits::Time => "time to pass",
            Waits::Descriptor => "a descriptor",
            Waits::Io => "I/O",
            Waits::Future => "a future",
            Waits::Scope => "the coroutines of its scope",
        })
    }
}
