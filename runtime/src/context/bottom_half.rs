//! Bottom halves: callbacks that the loop runs in its next iteration (rule X3).
//!
//! Cancelling or rescheduling a bottom half changes its ticket, which makes its queue entry stale.
//! The entries that an iteration has *taken up* are in a queue of the context, not of the
//! iteration: a nested poll continues where the outer iteration stopped, and leaves it nothing.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::context::SharedContext;
use crate::context::registration::{Entry, Key, Kind, Started, State, Table};
use crate::sys::Clock;
use crate::trace::Span;

mod handle;

pub use handle::{BottomHalf, BottomHalfInfo};

/// The longest delay of an idle bottom half.
const IDLE_DELAY: Duration = Duration::from_millis(10);

pub(crate) struct BottomHalfKind {
    /// Scheduled as idle, if it is scheduled.
    is_idle: bool,
    /// Freed after its one run.
    is_one_shot: bool,
}

/// All bottom halves of a context.
pub(crate) type BottomHalves = Table<BottomHalfKind>;

/// A queue entry: the index in the table, and the ticket.
type Queued = (usize, u64);

#[derive(Default)]
pub(crate) struct Queues {
    scheduled: VecDeque<Queued>,
    taken: VecDeque<Queued>,
    idle: VecDeque<(Instant, Queued)>,
}

impl Kind for BottomHalfKind {
    type Event = ();
    type Queues = Queues;
    const CREATION: &'static str = "create a bottom half";
    const SPAN: Span = Span::BottomHalf;

    fn table(shared: &SharedContext) -> &BottomHalves {
        &shared.bottom_halves
    }

    fn pending(State { queues, .. }: &State<Self>) -> u64 {
        u64::from(!queues.taken.is_empty() || !queues.scheduled.is_empty() || !queues.idle.is_empty())
    }

    fn cancel(entry: &mut Entry<Self>, _: &mut Queues, _: &SharedContext) {
        entry.ticket = 0;
    }

    fn requeue(state: &mut State<Self>, index: usize, shared: &SharedContext) -> bool {
        state.entries[index].ticket != 0 && {
            state.enqueue(index, &shared.scheduler.clock);
            true
        }
    }
}

impl State<BottomHalfKind> {
    /// Returns whether the loop must be woken.
    fn schedule(&mut self, key: Key, as_idle: bool, clock: &Clock) -> bool {
        let ticket = self.new_number();
        let Some(entry) = self.get(key) else { return false };
        // A plain schedule overrides an idle one, but not the reverse.
        if entry.is_deleted || entry.ticket != 0 && (as_idle || !entry.kind.is_idle) {
            return false;
        }
        entry.kind.is_idle = as_idle;
        entry.ticket = ticket;
        // A running bottom half is queued when its callback has returned, so that it is not entered
        // again before.
        if !entry.is_running {
            self.enqueue(key.index, clock);
        }
        true
    }

    fn enqueue(&mut self, index: usize, clock: &Clock) {
        self.forget_cancelled();
        let entry = &self.entries[index];
        let queued = (index, entry.ticket);
        match entry.kind.is_idle {
            false => self.queues.scheduled.push_back(queued),
            true => self.queues.idle.push_back((clock.now() + IDLE_DELAY, queued)),
        }
    }

    /// Drops cancelled entries once they are in the majority: they would accumulate in a loop that
    /// does not run.
    fn forget_cancelled(&mut self) {
        let limit = 2 * self.entries.len() + 64;
        let Queues { scheduled, idle, .. } = &mut self.queues;
        let entries = &self.entries;
        let is_current = |&(index, ticket): &Queued| entries.get(index).is_some_and(|entry| entry.ticket == ticket);
        if scheduled.len() >= limit {
            scheduled.retain(is_current);
        }
        if idle.len() >= limit {
            idle.retain(|(_, queued)| is_current(queued));
        }
    }

    /// Takes up the entries that are due.
    fn take_up(&mut self, clock: &Clock) {
        // `taken` is usually empty, and a swap is cheaper than a move.
        if self.queues.taken.is_empty() {
            mem::swap(&mut self.queues.taken, &mut self.queues.scheduled);
        } else {
            self.queues.taken.append(&mut self.queues.scheduled);
        }
        if !self.queues.idle.is_empty() {
            let now = clock.now();
            while let Some(&(due, (index, ticket))) = self.queues.idle.front() {
                if due > now && self.is_current(index, ticket) {
                    break;
                }
                self.queues.idle.pop_front();
                self.queues.taken.push_back((index, ticket));
            }
        }
    }

    /// Returns the next bottom half to run, with its callback taken out.
    fn start_next(&mut self) -> Option<(Started<()>, ())> {
        while let Some((index, ticket)) = self.queues.taken.pop_front() {
            let Some(entry) = self.ticketed(index, ticket) else { continue };
            let key = entry.key;
            entry.ticket = 0;
            entry.is_deleted = entry.kind.is_one_shot;
            if let Some(started) = self.start(key) {
                return Some((started, ()));
            }
        }
        None
    }
}

impl BottomHalves {
    /// Runs the bottom halves that are due. Returns whether there were any.
    ///
    /// # Control
    ///
    /// May enter and poll, through the callbacks.
    #[inline]
    pub(crate) fn run_due(&self, shared: &Arc<SharedContext>) -> bool {
        !self.is_empty() && self.run_queued(shared)
    }

    #[inline(never)]
    fn run_queued(&self, shared: &Arc<SharedContext>) -> bool {
        let mut state = self.lock();
        state.take_up(&shared.scheduler.clock);
        self.run(state, shared, State::start_next)
    }

    /// Schedules an existing bottom half, and wakes the loop.
    fn schedule(&self, key: Key, as_idle: bool, shared: &SharedContext) {
        let is_news = self.lock().schedule(key, as_idle, &shared.scheduler.clock);
        if is_news {
            shared.scheduler.wake_loop();
        }
    }

    /// Returns whether a bottom half is due in the next iteration.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        !self.is_empty() && self.is_queued()
    }

    #[inline(never)]
    fn is_queued(&self) -> bool {
        let state = self.lock();
        let Queues { taken, scheduled, .. } = &state.queues;
        taken.iter().chain(scheduled).any(|&(index, ticket)| state.is_current(index, ticket))
    }

    /// Describes the bottom halves, for a dump.
    pub(crate) fn description(&self) -> String {
        self.describe(|state| {
            let is = |idle| move |entry: &&Entry<BottomHalfKind>| entry.ticket != 0 && entry.kind.is_idle == idle;
            let count = |idle| state.entries.iter().map(|(_, entry)| entry).filter(is(idle)).count();
            format!("{}, {} due, {} idle", state.entries.len(), count(false), count(true))
        })
    }

    /// Returns when the first idle bottom half is due, if there is one.
    pub(crate) fn next_idle(&self) -> Option<Instant> {
        if self.is_empty() {
            return None;
        }
        let state = self.lock();
        let first = state.queues.idle.iter().find(|(_, (index, ticket))| state.is_current(*index, *ticket))?;
        Some(first.0)
    }
}

#[cfg(test)]
mod tests {
    use crate::AioContext;

    #[test]
    fn cancelled_schedules_do_not_accumulate() {
        // X3: a bottom half that is repeatedly scheduled and cancelled leaves nothing behind, and one
        // that waits in the same queue still runs
        AioContext::run(|ctx| {
            let (first, repeated) = (ctx.new_bottom_half(|| {}).unwrap(), ctx.new_bottom_half(|| {}).unwrap());
            first.schedule();
            for _ in 0..10_000 {
                repeated.schedule();
                repeated.cancel();
                repeated.schedule_idle();
                repeated.cancel();
            }
            let state = ctx.shared.bottom_halves.lock();
            assert!(state.queues.scheduled.len() <= 2 * 2 + 64 && state.queues.idle.len() <= 2 * 2 + 64);
            drop(state);
            assert!(ctx.shared.bottom_halves.is_due());
            assert!(ctx.poll(false));
        });
    }
}
