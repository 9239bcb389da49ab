//! Timers: callbacks that the loop runs at their deadline, and wake-ups of sleeping coroutines
//! (rule X7).
//!
//! The deadlines are in a heap. Each arming has a ticket. Disarming or rearming changes the ticket
//! in the table, which makes the heap entry stale: a stale entry is skipped at its deadline, or
//! removed when most of the heap is stale. So arming one of a million timers costs O(log n), and
//! disarming next to nothing.
//!
//! An iteration moves all due timers to a queue, in order of deadline; a nested poll continues that
//! queue.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use crate::context::SharedContext;
use crate::context::registration::{Entry, Key, Kind, Started, State, Table};
use crate::coroutine::CoroutineId;
use crate::trace::Span;

mod handle;

pub use handle::{Timer, TimerInfo};

/// What to do at the deadline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Callback,
    Wake(CoroutineId),
    /// Only wakes the loop.
    Nothing,
}

pub(crate) struct TimerKind {
    action: Action,
    deadline: Instant,
}

/// All timers of a context.
pub(crate) type Timers = Table<TimerKind>;

/// One arming. Ordered by deadline, then by order of arming.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    ticket: u64,
    /// The index in the table.
    index: usize,
}

#[derive(Default)]
pub(crate) struct Queues {
    heap: BinaryHeap<Reverse<Due>>,
    taken: VecDeque<Due>,
    /// Number of armed timers.
    armed: usize,
}

impl Kind for TimerKind {
    type Event = ();
    type Queues = Queues;
    const CREATION: &'static str = "create a timer";
    const SPAN: Span = Span::Timer;

    fn table(shared: &SharedContext) -> &Timers {
        &shared.timers
    }

    fn pending(state: &State<Self>) -> u64 {
        state.queues.armed as u64
    }

    fn cancel(entry: &mut Entry<Self>, queues: &mut Queues, _: &SharedContext) {
        queues.armed -= usize::from(mem::take(&mut entry.ticket) != 0);
    }

    fn requeue(state: &mut State<Self>, index: usize, _: &SharedContext) -> bool {
        state.entries[index].ticket != 0 && {
            state.enqueue(index);
            true
        }
    }
}

impl State<TimerKind> {
    fn arm(&mut self, key: Key, at: Instant) {
        let ticket = self.new_number();
        let Some((entry, queues)) = self.get(key) else { return };
        queues.armed += usize::from(entry.ticket == 0);
        (entry.ticket, entry.kind.deadline) = (ticket, at);
        // A running timer is pushed when its callback has returned, so that it is not entered again
        // before.
        if !entry.is_running {
            self.enqueue(key.index);
        }
    }

    fn enqueue(&mut self, index: usize) {
        let Entry { ticket, kind: TimerKind { deadline: at, .. }, .. } = self.entries[index];
        self.queues.heap.push(Reverse(Due { at, ticket, index }));
        self.sweep();
    }

    fn is_armed(&self, due: Due) -> bool {
        self.is_current(due.index, due.ticket)
    }

    /// Removes stale entries once they are most of the heap.
    fn sweep(&mut self) {
        if self.queues.heap.len() > 2 * self.queues.armed + 64 {
            let mut heap = mem::take(&mut self.queues.heap);
            heap.retain(|&Reverse(due)| self.is_armed(due));
            self.queues.heap = heap;
        }
    }

    /// Returns the first deadline.
    fn first(&mut self) -> Option<Instant> {
        if let Some(&due) = self.queues.taken.iter().find(|&&due| self.is_armed(due)) {
            return Some(due.at);
        }
        loop {
            let Reverse(due) = *self.queues.heap.peek()?;
            if self.is_armed(due) {
                return Some(due.at);
            }
            self.queues.heap.pop();
        }
    }

    fn take_up(&mut self, now: Instant) {
        while let Some(&Reverse(due)) = self.queues.heap.peek().filter(|due| due.0.at <= now) {
            self.queues.heap.pop();
            if self.is_armed(due) {
                self.queues.taken.push_back(due);
            }
        }
    }

    /// Returns the next timer to fire, disarmed, with its callback taken out if it has one.
    fn start_next(&mut self) -> Option<(Action, Option<Started<()>>)> {
        loop {
            let due = self.queues.taken.pop_front()?;
            let Some(entry) = self.ticketed(due.index, due.ticket) else { continue };
            let (key, action) = (entry.key, entry.kind.action);
            entry.ticket = 0;
            self.queues.armed -= 1;
            return Some((action, self.start(key)));
        }
    }
}

impl Timers {
    /// Runs the timers that are due. Returns whether there were any.
    ///
    /// # Control
    ///
    /// May enter and poll, through the callbacks.
    #[inline]
    pub(crate) fn run_due(&self, shared: &Arc<SharedContext>) -> bool {
        !self.is_empty() && self.run_armed(shared)
    }

    #[inline(never)]
    fn run_armed(&self, shared: &Arc<SharedContext>) -> bool {
        let now = shared.scheduler.clock.now();
        self.lock().take_up(now);
        let mut progress = false;
        while !self.is_empty() {
            let next = self.lock().start_next();
            let Some((action, started)) = next else { break };
            progress = true;
            if let Some(started) = started {
                drop(self.call(shared, started, ()));
            } else {
                let _span = shared.scheduler.span(Span::Timer);
                if let Action::Wake(id) = action {
                    shared.scheduler.wake(id);
                }
            }
        }
        progress
    }

    /// Returns the first deadline, if any timer is armed.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if self.is_empty() { None } else { self.lock().first() }
    }

    /// Describes the timers, for a dump.
    pub(crate) fn description(&self, now: Instant) -> String {
        self.describe(|state| match state.first() {
            Some(first) => {
                format!("{} armed, next in {:?}", state.queues.armed, first.saturating_duration_since(now))
            }
            None => "none armed".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::AioContext;
    use std::time::Duration;

    #[test]
    fn stale_timers_do_not_accumulate() {
        // X7: a timer that is repeatedly armed and disarmed, as request timeouts are, leaves no
        // stale entries behind
        AioContext::run(|ctx| {
            let armed: Vec<_> = (0..10).map(|_| ctx.new_timer(|| {}).unwrap()).collect();
            armed.iter().for_each(|timer| timer.arm_after(Duration::from_secs(60)));
            let timer = ctx.new_timer(|| {}).unwrap();
            for _ in 0..10_000 {
                timer.arm_after(Duration::from_secs(3600));
                timer.disarm();
            }
            assert!(ctx.shared.timers.lock().queues.heap.len() <= 2 * 11 + 64);
        });
    }
}
