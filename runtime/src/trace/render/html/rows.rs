//! The rows of a page: bars on levels, and which coroutines share a row.

use crate::trace::event::{CoroutineIndex, Event, Recording};

/// The number of coroutines up to which each has a row of its own. Beyond it, a coroutine reuses
/// the row of one that has ended.
const OWN_ROWS: usize = 48;
/// The number of frames of a thread, and of concurrent requests, that are drawn.
const LEVELS: usize = 64;

/// The state that a bar shows. The page's script uses the same numbers.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum State {
    Suspended = 1,
    OnStack = 2,
    Runs = 3,
    Kernel = 4,
    Frame = 5,
    Pending = 6,
    InFlight = 7,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) struct Bar {
    pub(super) state: State,
    pub(super) depth: usize,
    pub(super) label: Option<usize>,
    pub(super) lane: Option<CoroutineIndex>,
}

/// Consecutive bars.
#[derive(Default)]
pub(super) struct Level {
    open: Option<(usize, Bar)>,
    pub(super) numbers: Vec<i64>,
}

impl Level {
    /// Starts a bar at event `at`.
    pub(super) fn set(&mut self, at: usize, bar: Option<Bar>) {
        if self.open.map(|(_, open)| open) == bar {
            return;
        }
        if let Some((begin, open)) = self.open.take().filter(|(begin, _)| *begin < at) {
            let or_none = |number: Option<usize>| number.map_or(-1, |number| number as i64);
            let (label, lane) = (or_none(open.label), or_none(open.lane.map(|lane| lane.0)));
            self.numbers.extend([begin as i64, at as i64, open.state as i64, open.depth as i64, label, lane]);
        }
        self.open = bar.map(|bar| (at, bar));
    }
}

pub(super) struct Row {
    pub(super) kind: &'static str,
    pub(super) label: String,
    pub(super) levels: Vec<Level>,
}

impl Row {
    pub(super) fn new(kind: &'static str, label: impl Into<String>) -> Row {
        Row { kind, label: label.into(), levels: Vec::new() }
    }

    pub(super) fn set(&mut self, level: usize, at: usize, bar: Option<Bar>) {
        if level < LEVELS {
            if self.levels.len() <= level {
                self.levels.resize_with(level + 1, Level::default);
            }
            self.levels[level].set(at, bar);
        }
    }
}

/// Assigns a row to each coroutine and returns the rows' labels; a shared row has no label.
pub(super) fn arrange(recording: &Recording) -> (Vec<usize>, Vec<String>) {
    let lanes = recording.lanes.len();
    if lanes <= OWN_ROWS {
        return ((0..lanes).collect(), recording.lanes.iter().map(|lane| lane.name.clone()).collect());
    }
    let mut places = vec![None; lanes];
    let (mut free, mut rows) = (Vec::new(), 0);
    for record in &recording.records {
        let (Event::Create(lane)
        | Event::Enter { lane, .. }
        | Event::Yield { lane, .. }
        | Event::End(lane)
        | Event::Wake { lane, .. }) = record.event
        else {
            continue;
        };
        let place = *places[lane.0].get_or_insert_with(|| {
            free.pop().unwrap_or_else(|| {
                rows += 1;
                rows - 1
            })
        });
        if matches!(record.event, Event::End(_)) {
            free.push(place);
        }
    }
    (places.into_iter().map(Option::unwrap_or_default).collect(), vec![String::new(); rows])
}
