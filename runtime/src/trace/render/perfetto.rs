//! Renders a recording as Chrome trace events, for <https://ui.perfetto.dev> or `chrome://tracing`.
//! The timestamps have the resolution of the clock, nanoseconds. Events with equal times, of which a
//! virtual clock gives many, are drawn 1 ns apart, in their order.
//!
//! A thread's track has a slice for each frame of its stack. A coroutine's track has slices for the
//! periods in which the coroutine is entered and in which it waits. A flow arrow leads from a wake
//! to the resulting enter. Requests are asynchronous slices, counters are counters.

use std::collections::HashSet;
use std::fmt::Display;
use std::time::Duration;

use crate::trace::event::{CoroutineIndex, Event, Record, Recording, RequestState, Wake};
use crate::trace::render::json::Quoted;
use crate::trace::render::text::thread_label;
use crate::trace::replay::{Frame, Replay, kept};

impl Recording {
    /// Renders the recording as Chrome trace-event JSON, to be opened with
    /// <https://ui.perfetto.dev>. Suited to long runs; for short ones, the page
    /// ([`html`](Self::html)) is easier to read.
    pub fn perfetto(&self) -> String {
        let mut writer = Writer {
            recording: self,
            replay: Replay::of(self),
            events: Vec::new(),
            waits: vec![false; self.lanes.len()],
            wakes: vec![Vec::new(); self.lanes.len()],
            flows: 0,
            requests: HashSet::new(),
            now: 0,
        };
        writer.names();
        for record in &self.records {
            writer.step(record);
        }
        writer.close();
        format!("{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n{}\n]}}\n", writer.events.join(",\n"))
    }

    /// Returns the name of a stack frame.
    pub(super) fn frame(&self, frame: Frame) -> String {
        match frame {
            Frame::Coroutine(lane) => self.name(lane).into(),
            Frame::Span(span) => span.to_string(),
        }
    }
}

struct Writer<'a> {
    recording: &'a Recording,
    replay: Replay,
    events: Vec<String>,
    /// Coroutines with an open wait slice.
    waits: Vec<bool>,
    /// For each coroutine, when and from which track it was woken since its last enter.
    wakes: Vec<Vec<(u64, usize)>>,
    flows: u64,
    /// Requests with an open slice.
    requests: HashSet<u64>,
    /// The time of the current event in nanoseconds.
    now: u64,
}

impl Writer<'_> {
    fn names(&mut self) {
        let threads = (0..self.recording.threads).map(|n| (n, thread_label(n)));
        let lanes =
            self.recording.lanes.iter().enumerate().map(|(n, lane)| (self.recording.threads + n, lane.name.clone()));
        let named: Vec<_> = threads.chain(lanes).collect();
        for (tid, name) in named {
            let name = Quoted(&name).to_string();
            self.put("M", 0, tid, "thread_name", &format!(",\"args\":{{\"name\":{name}}}"));
            self.put("M", 0, tid, "thread_sort_index", &format!(",\"args\":{{\"sort_index\":{tid}}}"));
        }
    }

    fn put(&mut self, phase: &str, at: u64, tid: usize, name: impl Display, more: &str) {
        let name = name.to_string();
        let name = Quoted(&name);
        // The format's unit is a microsecond.
        let (us, ns) = (at / 1000, at % 1000);
        self.events
            .push(format!("{{\"ph\":\"{phase}\",\"ts\":{us}.{ns:03},\"pid\":1,\"tid\":{tid},\"name\":{name}{more}}}"));
    }

    fn lane(&self, lane: CoroutineIndex) -> usize {
        self.recording.threads + lane.0
    }

    fn step(&mut self, record: &Record) {
        let (at, thread) = (self.tick(record.time), record.thread);
        let actor = self.replay.running(thread).map_or(thread, |lane| self.lane(lane));
        let before = self.replay.stack(thread).to_vec();
        let misfit = self.replay.apply(record).err();
        let after = self.replay.stack(thread).to_vec();
        let kept = kept(&before, &after);
        for frame in before[kept..].iter().rev() {
            self.leave(at, thread, *frame);
        }
        for frame in &after[kept..] {
            self.enter(at, thread, *frame, record);
        }
        self.write_event(at, record, actor);
        if let Some(misfit) = misfit {
            self.put("i", at, actor, format!("VIOLATION: {}", misfit.what), ",\"s\":\"g\"");
        }
    }

    fn enter(&mut self, at: u64, thread: usize, frame: Frame, record: &Record) {
        let source = record.at.map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        let args = format!(",\"args\":{{\"source\":{}}}", Quoted(&source));
        self.put("B", at, thread, self.recording.frame(frame), &args);
        if let Frame::Coroutine(lane) = frame {
            let tid = self.lane(lane);
            if std::mem::take(&mut self.waits[lane.0]) {
                self.put("E", at, tid, "waits", "");
            }
            self.put("B", at, tid, "runs", &args);
            for (woken, by) in std::mem::take(&mut self.wakes[lane.0]) {
                self.flows += 1;
                let id = format!(",\"cat\":\"wake\",\"id\":{}", self.flows);
                self.put("s", woken, by, "wake", &id);
                self.put("f", at, tid, "wake", &format!("{id},\"bp\":\"e\""));
            }
        }
    }

    fn leave(&mut self, at: u64, thread: usize, frame: Frame) {
        self.put("E", at, thread, self.recording.frame(frame), "");
        if let Frame::Coroutine(lane) = frame {
            self.put("E", at, self.lane(lane), "runs", "");
        }
    }

    /// Writes an event that does not change a stack.
    fn write_event(&mut self, at: u64, record: &Record, actor: usize) {
        match &record.event {
            Event::Yield { lane, waits } if !self.replay.is_entered(*lane) && !self.waits[lane.0] => {
                self.waits[lane.0] = true;
                self.put("B", at, self.lane(*lane), format!("waits for {waits}"), "");
            }
            Event::Wake { lane, how } => {
                self.put("i", at, actor, self.recording.describe(&record.event), ",\"s\":\"t\"");
                if *how != Wake::AlreadyEntered {
                    self.wakes[lane.0].push((at, actor));
                }
            }
            Event::Request { request, state } => self.request(at, actor, *request, *state),
            Event::Counters { in_flight, pending, .. } => {
                let args = format!(",\"args\":{{\"in flight\":{in_flight},\"pending\":{pending}}}");
                self.put("C", at, 0, format!("requests of context {}", record.context), &args);
            }
            Event::Create(_) | Event::Mark(_) => {
                self.put("i", at, actor, self.recording.describe(&record.event), ",\"s\":\"t\"");
            }
            // Written as frames, or reported as a violation.
            Event::Enter { .. }
            | Event::Yield { .. }
            | Event::End(_)
            | Event::Begin(_)
            | Event::Finish(_)
            | Event::Violation(_)
            | Event::Acquire
            | Event::Release => {}
        }
    }

    fn request(&mut self, at: u64, tid: usize, request: u64, state: RequestState) {
        let name = format!("request {request}");
        let id = format!(",\"cat\":\"request\",\"id\":{request}");
        // A request whose first event was overwritten begins at the first event that is left.
        if self.requests.insert(request) {
            self.put("b", at, tid, &name, &id);
        }
        let step = Quoted(&state.to_string()).to_string();
        self.put("n", at, tid, &name, &format!("{id},\"args\":{{\"state\":{step}}}"));
        if !matches!(state, RequestState::Pending | RequestState::InFlight) {
            self.requests.remove(&request);
            self.put("e", at, tid, &name, &id);
        }
    }

    /// Returns the timestamp of an event at `time`: later than the one before.
    fn tick(&mut self, time: Duration) -> u64 {
        self.now = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(self.now.saturating_add(1));
        self.now
    }

    /// Closes all open slices, after the last event.
    fn close(&mut self) {
        let at = self.tick(Duration::ZERO);
        for thread in 0..self.recording.threads {
            for frame in self.replay.stack(thread).to_vec().into_iter().rev() {
                self.leave(at, thread, frame);
            }
        }
        for lane in 0..self.waits.len() {
            if self.waits[lane] {
                self.put("E", at, self.lane(CoroutineIndex(lane)), "waits", "");
            }
        }
        let mut open: Vec<_> = self.requests.drain().collect();
        open.sort_unstable();
        for request in open {
            self.put("e", at, 0, format!("request {request}"), &format!(",\"cat\":\"request\",\"id\":{request}"));
        }
    }
}
