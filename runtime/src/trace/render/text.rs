//! Renders a recording as text lanes: a column for each thread and coroutine, and for the kernel if
//! there was I/O; a row for each event that is shown, numbered in sequence. The description of an
//! event is indented by the spans around it, which makes rows for the ends of spans unnecessary.
//!
//! ```text
//!        thread  A     B     kernel
//!     3  ●───────▶     ┊             enters A
//!     4  │       ●·····▷               wakes B: runs when this one yields
//!     5  │       ●×    ┊               A is entered: left alone
//!     6  ◀╌╌╌╌╌╌╌●     ┊             A yields, waits for I/O
//! ```

use std::fmt::Write;

use crate::trace::event::{CoroutineIndex, Event, Record, Recording, RequestState, Span, Wake};
use crate::trace::replay::Replay;

/// Options for [`Recording::text_with`].
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TextOptions {
    /// Show file and line at the end of each row.
    pub sources: bool,
    /// Show submits, reaps and callbacks in which nothing happened, and the ends of spans.
    pub empty: bool,
    /// Show counters, and acquires and releases of the context's lock.
    pub counters: bool,
    /// Omit the legend.
    pub without_legend: bool,
}

impl TextOptions {
    /// Returns options that show source lines.
    #[must_use]
    pub fn sources(mut self) -> TextOptions {
        self.sources = true;
        self
    }

    /// Returns options without the legend, for one picture of several.
    #[must_use]
    pub fn without_legend(mut self) -> TextOptions {
        self.without_legend = true;
        self
    }

    /// Returns options that show everything.
    #[must_use]
    pub fn everything() -> TextOptions {
        TextOptions { sources: true, empty: true, counters: true, without_legend: false }
    }
}

/// Returns the label of a thread.
pub(super) fn thread_label(thread: usize) -> String {
    if thread == 0 { "thread".into() } else { format!("thread {thread}") }
}

const LEGEND: &str = "\
● runs, or the loop on its stack   │ on the stack, waits for an enter to return   ┊ suspended   ○ created   ■ ended
─▶ enters, or ends and returns   ╌▶ yields to   ·▷ wakes   × leaves alone: is entered   ═▶ submits or completes a request
column kernel: the operating system, or the backend that simulates it; digits: the number of requests in flight\n\n";

impl Recording {
    /// Renders the recording as text lanes. Identical runs give identical text, byte for byte.
    pub fn text(&self) -> String {
        self.text_with(TextOptions::default())
    }

    /// Does the same as [`text`](Self::text), with options.
    pub fn text_with(&self, options: TextOptions) -> String {
        let columns = Columns::of(self);
        let mut text = String::from(if options.without_legend { "" } else { LEGEND });
        columns.heading(&mut text);
        if self.lost > 0 {
            let _ = writeln!(text, "       ({} events before these are lost)", self.lost);
        }
        let shown = self.shown(options);
        let mut replay = Replay::of(self);
        // The numbers count rows, not events. If all events are shown, both numbers are the same.
        let mut number = self.lost;
        for (record, shown) in self.records.iter().zip(shown) {
            let actor = columns.actor(&replay, record.thread);
            let depth = replay.stack(record.thread).len();
            let misfit = replay.apply(record).err();
            if shown {
                let _ = write!(text, "{number:>5}  ");
                columns.row(&mut text, &replay, record, (actor, depth), options);
                number += 1;
            }
            // A recorded violation is shown as an event.
            if let Some(misfit) = misfit.filter(|_| !matches!(record.event, Event::Violation(_))) {
                let _ = writeln!(text, "       !! {}", misfit.what);
            }
        }
        text
    }

    /// Decides which records get a row.
    pub(super) fn shown(&self, options: TextOptions) -> Vec<bool> {
        let mut shown: Vec<_> = self
            .records
            .iter()
            .map(|record| {
                options.counters || !matches!(record.event, Event::Counters { .. } | Event::Acquire | Event::Release)
            })
            .collect();
        if !options.empty {
            self.hide_empty(&mut shown);
        }
        shown
    }

    /// Hides the ends of spans, and those submits, reaps and other spans in which nothing is shown.
    fn hide_empty(&self, shown: &mut [bool]) {
        // For each thread, its open spans: the record of the beginning, and whether a row inside is
        // shown.
        let mut open: Vec<Vec<(usize, bool)>> = vec![Vec::new(); self.threads];
        for (place, record) in self.records.iter().enumerate() {
            let open = &mut open[record.thread];
            match record.event {
                Event::Begin(_) => open.push((place, false)),
                Event::Finish(span) => {
                    shown[place] = false;
                    match open.pop() {
                        // Empty iterations and sleeps of the loop are of interest.
                        Some((_, false)) if matches!(span, Span::Round | Span::Sleep) => {
                            open.iter_mut().for_each(|(_, something)| *something = true);
                        }
                        Some((begin, false)) => shown[begin] = false,
                        _ => {}
                    }
                }
                _ if shown[place] => open.iter_mut().for_each(|(_, something)| *something = true),
                _ => {}
            }
        }
    }
}

/// The layout of the columns.
struct Columns<'a> {
    recording: &'a Recording,
    /// Labels and places: threads, coroutines, the kernel.
    labels: Vec<(String, usize)>,
    width: usize,
}

impl<'a> Columns<'a> {
    fn of(recording: &'a Recording) -> Columns<'a> {
        let threads = (0..recording.threads).map(thread_label);
        let lanes = recording.lanes.iter().map(|lane| lane.name.clone());
        let mut place = 0;
        let has_requests = recording
            .records
            .iter()
            .any(|record| matches!(record.event, Event::Request { .. } | Event::Counters { .. }));
        let labels: Vec<_> = threads
            .chain(lanes)
            .chain(has_requests.then(|| "kernel".into()))
            .map(|label: String| {
                let here = place;
                place += label.chars().count().max(4) + 2;
                (label, here)
            })
            .collect();
        Columns { recording, labels, width: place }
    }

    fn heading(&self, text: &mut String) {
        text.push_str("       ");
        for (label, place) in &self.labels {
            let next = self.labels.iter().map(|(_, place)| *place).find(|next| next > place).unwrap_or(self.width);
            let _ = write!(text, "{label:<0$}", next - place);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }

    fn lane(&self, lane: CoroutineIndex) -> usize {
        self.recording.threads + lane.0
    }

    fn kernel(&self) -> usize {
        self.labels.len() - 1
    }

    /// Returns the column of the stack that a thread runs on.
    fn actor(&self, replay: &Replay, thread: usize) -> usize {
        replay.running(thread).map_or(thread, |lane| self.lane(lane))
    }

    /// Draws the row, without its number, of an event that happened in column `before`, within
    /// `depth` open spans.
    fn row(
        &self,
        text: &mut String,
        after: &Replay,
        record: &Record,
        (before, depth): (usize, usize),
        options: TextOptions,
    ) {
        let mut cells = vec![' '; self.width];
        for thread in 0..self.recording.threads {
            cells[self.labels[thread].1] = if after.stack(thread).is_empty() { '┊' } else { '│' };
        }
        for lane in (0..self.recording.lanes.len()).map(CoroutineIndex).filter(|lane| after.is_alive(*lane)) {
            cells[self.labels[self.lane(lane)].1] = if after.is_entered(lane) { '│' } else { '┊' };
        }
        let count = after.total_in_flight();
        if count > 0 {
            for (cell, digit) in cells[self.labels[self.kernel()].1..].iter_mut().zip(count.to_string().chars()) {
                *cell = digit;
            }
        }
        cells[self.labels[before].1] = '●';
        let now = self.actor(after, record.thread);
        match &record.event {
            Event::Create(lane) => self.arrow(&mut cells, before, self.lane(*lane), '·', '○'),
            Event::Enter { lane, .. } => self.arrow(&mut cells, before, self.lane(*lane), '─', '▶'),
            Event::Yield { .. } => self.arrow(&mut cells, before, now, '╌', '◀'),
            Event::End(_) => {
                self.arrow(&mut cells, before, now, '─', '◀');
                cells[self.labels[before].1] = '■';
            }
            Event::Wake { lane, how } => {
                let head = if *how == Wake::AlreadyEntered { '×' } else { '▷' };
                let (from, to) = (self.labels[before].1, self.lane(*lane));
                self.arrow(&mut cells, before, to, '·', head);
                if before == to {
                    cells[from + 1] = head;
                }
            }
            Event::Request { state: RequestState::InFlight, .. } => {
                self.arrow(&mut cells, before, self.kernel(), '═', '▶');
            }
            Event::Request { state: RequestState::Done(_), .. } => {
                self.arrow(&mut cells, self.kernel(), before, '═', '◀');
            }
            Event::Request { .. }
            | Event::Begin(_)
            | Event::Finish(_)
            | Event::Counters { .. }
            | Event::Acquire
            | Event::Release
            | Event::Violation(_)
            | Event::Mark(_) => {}
        }
        let picture: String = cells.into_iter().collect();
        // The rows that open and close a span are indented equally.
        let indent = 2 * depth.min(after.stack(record.thread).len());
        let _ = write!(text, "{picture}{:indent$}{}", "", self.recording.describe(&record.event));
        if let (true, Some(at)) = (options.sources, record.at) {
            let _ = write!(text, "  ({}:{})", at.file(), at.line());
        }
        text.push('\n');
    }

    /// Draws an arrow from one column to another.
    fn arrow(&self, cells: &mut [char], from: usize, to: usize, line: char, head: char) {
        let (start, end) = (self.labels[from].1, self.labels[to].1);
        // Both are the same column if the log has lost the enter.
        if start == end {
            return;
        }
        cells[start.min(end) + 1..start.max(end)].fill(line);
        cells[end] = match head {
            '▶' if end < start => '◀',
            '◀' if end > start => '▶',
            '▷' if end < start => '◁',
            head => head,
        };
    }
}
