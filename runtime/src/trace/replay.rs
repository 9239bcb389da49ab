//! Replays a recording event by event: stacks, live coroutines, and the state of each request.

use std::collections::HashMap;
use std::fmt;

use crate::trace::event::{CoroutineIndex, Event, Record, Recording, RequestState, Span};

/// One frame of a thread's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// An entered coroutine.
    Coroutine(CoroutineIndex),
    /// A piece of work of the loop or an engine.
    Span(Span),
}

/// Returns the number of outermost frames that two stacks share.
pub(super) fn kept(before: &[Frame], after: &[Frame]) -> usize {
    before.iter().zip(after).take_while(|(before, after)| before == after).count()
}

/// The state after some prefix of a recording.
///
/// ```
/// use coralio::context::AioContext;
/// use coralio::trace::{CoroutineIndex, CoroutineInfo, Event, Replay, Trace, WaitKind, Wake};
/// use coralio::{spawn, yield_now};
///
/// let trace = Trace::new(1000);
/// AioContext::builder().trace(&trace).run_coroutine(|_| spawn(yield_now).join().unwrap())?;
/// let recording = trace.recording();
/// let spawned = CoroutineIndex(1);
/// let mut replay = Replay::of(&recording);
/// for record in &recording.records {
///     replay.apply(record).unwrap();
///     match record.event {
///         Event::Yield { lane, waits: WaitKind::Turn } => assert!(lane == spawned && !replay.is_entered(lane)),
///         Event::Wake { lane, how: Wake::Deferred } => println!("{}", recording.describe(&record.event)),
///         _ => {}
///     }
/// }
/// assert!(!replay.is_alive(spawned)); // it has ended
/// let CoroutineInfo { name, created_at, .. } = &recording.lanes[spawned.0];
/// println!("{name} was created at {created_at:?}");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Replay {
    /// Each thread's stack, outermost frame first.
    stacks: Vec<Vec<Frame>>,
    /// Coroutines seen that have not ended.
    alive: Vec<bool>,
    requests: HashMap<u64, RequestState>,
    in_flight: HashMap<usize, u32>,
    /// Whether the log has lost its beginning, so that unknown frames may exist.
    forgetful: bool,
}

/// An inconsistency of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// The number of the offending event.
    pub number: u64,
    /// A description of the inconsistency.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}: {}", self.number, self.what)
    }
}

impl std::error::Error for Violation {}

impl Recording {
    /// Checks that control transfers nest on each thread, that no coroutine is entered twice, that
    /// each request passes through its states once, and that the `in_flight` counters match the
    /// requests.
    ///
    /// # Errors
    ///
    /// The first inconsistent event, or the first event that records a violation.
    pub fn check(&self) -> Result<(), Violation> {
        let mut replay = Replay::of(self);
        self.records.iter().try_for_each(|record| replay.apply(record))
    }
}

impl Replay {
    /// Creates the state before the first event.
    pub fn of(recording: &Recording) -> Replay {
        Replay {
            stacks: vec![Vec::new(); recording.threads],
            alive: vec![false; recording.lanes.len()],
            requests: HashMap::new(),
            in_flight: HashMap::new(),
            forgetful: recording.lost > 0,
        }
    }

    /// Returns a thread's stack, outermost frame first.
    pub fn stack(&self, thread: usize) -> &[Frame] {
        &self.stacks[thread]
    }

    /// Returns the coroutine whose stack a thread runs on, or `None` for the thread's own stack. A
    /// loop polled by a coroutine runs on the coroutine's stack.
    pub fn running(&self, thread: usize) -> Option<CoroutineIndex> {
        self.stacks[thread].iter().rev().find_map(|frame| match frame {
            Frame::Coroutine(lane) => Some(*lane),
            Frame::Span(_) => None,
        })
    }

    /// Returns whether a coroutine is entered on some thread.
    pub fn is_entered(&self, lane: CoroutineIndex) -> bool {
        self.stacks.iter().flatten().any(|frame| *frame == Frame::Coroutine(lane))
    }

    /// Returns whether a coroutine was created and has not ended.
    pub fn is_alive(&self, lane: CoroutineIndex) -> bool {
        self.alive[lane.0]
    }

    /// Returns the number of requests of a context that are in flight.
    pub fn in_flight(&self, context: usize) -> u32 {
        self.in_flight.get(&context).copied().unwrap_or(0)
    }

    /// Returns the number of requests of all contexts that are in flight.
    pub(super) fn total_in_flight(&self) -> u64 {
        self.in_flight.values().copied().map(u64::from).sum()
    }

    /// Applies one event. After an inconsistent event the state is a best guess.
    ///
    /// # Errors
    ///
    /// The event is inconsistent with the events before it.
    pub fn apply(&mut self, record: &Record) -> Result<(), Violation> {
        self.follow(record).map_err(|what| Violation { number: record.number, what })
    }

    fn follow(&mut self, record: &Record) -> Result<(), String> {
        let thread = record.thread;
        match &record.event {
            Event::Create(lane) => {
                self.alive[lane.0] = true;
                Ok(())
            }
            Event::Enter { lane, .. } => {
                let entered = self.is_entered(*lane);
                self.alive[lane.0] = true;
                self.stacks[thread].push(Frame::Coroutine(*lane));
                if entered { Err("a coroutine is entered that is entered already".into()) } else { Ok(()) }
            }
            Event::Yield { lane, .. } => self.close(thread, Frame::Coroutine(*lane)),
            Event::End(lane) => {
                self.alive[lane.0] = false;
                self.close(thread, Frame::Coroutine(*lane))
            }
            Event::Begin(span) => {
                self.stacks[thread].push(Frame::Span(*span));
                Ok(())
            }
            Event::Finish(span) => self.close(thread, Frame::Span(*span)),
            Event::Request { request, state } => self.request(record.context, *request, *state),
            Event::Counters { in_flight, .. } => {
                let known = self.in_flight.insert(record.context, *in_flight);
                match known {
                    Some(known) if known != *in_flight && !self.forgetful => {
                        Err(format!("the engine counts {in_flight} requests in flight, the trace {known}"))
                    }
                    _ => Ok(()),
                }
            }
            Event::Violation(what) => Err(what.clone()),
            Event::Wake { .. } | Event::Acquire | Event::Release | Event::Mark(_) => Ok(()),
        }
    }

    fn close(&mut self, thread: usize, frame: Frame) -> Result<(), String> {
        let stack = &mut self.stacks[thread];
        if stack.last() == Some(&frame) {
            stack.pop();
            return Ok(());
        }
        match stack.iter().rposition(|open| *open == frame) {
            Some(place) => {
                let inner = stack[place + 1..].to_vec();
                stack.truncate(place);
                Err(format!("{frame:?} ended before {inner:?} inside it"))
            }
            None if self.forgetful && stack.is_empty() => Ok(()),
            None => Err(format!("{frame:?} ended but never began")),
        }
    }

    fn request(&mut self, context: usize, request: u64, state: RequestState) -> Result<(), String> {
        use RequestState::{Cancelled, Done, InFlight, Pending, Refused};
        let before = self.requests.insert(request, state);
        let count = self.in_flight.entry(context).or_insert(0);
        match state {
            InFlight => *count = count.saturating_add(1),
            Done(_) => *count = count.saturating_sub(1),
            Pending | Refused(_) | Cancelled => {}
        }
        let fits = match (before, state) {
            (None, Pending) | (Some(Pending), InFlight | Refused(_) | Cancelled) | (Some(InFlight), Done(_)) => true,
            (None, _) => self.forgetful,
            (Some(_), _) => false,
        };
        if fits {
            return Ok(());
        }
        let before = before.map_or("unknown".into(), |before| before.to_string());
        Err(format!("request {request} is {state} but was {before}"))
    }
}
