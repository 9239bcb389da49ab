//! Bottom halves: callbacks that the loop runs in its next iteration (rule X3).
//!
//! Cancelling or rescheduling a bottom half changes its ticket, which makes its queue entry stale.
//! The entries that an iteration has *taken up* are the first ones of the context's queue: a nested
//! poll continues where the outer iteration stopped, and leaves it nothing.

use std::collections::VecDeque;
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
    /// How many of the first entries were taken up.
    taken: usize,
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
        u64::from(!queues.scheduled.is_empty() || !queues.idle.is_empty())
    }

    fn cancel(entry: &mut Entry<Self>, _: &mut Queues, _: &SharedContext) {
        entry.ticket = 0;
    }

    #[inline]
    fn requeue(state: &mut State<Self>, index: usize, shared: &SharedContext) -> bool {
        let Entry { ticket, kind: BottomHalfKind { is_idle, .. }, .. } = state.entries[index];
        if ticket != 0 {
            state.enqueue((index, ticket), is_idle, &shared.scheduler.clock);
        }
        ticket != 0
    }
}

impl State<BottomHalfKind> {
    /// Returns whether the loop must be woken.
    fn schedule(&mut self, key: Key, as_idle: bool, clock: &Clock) -> bool {
        let ticket = self.new_number();
        let Some((entry, _)) = self.get(key) else { return false };
        // A plain schedule overrides an idle one, but not the reverse.
        if entry.ticket != 0 && (as_idle || !entry.kind.is_idle) {
            return false;
        }
        entry.kind.is_idle = as_idle;
        entry.ticket = ticket;
        // A running bottom half is queued when its callback has returned, so that it is not entered
        // again before.
        if !entry.is_running {
            self.enqueue((key.index, ticket), as_idle, clock);
        }
        true
    }

    fn enqueue(&mut self, queued: Queued, as_idle: bool, clock: &Clock) {
        let Queues { scheduled, idle, .. } = &mut self.queues;
        if scheduled.len().max(idle.len()) >= 2 * self.entries.len() + 64 {
            self.forget_cancelled();
        }
        match as_idle {
            false => self.queues.scheduled.push_back(queued),
            true => self.queues.idle.push_back((clock.now() + IDLE_DELAY, queued)),
        }
    }

    /// Drops cancelled entries, once they are in the majority: they would accumulate in a loop that
    /// does not run.
    #[cold]
    fn forget_cancelled(&mut self) {
        let Queues { scheduled, taken, idle } = &mut self.queues;
        let entries = &self.entries;
        let is_current = |&(index, ticket): &Queued| entries.get(index).is_some_and(|entry| entry.ticket == ticket);
        *taken = scheduled.iter().take(*taken).filter(|queued| is_current(queued)).count();
        scheduled.retain(is_current);
        idle.retain(|(_, queued)| is_current(queued));
    }

    /// Takes up the entries that are due.
    fn take_up(&mut self, clock: &Clock) {
        if !self.queues.idle.is_empty() {
            let now = clock.now();
            while let Some(&(due, (index, ticket))) = self.queues.idle.front() {
                if due > now && self.is_current(index, ticket) {
                    break;
                }
                self.queues.idle.pop_front();
                self.queues.scheduled.push_back((index, ticket));
            }
        }
        self.queues.taken = self.queues.scheduled.len();
    }

    /// Returns the next bottom half to run, with its callback taken out.
    fn start_next(&mut self) -> Option<(Started<()>, ())> {
        while self.queues.taken > 0 {
            self.queues.taken -= 1;
            let (index, ticket) = self.queues.scheduled.pop_front()?;
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
        state.queues.scheduled.iter().any(|&(index, ticket)| state.is_current(index, ticket))
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
    use std::sync::Arc;

    use parking_lot::Mutex;

    use crate::{AioContext, BottomHalf};

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

    #[test]
    fn dropping_cancelled_schedules_changes_no_iteration() {
        // X3: an iteration drops cancelled schedules, taken up and not; it still runs what it has
        // taken up, and a bottom half that was scheduled meanwhile runs in the following iteration
        AioContext::run(|ctx| {
            let ran = Arc::new(Mutex::new(Vec::new()));
            let ran_by = |name| {
                let ran = Arc::clone(&ran);
                ctx.new_bottom_half(move || ran.lock().push(name)).unwrap()
            };
            let [cancelled, taken] = ["cancelled", "taken"].map(|name| Arc::new(ran_by(name)));
            let (repeated, later, to_cancel) = (ran_by("repeated"), ran_by("later"), Arc::clone(&cancelled));
            let first = ctx.new_bottom_half(move || {
                to_cancel.cancel();
                later.schedule();
                for _ in 0..1000 {
                    repeated.schedule();
                    repeated.cancel();
                }
            });
            let first = first.unwrap();
            [&first, &*cancelled, &*taken].into_iter().for_each(BottomHalf::schedule);
            assert!(ctx.poll(false));
            assert_eq!(*ran.lock(), ["taken"]);
            assert!(ctx.poll(false));
            assert_eq!(*ran.lock(), ["taken", "later"]);
        });
    }
}
