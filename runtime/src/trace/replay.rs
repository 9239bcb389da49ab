//! A recording, gone through event by event: who is on the stack, who lives, what each request has come to.

use std::collections::HashMap;
use std::fmt;

use super::event::{Event, Lane, Record, Recording, RequestState, Span};

/// One thing that has begun on a thread and is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A coroutine that is entered.
    Coroutine(Lane),
    /// A piece of work of the loop or an engine.
    Span(Span),
}

/// How many frames of a stack are the same after an event, from the outermost on.
pub(super) fn kept(before: &[Frame], after: &[Frame]) -> usize {
    before.iter().zip(after).take_while(|(before, after)| before == after).count()
}

/// The state that a recording has led to.
#[derive(Clone, Debug)]
pub struct Replay {
    /// For each thread, what has begun there, outermost first.
    stacks: Vec<Vec<Frame>>,
    /// Coroutines that were seen and have not ended.
    alive: Vec<bool>,
    requests: HashMap<u64, RequestState>,
    in_flight: HashMap<usize, u32>,
    /// The log has lost its beginning: what it does not know may have been there.
    forgetful: bool,
}

/// A recording that cannot be: where, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// The record's number.
    pub number: u64,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event {}: {}", self.number, self.what)
    }
}

impl std::error::Error for Violation {}

impl Recording {
    /// Checks that control transfers nest on each thread, that no coroutine is entered twice, that each request goes through
    /// its states once, and that the counters of those in flight add up.
    ///
    /// # Errors
    ///
    /// The first event that does not fit, or that says itself that a rule was broken.
    pub fn check(&self) -> Result<(), Violation> {
        let mut replay = Replay::of(self);
        self.records.iter().try_for_each(|record| replay.apply(record))
    }
}

impl Replay {
    /// Before the first event.
    pub fn of(recording: &Recording) -> Replay {
        Replay {
            stacks: vec![Vec::new(); recording.threads],
            alive: vec![false; recording.lanes.len()],
            requests: HashMap::new(),
            in_flight: HashMap::new(),
            forgetful: recording.lost > 0,
        }
    }

    /// What has begun on a thread and is not over, outermost first.
    pub fn stack(&self, thread: usize) -> &[Frame] {
        &self.stacks[thread]
    }

    /// The coroutine on whose stack a thread is: a loop that a coroutine polls runs on that one's. `None`: on its own.
    pub fn running(&self, thread: usize) -> Option<Lane> {
        self.stacks[thread].iter().rev().find_map(|frame| match frame {
            Frame::Coroutine(lane) => Some(*lane),
            Frame::Span(_) => None,
        })
    }

    /// Whether a coroutine is on some thread's stack.
    pub fn is_entered(&self, lane: Lane) -> bool {
        self.stacks.iter().flatten().any(|frame| *frame == Frame::Coroutine(lane))
    }

    /// Whether a coroutine was made, and has not ended.
    pub fn is_alive(&self, lane: Lane) -> bool {
        self.alive[lane.0]
    }

    /// Requests of a context that the kernel has.
    pub fn in_flight(&self, context: usize) -> u32 {
        self.in_flight.get(&context).copied().unwrap_or(0)
    }

    /// Goes on by one event. The state is as good as it can be also when that event does not fit.
    ///
    /// # Errors
    ///
    /// The event does not fit.
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
                        Err(format!("the engine counts {in_flight} in flight, and {known} are"))
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
                Err(format!("{frame:?} is over, while {inner:?} in it are not"))
            }
            None if self.forgetful && stack.is_empty() => Ok(()),
            None => Err(format!("{frame:?} is over, and has not begun")),
        }
    }

    fn request(&mut self, context: usize, request: u64, state: RequestState) -> Result<(), String> {
        use RequestState::{Done, InFlight, Pending, Refused, TakenBack};
        let before = self.requests.insert(request, state);
        let count = self.in_flight.entry(context).or_insert(0);
        match state {
            InFlight => *count += 1,
            Done(_) => *count = count.saturating_sub(1),
            Pending | Refused(_) | TakenBack => {}
        }
        let fits = match (before, state) {
            (None, Pending) | (Some(Pending), InFlight | Refused(_) | TakenBack) | (Some(InFlight), Done(_)) => true,
            (None, _) => self.forgetful,
            (Some(_), _) => false,
        };
        if fits {
            return Ok(());
        }
        let before = before.map_or("unheard of".into(), |before| before.to_string());
        Err(format!("request {request} is {state}, and was {before}"))
    }
}
