//! Reads the log: turns the events as they were written into a recording.

use std::collections::HashMap;
use std::time::Duration;

use super::{Id, Raw};
use crate::trace::event::{CoroutineIndex, CoroutineInfo, Event, Record, Recording};

/// Numbers coroutines, threads and requests in order of first appearance, and puts all times on one
/// scale.
#[derive(Default)]
pub(super) struct Reader<'a> {
    pub(super) recording: Recording,
    pub(super) names: HashMap<Id, &'a str>,
    pub(super) lanes: HashMap<Id, CoroutineIndex>,
    pub(super) threads: HashMap<u32, usize>,
    pub(super) requests: HashMap<(usize, u64), u64>,
    /// For each context, the number of nanoseconds by which its times are shifted.
    pub(super) shifts: HashMap<usize, u64>,
    /// The time of the previous event.
    pub(super) last: u64,
}

impl Reader<'_> {
    fn lane(&mut self, id: Id, context: usize) -> CoroutineIndex {
        let (names, lanes) = (&self.names, &mut self.recording.lanes);
        *self.lanes.entry(id).or_insert_with(|| {
            let next = CoroutineIndex(lanes.len());
            let name = names.get(&id).map_or_else(|| format!("#{}", next.0), |name| (*name).to_string());
            lanes.push(CoroutineInfo { name, context, created_at: None });
            next
        })
    }

    /// Returns the time of an event. A virtual clock starts at 0, so the times of a context with a
    /// new virtual clock are shifted to continue the times of the events before.
    fn time(&mut self, context: usize, time: u64) -> u64 {
        let last = self.last;
        let shift = *self.shifts.entry(context).or_insert_with(|| last.saturating_sub(time));
        self.last = last.max(time.saturating_add(shift));
        self.last
    }

    pub(super) fn read(&mut self, number: u64, raw: &Raw) {
        let &Raw { id, at, .. } = raw;
        let context = raw.context as usize;
        let time = Duration::from_nanos(self.time(context, raw.time));
        let threads = self.threads.len();
        let thread = *self.threads.entry(raw.thread).or_insert(threads);
        let mut event = raw.event.clone();
        match &mut event {
            Event::Create(lane) => {
                *lane = self.lane(id, context);
                self.recording.lanes[lane.0].created_at = at;
            }
            Event::Enter { lane, .. } | Event::Yield { lane, .. } | Event::End(lane) | Event::Wake { lane, .. } => {
                *lane = self.lane(id, context);
            }
            Event::Request { request, .. } => {
                let requests = self.requests.len() as u64;
                *request = *self.requests.entry((context, *request)).or_insert(requests);
            }
            Event::Begin(_)
            | Event::Finish(_)
            | Event::Counters { .. }
            | Event::Acquire
            | Event::Release
            | Event::Violation(_)
            | Event::Mark(_) => {}
        }
        self.recording.records.push(Record { number, time, thread, context, event, at, calls: Vec::new() });
    }
}
