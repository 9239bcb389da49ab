//! Bottom halves: callbacks that the loop runs in its next iteration (rule X3).
//!
//! Bottom halves live in a table under one small lock that is never held while a callback runs. A
//! queue entry carries a ticket; cancelling or rescheduling changes the ticket in the table, which
//! makes the entry stale. The entries that an iteration has *taken up* are in a queue of the
//! context, not of the iteration: a nested poll continues where the outer iteration stopped, and
//! leaves it nothing.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::context::{Key, Registry, SharedContext, call};
use crate::sys::Clock;
use crate::trace::Span;

mod handle;

pub use handle::{BottomHalf, BottomHalfInfo};

/// The longest delay of an idle bottom half.
const IDLE_DELAY: Duration = Duration::from_millis(10);

/// Called with the parts of a handle to the bottom half.
type Callback = Box<dyn FnMut(&Arc<SharedContext>, Key) + Send>;

/// When a bottom half is due.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    Never,
    NextRound,
    Idle,
}

struct Entry {
    /// `None` while the callback runs.
    callback: Option<Callback>,
    due: Due,
    /// The ticket of the newest queue entry; older entries are stale.
    ticket: u64,
    /// Freed after its one run.
    one_shot: bool,
    /// The owner dropped the handle while the callback ran; freed when it returns.
    deleted: bool,
    created_at: &'static Location<'static>,
}

impl Entry {
    fn new(callback: Callback, one_shot: bool, created_at: &'static Location<'static>) -> Entry {
        Entry { callback: Some(callback), due: Due::Never, ticket: 0, one_shot, deleted: false, created_at }
    }

    fn is_current(&self, queued: Queued) -> bool {
        self.due != Due::Never && self.ticket == queued.ticket
    }
}

/// A queue entry: the index in the table, and a ticket, which is never reused.
#[derive(Clone, Copy)]
struct Queued {
    index: usize,
    ticket: u64,
}

#[derive(Default)]
struct Table {
    entries: Registry<Entry>,
    scheduled: VecDeque<Queued>,
    taken: VecDeque<Queued>,
    idle: VecDeque<(Instant, Queued)>,
    tickets: u64,
}

/// All bottom halves of a context.
#[derive(Default)]
pub(crate) struct BottomHalves {
    table: Mutex<Table>,
    /// False: the queues are empty, and an iteration can skip them. Written under the lock.
    queued: AtomicBool,
}

impl Table {
    /// Returns whether the loop must be woken.
    fn schedule(&mut self, key: Key, due: Due, clock: &Clock) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        // A plain schedule overrides an idle one, but not the reverse.
        if entry.deleted || entry.due == Due::NextRound || entry.due == due {
            return false;
        }
        self.tickets += 1;
        entry.due = due;
        entry.ticket = self.tickets;
        // A running bottom half is queued when its callback has returned, so that it is not entered
        // again before.
        if entry.callback.is_some() {
            self.enqueue(key.index, clock);
        }
        true
    }

    /// Queues the bottom half at this index if it is due. Returns whether it is on a queue now.
    fn enqueue(&mut self, index: usize, clock: &Clock) -> bool {
        let entry = &self.entries[index];
        let queued = Queued { index, ticket: entry.ticket };
        match entry.due {
            Due::Never => return false,
            Due::NextRound => self.scheduled.push_back(queued),
            Due::Idle => self.idle.push_back((clock.now() + IDLE_DELAY, queued)),
        }
        true
    }

    fn is_current(&self, queued: Queued) -> bool {
        self.entries.at(queued.index).is_some_and(|entry| entry.is_current(queued))
    }

    fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.scheduled.is_empty() && self.idle.is_empty()
    }

    /// Takes up the entries that are due.
    fn take_up(&mut self, clock: &Clock) {
        // `taken` is usually empty, and a swap is cheaper than a move.
        if self.taken.is_empty() {
            std::mem::swap(&mut self.taken, &mut self.scheduled);
        } else {
            self.taken.append(&mut self.scheduled);
        }
        if !self.idle.is_empty() {
            let now = clock.now();
            while let Some(&(due, queued)) = self.idle.front() {
                if due > now && self.is_current(queued) {
                    break;
                }
                self.idle.pop_front();
                self.taken.push_back(queued);
            }
        }
    }

    /// Returns the next bottom half to run, with its callback taken out.
    fn start_next(&mut self) -> Option<(Key, Callback)> {
        while let Some(queued) = self.taken.pop_front() {
            let Some((key, entry)) = self.entries.at_mut(queued.index) else { continue };
            if entry.is_current(queued) {
                entry.due = Due::Never;
                if let Some(callback) = entry.callback.take() {
                    return Some((key, callback));
                }
            }
        }
        None
    }

    /// Puts the callback back after it has returned. Returns the callback if it must be dropped
    /// outside the lock, and whether the bottom half was rescheduled meanwhile and is on a queue
    /// now.
    fn finish(&mut self, key: Key, callback: Callback, clock: &Clock) -> (Option<Callback>, bool) {
        // None: the context was closed meanwhile.
        let Some(entry) = self.entries.get_mut(key) else { return (Some(callback), false) };
        if entry.deleted || entry.one_shot {
            self.entries.remove(key);
            return (Some(callback), false);
        }
        entry.callback = Some(callback);
        (None, self.enqueue(key.index, clock))
    }
}

impl BottomHalves {
    /// Runs the bottom halves that are due. Returns whether there were any.
    ///
    /// # Control
    ///
    /// May enter and poll, through the callbacks.
    #[inline]
    pub(crate) fn run(&self, shared: &Arc<SharedContext>) -> bool {
        // Relaxed: the fences of `NotifyState` order it before the loop's last check; an earlier
        // check may miss it.
        self.queued.load(Ordering::Relaxed) && self.run_queued(shared)
    }

    #[inline(never)]
    fn run_queued(&self, shared: &Arc<SharedContext>) -> bool {
        let mut table = self.table.lock();
        table.take_up(&shared.scheduler.clock);
        let mut progress = false;
        loop {
            let Some((key, callback)) = table.start_next() else {
                self.queued.store(!table.is_empty(), Ordering::Relaxed);
                return progress;
            };
            drop(table);
            progress = true;
            let run = |callback: &mut Callback| {
                let _span = shared.scheduler.span(Span::BottomHalf);
                callback(shared, key);
            };
            let callback = call(callback, run, |callback| {
                let unneeded = self.finish(&mut self.table.lock(), key, callback, shared);
                drop(unneeded);
            });
            table = self.table.lock();
            if let Some(unneeded) = self.finish(&mut table, key, callback, shared) {
                drop(table);
                drop(unneeded);
                table = self.table.lock();
            }
        }
    }

    /// Schedules an existing bottom half, and wakes the loop.
    fn schedule(&self, key: Key, due: Due, shared: &SharedContext) {
        let mut table = self.table.lock();
        let news = table.schedule(key, due, &shared.scheduler.clock);
        if news {
            self.queued.store(true, Ordering::Relaxed);
        }
        drop(table);
        if news {
            shared.scheduler.wake_loop();
        }
    }

    /// As `Table::finish`.
    fn finish(&self, table: &mut Table, key: Key, callback: Callback, shared: &SharedContext) -> Option<Callback> {
        let (unneeded, queued) = table.finish(key, callback, &shared.scheduler.clock);
        if queued {
            self.queued.store(true, Ordering::Relaxed);
            shared.scheduler.wake_loop_of_another();
        }
        unneeded
    }

    /// Returns whether a bottom half is due in the next iteration.
    pub(crate) fn is_due(&self) -> bool {
        let table = self.table.lock();
        table.taken.iter().chain(&table.scheduled).any(|&queued| table.is_current(queued))
    }

    /// Describes the bottom halves. Returns `None` if the table is in use: the thread that uses it
    /// may have been stopped, and would never release it.
    pub(crate) fn describe(&self) -> Option<String> {
        let table = self.table.try_lock()?;
        let count = |due| table.entries.iter().filter(|(_, entry)| entry.due == due).count();
        let (due, idle) = (count(Due::NextRound), count(Due::Idle));
        Some(format!("{}, {due} due, {idle} idle", table.entries.len()))
    }

    /// Returns when the first idle bottom half is due, if there is one.
    pub(crate) fn next_idle(&self) -> Option<Instant> {
        let table = self.table.lock();
        let (due, _) = table.idle.iter().find(|(_, queued)| table.is_current(*queued))?;
        Some(*due)
    }

    /// Discards all scheduled entries, unless another thread holds the table. Drops nothing.
    pub(crate) fn forget_due(&self) {
        if let Some(mut table) = self.table.try_lock() {
            table.taken.clear();
            table.scheduled.clear();
            table.idle.clear();
        }
    }

    /// Deletes all bottom halves, and rejects new ones. Returns the values to drop outside the
    /// lock.
    pub(crate) fn close(&self) -> impl Iterator<Item: Any> + use<> {
        self.table.lock().entries.close().into_iter()
    }
}
