//! A recording as lanes of text: a column for each thread and coroutine, and for the kernel if there was I/O; a row for each event. The words are
//! indented by what they happen within, so that nobody need be told where it ends.
//!
//! ```text
//!        thread  A     B     kernel
//!     3  ●───────▶     ┊             enters A
//!     4  │       ●·····▷               wakes B: runs when this one yields
//!     5  ◀╌╌╌╌╌╌╌●     ┊             A yields, waits for I/O
//! ```

use std::fmt::Write;

use super::event::{Event, Lane, Record, Recording, RequestState, Span, Wake};
use super::replay::Replay;

/// What [`Recording::text_with`] shows.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TextOptions {
    /// Source lines too: file and line, at the end of each row.
    pub sources: bool,
    /// Submits, reaps and callbacks in which nothing happened, too, and where each piece of work ends.
    pub empty: bool,
    /// Counters, and the context's lock being taken and given up, too.
    pub counters: bool,
    /// Not what the signs mean.
    pub without_legend: bool,
}

impl TextOptions {
    /// Source lines too.
    #[must_use]
    pub fn sources(mut self) -> TextOptions {
        self.sources = true;
        self
    }

    /// Not what the signs mean: for one picture of several.
    #[must_use]
    pub fn without_legend(mut self) -> TextOptions {
        self.without_legend = true;
        self
    }

    /// All there is.
    #[must_use]
    pub fn everything() -> TextOptions {
        TextOptions { sources: true, empty: true, counters: true, without_legend: false }
    }
}

/// What a thread is called.
pub(super) fn thread_label(thread: usize) -> String {
    if thread == 0 { "thread".into() } else { format!("thread {thread}") }
}

const LEGEND: &str = "\
● runs, itself or the loop on its stack   │ is on the stack   ┊ is suspended   ○ is made   ■ ends   2 requests that the kernel has
─▶ enters   ╌▶ yields to   ·▷ wakes   ·× wakes, which changes nothing   ═▶ a request, a completion\n\n";

impl Recording {
    /// The run as lanes of text. The same run gives the same text, byte for byte.
    pub fn text(&self) -> String {
        self.text_with(TextOptions::default())
    }

    /// As [`text`](Self::text), with more or less in it.
    pub fn text_with(&self, options: TextOptions) -> String {
        let columns = Columns::of(self);
        let mut text = String::from(if options.without_legend { "" } else { LEGEND });
        columns.heading(&mut text);
        if self.lost > 0 {
            let _ = writeln!(text, "       ({} events before these are lost)", self.lost);
        }
        let shown = self.shown(options);
        let mut replay = Replay::of(self);
        for (record, shown) in self.records.iter().zip(shown) {
            let actor = columns.actor(&replay, record.thread);
            let depth = replay.stack(record.thread).len();
            let misfit = replay.apply(record).err();
            if shown {
                let before = Before { actor, depth };
                columns.row(&mut text, &replay, record, before, options);
            }
            // One that says so itself is shown as an event.
            if let Some(misfit) = misfit.filter(|_| !matches!(record.event, Event::Violation(_))) {
                let _ = writeln!(text, "       !! {}", misfit.what);
            }
        }
        text
    }

    /// Which records are worth a row.
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

    /// Hides submits, reaps and the like in which nothing is shown, and where work ends.
    fn hide_empty(&self, shown: &mut [bool]) {
        // For each thread: where what is open began, and whether something is shown in it.
        let mut open: Vec<Vec<(usize, bool)>> = vec![Vec::new(); self.threads];
        for (place, record) in self.records.iter().enumerate() {
            let open = &mut open[record.thread];
            match record.event {
                Event::Begin(_) => open.push((place, false)),
                Event::Finish(span) => {
                    shown[place] = false;
                    match open.pop() {
                        // That nothing came of a round, or that the loop slept, is what one wants to know.
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

/// How a thread stood before an event.
struct Before {
    /// The column of whoever ran.
    actor: usize,
    /// How much had begun and was not over.
    depth: usize,
}

/// Where each lane stands.
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

    fn lane(&self, lane: Lane) -> usize {
        self.recording.threads + lane.0
    }

    fn kernel(&self) -> usize {
        self.labels.len() - 1
    }

    /// The column of whose stack a thread is on.
    fn actor(&self, replay: &Replay, thread: usize) -> usize {
        replay.running(thread).map_or(thread, |lane| self.lane(lane))
    }

    fn row(&self, text: &mut String, after: &Replay, record: &Record, before: Before, options: TextOptions) {
        let Before { actor: before, depth } = before;
        let mut cells = vec![' '; self.width];
        for thread in 0..self.recording.threads {
            cells[self.labels[thread].1] = if after.stack(thread).is_empty() { '┊' } else { '│' };
        }
        for lane in (0..self.recording.lanes.len()).map(Lane).filter(|lane| after.is_alive(*lane)) {
            cells[self.labels[self.lane(lane)].1] = if after.is_entered(lane) { '│' } else { '┊' };
        }
        let count: u32 = (0..=self.contexts()).map(|context| after.in_flight(context)).sum();
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
                let head = if *how == Wake::LeftEntered { '×' } else { '▷' };
                self.arrow(&mut cells, before, self.lane(*lane), '·', head);
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
        // What opens and what closes stand one above the other.
        let indent = 2 * depth.min(after.stack(record.thread).len());
        let _ = write!(text, "{:>5}  {picture}{:indent$}{}", record.number, "", self.recording.describe(&record.event));
        if let (true, Some(at)) = (options.sources, record.at) {
            let _ = write!(text, "  ({}:{})", at.file(), at.line());
        }
        text.push('\n');
    }

    fn contexts(&self) -> usize {
        self.recording.records.iter().map(|record| record.context).max().unwrap_or(0)
    }

    /// Draws from one column to another; the head points the way it goes.
    fn arrow(&self, cells: &mut [char], from: usize, to: usize, line: char, head: char) {
        let (start, end) = (self.labels[from].1, self.labels[to].1);
        // Both are one where the log has lost who ran.
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
