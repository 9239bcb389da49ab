//! An act as data: one step for each row of its lanes.
//!
//! A stack is identified by a number: that of the coroutine, or -1, -2 .. for the threads' own.

use std::collections::{BTreeMap, HashMap};

use coralio::trace::{CoroutineIndex, Event, Frame, Record, Recording, Replay, RequestState, TextOptions};
use coralio_runtime::report;
use serde_json::{Value, json};

use crate::lessons::SourceFile;

/// The state after a step, and the step.
pub(crate) struct Step {
    /// The event's number as the lanes show it.
    pub(crate) number: String,
    /// The part of the row that is a picture.
    pub(crate) picture: String,
    /// The description of the event, and its indentation.
    pub(crate) words: String,
    pub(crate) indent: usize,
    /// What the log's checker has found.
    pub(crate) note: String,
    pub(crate) kind: &'static str,
    /// The stack on which the event happened.
    pub(crate) actor: i64,
    /// The stack that runs afterwards.
    pub(crate) running: i64,
    /// Whether the source line of this event is known.
    has_line: bool,
    /// The frames of each thread, outermost first.
    stacks: Vec<Vec<Value>>,
    /// The suspended coroutines, and for what they wait.
    suspended: Vec<(usize, String)>,
    /// The file and line of each stack.
    lines: BTreeMap<i64, (usize, u32)>,
    /// The live requests: number, owner, whether the kernel has it.
    requests: Vec<(u64, i64, bool)>,
    /// The numbers of requests in flight and pending, and of plugs; `None` without an engine.
    pub(crate) counters: Option<[u32; 3]>,
}

impl Step {
    pub(crate) fn json(&self) -> Value {
        let lines: Vec<_> = self.lines.iter().map(|(stack, (file, line))| json!([stack, file, line])).collect();
        json!([
            self.number,
            self.picture,
            self.words,
            self.indent,
            self.note,
            self.kind,
            self.actor,
            self.running,
            u8::from(self.has_line),
            self.stacks,
            self.suspended,
            lines,
            self.requests,
            self.counters,
        ])
    }
}

/// Returns the heading of the lanes, and the steps of a run. Reports where a sound engine's counters
/// are not the numbers of its requests.
pub(crate) fn steps(recording: &Recording, files: &[SourceFile], is_sound: bool) -> (String, Vec<Step>) {
    let text = recording.text_with(TextOptions::default().without_legend());
    let mut rows = text.lines().peekable();
    let heading = rows.next().unwrap_or_default().chars().skip(PREFIX).collect();
    let hidden = hidden(recording);
    let mut follower = Follower::of(recording, files, is_sound);
    let mut steps = Vec::new();
    for (at, record) in recording.records.iter().enumerate() {
        let mut step = follower.step(record);
        if hidden.contains(&at) {
            continue;
        }
        let row = rows.next().expect("a row for each event that is shown");
        step.number = row.chars().take(PREFIX).collect::<String>().trim().into();
        let picture: String = row.strip_suffix(&step.words).unwrap_or(row).chars().skip(PREFIX).collect();
        step.picture = picture.trim_end().into();
        step.indent = picture.chars().count();
        if let Some(note) = rows.next_if(|row| row.trim_start().starts_with("!! ")) {
            step.note = note.trim().into();
        }
        steps.push(step);
    }
    // The descriptions are indented relative to the outermost.
    let least = steps.iter().map(|step| step.indent).min().unwrap_or(0);
    steps.iter_mut().for_each(|step| step.indent -= least);
    (heading, steps)
}

/// The width of the number before each row.
const PREFIX: usize = 7;

/// Returns the places of the events that the lanes leave out, as the trace page does.
fn hidden(recording: &Recording) -> Vec<usize> {
    let page = recording.html();
    let (_, rest) = page.split_once("\"hidden\":").expect("the page's data has it");
    let (list, _) = rest.split_once('\n').expect("one line each");
    serde_json::from_str(list.trim_end_matches(',')).expect("a list of numbers")
}

struct Follower<'a> {
    recording: &'a Recording,
    files: &'a [SourceFile],
    replay: Replay,
    lines: BTreeMap<i64, (usize, u32)>,
    waits: HashMap<usize, String>,
    requests: BTreeMap<u64, (i64, bool)>,
    /// Whether the engine's counters must match its requests: not so in an act with a faulty
    /// engine.
    is_sound: bool,
    /// The number of plugs in the last event with counters.
    plugs: Option<u32>,
}

impl<'a> Follower<'a> {
    fn of(recording: &'a Recording, files: &'a [SourceFile], is_sound: bool) -> Follower<'a> {
        Follower {
            is_sound,
            recording,
            files,
            replay: Replay::of(recording),
            lines: BTreeMap::new(),
            waits: HashMap::new(),
            requests: BTreeMap::new(),
            plugs: None,
        }
    }

    fn running(&self, thread: usize) -> i64 {
        self.replay.running(thread).map_or(-1 - thread as i64, |lane| lane.0 as i64)
    }

    /// Returns the innermost line on the stack that is in one of the files. Returns a line of the
    /// lessons' common module only if there has been no other line on that stack.
    fn line(&self, record: &Record, stack: i64) -> Option<(usize, u32)> {
        let lines = |common: bool| {
            record.calls.iter().find_map(|call| {
                let path = call.file.to_string_lossy();
                let is_it = |file: &SourceFile| {
                    file.is_common() == common
                        && path.strip_suffix(file.path).is_some_and(|before| before.ends_with("examples/"))
                };
                Some((self.files.iter().position(is_it)?, call.line))
            })
        };
        let has_own = self.lines.get(&stack).is_some_and(|(file, _)| !self.files[*file].is_common());
        lines(false).or_else(|| if has_own { None } else { lines(true) })
    }

    fn step(&mut self, record: &Record) -> Step {
        let actor = self.running(record.thread);
        let line = self.line(record, actor);
        if let Some(line) = line {
            self.lines.insert(actor, line);
            if let Event::Create(lane) = record.event {
                self.lines.insert(lane.0 as i64, line);
            }
        }
        // An inconsistency has a row of its own.
        let _ = self.replay.apply(record);
        match &record.event {
            Event::Yield { lane, waits } => _ = self.waits.insert(lane.0, waits.to_string()),
            Event::Request { request, state } => self.request(*request, *state, actor),
            // An engine logs its counters only when it submits, so the numbers of requests in
            // flight and pending are derived from the events of requests.
            Event::Counters { in_flight, pending, plugged } => {
                self.plugs = Some(*plugged);
                let counted = self.counters();
                if self.is_sound && counted != Some([*in_flight, *pending, *plugged]) {
                    report(format_args!("the engine counts {in_flight} and {pending}, the page {counted:?}"));
                }
            }
            _ => {}
        }
        let recording = self.recording;
        let frame = |frame: &Frame| match frame {
            Frame::Coroutine(lane) => json!(lane.0),
            Frame::Span(span) => json!(span.to_string()),
        };
        let suspended = (0..recording.lanes.len())
            .filter(|lane| {
                self.replay.is_alive(CoroutineIndex(*lane)) && !self.replay.is_entered(CoroutineIndex(*lane))
            })
            .map(|lane| (lane, self.waits.get(&lane).cloned().unwrap_or_default()))
            .collect();
        Step {
            number: String::new(),
            picture: String::new(),
            words: recording.describe(&record.event).to_string(),
            indent: 0,
            note: String::new(),
            kind: kind(&record.event),
            actor,
            running: self.running(record.thread),
            has_line: line.is_some(),
            stacks: (0..recording.threads).map(|n| self.replay.stack(n).iter().map(frame).collect()).collect(),
            suspended,
            lines: self.lines.clone(),
            requests: self.requests.iter().map(|(request, (owner, taken))| (*request, *owner, *taken)).collect(),
            counters: self.counters(),
        }
    }

    fn counters(&self) -> Option<[u32; 3]> {
        let count = |taken| self.requests.values().filter(|(_, in_flight)| *in_flight == taken).count() as u32;
        (self.plugs.is_some() || !self.requests.is_empty())
            .then(|| [count(true), count(false), self.plugs.unwrap_or(0)])
    }

    fn request(&mut self, request: u64, state: RequestState, actor: i64) {
        match state {
            RequestState::Pending => _ = self.requests.insert(request, (actor, false)),
            RequestState::InFlight => self.requests.entry(request).or_insert((actor, true)).1 = true,
            RequestState::Done(_) | RequestState::Refused(_) | RequestState::Cancelled => {
                self.requests.remove(&request);
            }
        }
    }
}

fn kind(event: &Event) -> &'static str {
    match event {
        Event::Create(_) => "create",
        Event::Enter { .. } => "enter",
        Event::Yield { .. } => "yield",
        Event::End(_) => "end",
        Event::Wake { .. } => "wake",
        Event::Begin(_) | Event::Finish(_) => "work",
        Event::Request { .. } => "request",
        Event::Violation(_) => "violation",
        Event::Mark(_) => "mark",
        Event::Counters { .. } | Event::Acquire | Event::Release => "detail",
    }
}
