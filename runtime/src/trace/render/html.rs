//! Renders a recording as one self-contained HTML page.
//!
//! This module computes the drawing with [`Replay`]: rows of bars, events with their arrows, and
//! the stack at each event. The page's script (`html/`) only draws the visible part and scrolls.
//!
//! ```text
//!   row         thread ..    coroutine ..     kernel    requests
//!   its levels  per frame    one              one       one per live request
//!   a level     non-overlapping bars [begin, end, state, depth, label, coroutine]
//! ```

mod rows;
mod sources;

use std::collections::HashMap;
use std::fmt::{Display, Write};

use crate::trace::event::{CoroutineIndex, Event, Record, Recording, RequestState, WaitKind, Wake};
use crate::trace::render::json::Quoted;
use crate::trace::render::text::{TextOptions, thread_label};
use crate::trace::replay::{Frame, Replay, kept};
use rows::{Bar, Row, State, arrange};
use sources::{Lines, Names, Stack, files};

const PAGE: &str = include_str!("html/page.html");
const STYLE: &str = concat!(include_str!("html/page.css"), include_str!("html/code.css"));
const SCRIPT: &str = concat!(include_str!("html/code.js"), include_str!("html/page.js"));

impl Recording {
    /// Renders the recording as a self-contained HTML page. If the events
    /// [have their lines](crate::trace::Trace::with_source), the page contains the source files
    /// that are found, and shows for each event the current line of each stack. `#event=31`
    /// after the page's address opens it at that event.
    pub fn html(&self) -> String {
        self.html_titled("Trace", None)
    }

    /// Does the same as [`html`](Self::html), with a title and the message of the run's failure, if
    /// it failed; the page opens at the failure.
    pub fn html_titled(&self, title: &str, failure: Option<&str>) -> String {
        let title = title.replace('&', "&amp;").replace('<', "&lt;");
        let data = Drawing::of(self).json(failure);
        let mut page = String::with_capacity(data.len() + PAGE.len() + STYLE.len() + SCRIPT.len());
        let mut rest = PAGE;
        // In this order, so that inserted text is never searched for a placeholder.
        for (mark, text) in [("{{title}}", &*title), ("{{style}}", STYLE), ("{{data}}", &*data), ("{{script}}", SCRIPT)]
        {
            let Some((before, after)) = rest.split_once(mark) else {
                unreachable!("page.html has the placeholders in this order")
            };
            page.push_str(before);
            page.push_str(text);
            rest = after;
        }
        page + rest
    }
}

/// Interned strings.
#[derive(Default)]
struct Strings {
    places: HashMap<String, usize>,
}

impl Strings {
    fn place(&mut self, text: impl Display) -> usize {
        let next = self.places.len();
        *self.places.entry(text.to_string()).or_insert(next)
    }
}

struct Drawing<'a> {
    recording: &'a Recording,
    replay: Replay,
    strings: Strings,
    rows: Vec<Row>,
    /// The row of each coroutine.
    places: Vec<usize>,
    waits: Vec<Option<WaitKind>>,
    /// Live requests: level and state.
    requests: HashMap<u64, (usize, RequestState)>,
    slots: Vec<bool>,
    stacks: HashMap<Vec<usize>, usize>,
    /// Seven numbers per event: its number, kind, source row, target row, text, source line, stack.
    events: Vec<i64>,
    /// Event, in flight, pending; one entry per change.
    counts: Vec<usize>,
    violations: Vec<(usize, usize)>,
    names: Names,
    lines: Lines,
}

impl<'a> Drawing<'a> {
    fn of(recording: &'a Recording) -> Drawing<'a> {
        let mut rows: Vec<_> = (0..recording.threads).map(|n| Row::new("thread", thread_label(n))).collect();
        let (places, labels) = arrange(recording);
        let places = places.into_iter().map(|place| rows.len() + place).collect();
        rows.extend(labels.into_iter().map(|label| Row::new("coroutine", label)));
        rows.push(Row::new("kernel", "kernel"));
        rows.push(Row::new("requests", "requests"));
        let mut drawing = Drawing {
            recording,
            replay: Replay::of(recording),
            strings: Strings::default(),
            rows,
            places,
            waits: vec![None; recording.lanes.len()],
            requests: HashMap::new(),
            slots: Vec::new(),
            stacks: HashMap::new(),
            events: Vec::new(),
            counts: vec![0, 0, 0],
            violations: Vec::new(),
            names: Names::default(),
            lines: Lines::default(),
        };
        for (at, record) in recording.records.iter().enumerate() {
            drawing.step(at, record);
        }
        for level in drawing.rows.iter_mut().flat_map(|row| &mut row.levels) {
            level.set(recording.records.len(), None);
        }
        drawing
    }

    fn kernel(&self) -> usize {
        self.rows.len() - 2
    }

    fn actor(&self, thread: usize) -> usize {
        self.replay.running(thread).map_or(thread, |lane| self.places[lane.0])
    }

    fn step(&mut self, at: usize, record: &Record) {
        let thread = record.thread;
        let actor = self.actor(thread);
        let running = self.running(thread);
        let before = self.replay.stack(thread).to_vec();
        let misfit = self.replay.apply(record).err();
        let after = self.replay.stack(thread).to_vec();
        if let Event::Yield { lane, waits } = record.event {
            self.waits[lane.0] = Some(waits);
        }
        for level in kept(&before, &after)..before.len().max(after.len()) {
            let bar = after.get(level).map(|frame| self.frame(level, *frame));
            self.rows[thread].set(level, at, bar);
        }
        let created = match record.event {
            Event::Create(lane) => Some(Frame::Coroutine(lane)),
            _ => None,
        };
        for frame in before.iter().chain(&after).copied().chain(created) {
            if let Frame::Coroutine(lane) = frame {
                let bar = self.standing(lane);
                self.rows[self.places[lane.0]].set(0, at, bar);
            }
        }
        if let Event::Request { request, state } = record.event {
            self.request(at, request, state);
        }
        if let Some(misfit) = misfit {
            let what = self.strings.place(misfit.what);
            self.violations.push((at, what));
        }
        // The longer stack contains both the frames that ended and those that began.
        let stack = if after.len() < before.len() { before } else { after };
        self.event(record, actor, &stack);
        self.stand(record, running, &stack);
    }

    fn running(&self, thread: usize) -> Stack {
        self.replay.running(thread).map_or(Stack::Thread(thread), |lane| Stack::Coroutine(lane.0))
    }

    /// Notes where the stacks of this thread stand, that of the event first.
    fn stand(&mut self, record: &Record, of_event: Stack, frames: &[Frame]) {
        if let Some(line) = record.calls.first() {
            let line = self.strings.place(self.names.line(line));
            self.lines.set(of_event, line);
            if let Event::Create(lane) = record.event {
                self.lines.set(Stack::Coroutine(lane.0), line);
            }
        }
        let mut stacks = vec![(Stack::Thread(record.thread), self.strings.place(thread_label(record.thread)), 0)];
        for (depth, frame) in frames.iter().enumerate() {
            if let Frame::Coroutine(lane) = frame {
                stacks.push((Stack::Coroutine(lane.0), self.strings.place(self.recording.frame(*frame)), depth));
            }
        }
        stacks.sort_by_key(|(stack, ..)| *stack != of_event);
        self.lines.push(stacks.into_iter());
    }

    fn frame(&mut self, depth: usize, frame: Frame) -> Bar {
        let label = Some(self.strings.place(self.recording.frame(frame)));
        let lane = match frame {
            Frame::Coroutine(lane) => Some(lane),
            Frame::Span(_) => None,
        };
        Bar { state: State::Frame, depth, label, lane }
    }

    /// Returns the current state of a coroutine's row.
    fn standing(&mut self, lane: CoroutineIndex) -> Option<Bar> {
        let bar = |state, depth, label| Some(Bar { state, depth, label, lane: Some(lane) });
        for thread in 0..self.recording.threads {
            if let Some(depth) = self.replay.stack(thread).iter().rposition(|frame| *frame == Frame::Coroutine(lane)) {
                let runs = self.replay.running(thread) == Some(lane);
                return bar(if runs { State::Runs } else { State::OnStack }, depth, None);
            }
        }
        let label = self.waits[lane.0].map(|waits| self.strings.place(waits));
        if self.replay.is_alive(lane) { bar(State::Suspended, 0, label) } else { None }
    }

    fn request(&mut self, at: usize, request: u64, state: RequestState) {
        let level = match self.requests.remove(&request) {
            Some((level, _)) => level,
            None => self.slots.iter().position(|taken| !taken).unwrap_or_else(|| {
                self.slots.push(false);
                self.slots.len() - 1
            }),
        };
        let alive = match state {
            RequestState::Pending => Some(State::Pending),
            RequestState::InFlight => Some(State::InFlight),
            RequestState::Done(_) | RequestState::Refused(_) | RequestState::Cancelled => None,
        };
        let label = Some(self.strings.place(request));
        let bar = alive.map(|state| Bar { state, depth: 0, label, lane: None });
        let last = self.rows.len() - 1;
        self.rows[last].set(level, at, bar);
        self.slots[level] = alive.is_some();
        if alive.is_some() {
            self.requests.insert(request, (level, state));
        }
        self.count(at);
    }

    fn count(&mut self, at: usize) {
        let is = |wanted| self.requests.values().filter(|(_, state)| *state == wanted).count();
        let (in_flight, pending) = (is(RequestState::InFlight), is(RequestState::Pending));
        if self.counts[self.counts.len() - 2..] != [in_flight, pending] {
            self.counts.extend([at, in_flight, pending]);
            let label = Some(self.strings.place(in_flight));
            let bar = Bar { state: State::Kernel, depth: 0, label, lane: None };
            let kernel = self.kernel();
            self.rows[kernel].set(0, at, (in_flight > 0).then_some(bar));
        }
    }

    fn event(&mut self, record: &Record, actor: usize, stack: &[Frame]) {
        let (kind, from, to) = match &record.event {
            Event::Create(lane) => ("create", actor, self.places[lane.0]),
            Event::Enter { lane, .. } => ("enter", actor, self.places[lane.0]),
            Event::Yield { .. } => ("yield", actor, self.actor(record.thread)),
            Event::End(_) => ("end", actor, self.actor(record.thread)),
            Event::Wake { lane, how: Wake::AlreadyEntered } => ("left", actor, self.places[lane.0]),
            Event::Wake { lane, .. } => ("wake", actor, self.places[lane.0]),
            Event::Request { state: RequestState::InFlight, .. } => ("submit", actor, self.kernel()),
            Event::Request { state: RequestState::Done(_), .. } => ("done", self.kernel(), actor),
            Event::Request { .. } => ("request", actor, actor),
            Event::Begin(_) => ("begin", actor, actor),
            Event::Finish(_) => ("finish", actor, actor),
            Event::Counters { .. } | Event::Acquire | Event::Release => ("detail", actor, actor),
            Event::Violation(_) => ("violation", actor, actor),
            Event::Mark(_) => ("mark", actor, actor),
        };
        let kind = self.strings.place(kind);
        let words = self.strings.place(self.recording.describe(&record.event));
        let source = match (record.calls.first(), record.at) {
            (Some(line), _) => Some(self.strings.place(self.names.line(line))),
            (None, at) => at.map(|at| self.strings.place(format_args!("{}:{}", at.file(), at.line()))),
        };
        let thread = self.strings.place(thread_label(record.thread));
        let frames = stack.iter().map(|frame| self.strings.place(self.recording.frame(*frame)));
        let chain: Vec<_> = [thread].into_iter().chain(frames).collect();
        let next = self.stacks.len();
        let stack = *self.stacks.entry(chain).or_insert(next);
        let source = source.map_or(-1, |source| source as i64);
        let numbers = [record.number as i64, kind as i64, from as i64, to as i64, words as i64, source, stack as i64];
        self.events.extend(numbers);
    }

    fn json(self, failure: Option<&str>) -> String {
        let mut strings: Vec<_> = self.strings.places.iter().collect();
        strings.sort_unstable_by_key(|(_, place)| **place);
        let mut stacks: Vec<_> = self.stacks.iter().collect();
        stacks.sort_unstable_by_key(|(_, place)| **place);
        let mut rows = Vec::new();
        for row in &self.rows {
            let (label, levels) = (Quoted(&row.label), list(row.levels.iter().map(|level| list(&level.numbers))));
            rows.push(format!("\n{{\"kind\":\"{}\",\"label\":{label},\"levels\":{levels}}}", row.kind));
        }
        let files = files(self.recording)
            .into_iter()
            .map(|(path, text)| format!("\n{{\"path\":{},\"text\":{}}}", Quoted(&path), Quoted(&text)));
        let (lines, at) = self.lines.finish();
        let lines = lines.iter().map(|list| self::list(list.iter().map(self::list)));
        let shown = self.recording.shown(TextOptions::default());
        let mut json = String::from("{");
        let _ = writeln!(json, "\"lost\":{},", self.recording.lost);
        let _ = writeln!(json, "\"failure\":{},", Quoted(failure.unwrap_or_default()));
        let _ = writeln!(json, "\"strings\":{},", list(strings.iter().map(|(text, _)| Quoted(text))));
        let _ = writeln!(json, "\"lanes\":{},", list(self.recording.lanes.iter().map(|lane| Quoted(&lane.name))));
        let _ = writeln!(json, "\"rows\":{},", list(rows));
        let _ = writeln!(json, "\"stacks\":{},", list(stacks.iter().map(|(chain, _)| list(chain.iter()))));
        let _ = writeln!(json, "\"events\":{},", list(&self.events));
        let _ = writeln!(json, "\"hidden\":{},", list((0..shown.len()).filter(|at| !shown[*at])));
        let _ = writeln!(json, "\"counts\":{},", list(&self.counts));
        let _ = writeln!(json, "\"files\":{},", list(files));
        let _ = writeln!(json, "\"lines\":{},", list(lines));
        let _ = writeln!(json, "\"at\":{},", list(at));
        let violations = self.violations.iter().map(|(at, what)| format!("[{at},{what}]"));
        let _ = write!(json, "\"violations\":{}}}", list(violations));
        json
    }
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    let mut text = String::from("[");
    for (n, item) in items.into_iter().enumerate() {
        let _ = write!(text, "{}{item}", if n > 0 { "," } else { "" });
    }
    text + "]"
}
