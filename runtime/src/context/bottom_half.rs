//! Bottom halves: callbacks that the loop runs in its next round (rule X3).
//!
//! They live in a table under one small lock, which is never held while a callback runs. A queue entry carries a ticket;
//! cancelling or scheduling anew changes the ticket in the table, and the entry is stale. What a round has *taken up* is
//! a queue of the context, not of the round: a nested poll goes on where the outer round stands, and leaves it nothing.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use slab::Slab;

use crate::trace::Span;

use super::AioContext;
use super::clock::Clock;
use super::shared::Shared;

/// An idle bottom half runs at most this long after it was scheduled.
const IDLE_DELAY: Duration = Duration::from_millis(10);

type Callback = Box<dyn FnMut() + Send>;

/// When it is due.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    Never,
    NextRound,
    Idle,
}

struct Entry {
    /// `None` while it runs.
    callback: Option<Callback>,
    due: Due,
    /// Of the newest queue entry; older ones are stale.
    ticket: u64,
    /// Freed after its one run.
    one_shot: bool,
    /// Dropped by its owner while it ran: freed when it returns.
    deleted: bool,
}

#[derive(Clone, Copy)]
struct Queued {
    key: usize,
    ticket: u64,
}

#[derive(Default)]
struct Table {
    entries: Slab<Entry>,
    scheduled: VecDeque<Queued>,
    taken: VecDeque<Queued>,
    idle: VecDeque<(Instant, Queued)>,
    tickets: u64,
}

/// All bottom halves of a context.
#[derive(Default)]
pub(crate) struct BottomHalves {
    table: Mutex<Table>,
    /// False: the queues are empty, and a round need not look. Written under the lock.
    queued: AtomicBool,
}

impl Table {
    fn insert(&mut self, callback: Callback, one_shot: bool) -> usize {
        // Tickets never repeat, so a queue entry cannot be taken for one of a later bottom half under the same key.
        self.entries.insert(Entry { callback: Some(callback), due: Due::Never, ticket: 0, one_shot, deleted: false })
    }

    /// Whether the loop must be told.
    fn schedule(&mut self, key: usize, due: Due, clock: &Clock) -> bool {
        self.tickets += 1;
        let ticket = self.tickets;
        let entry = &mut self.entries[key];
        // A plain schedule overrides an idle one, not the other way.
        if entry.deleted || entry.due == Due::NextRound || entry.due == due {
            return false;
        }
        entry.due = due;
        entry.ticket = ticket;
        // One that runs is queued when it has returned: it is not entered again before.
        if entry.callback.is_some() {
            self.enqueue(key, clock);
        }
        true
    }

    fn enqueue(&mut self, key: usize, clock: &Clock) {
        let entry = &self.entries[key];
        let queued = Queued { key, ticket: entry.ticket };
        match entry.due {
            Due::Never => {}
            Due::NextRound => self.scheduled.push_back(queued),
            Due::Idle => self.idle.push_back((clock.now() + IDLE_DELAY, queued)),
        }
    }

    fn is_current(&self, queued: Queued) -> bool {
        self.entries.get(queued.key).is_some_and(|e| e.due != Due::Never && e.ticket == queued.ticket)
    }

    fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.scheduled.is_empty() && self.idle.is_empty()
    }

    /// Takes up what is due now.
    fn take_up(&mut self, clock: &Clock) {
        // Mostly there is nothing left over, and changing places costs less than moving.
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

    /// The next one to run, with its callback taken out.
    fn start_next(&mut self) -> Option<(usize, Callback)> {
        while let Some(queued) = self.taken.pop_front() {
            if self.is_current(queued) {
                let entry = &mut self.entries[queued.key];
                entry.due = Due::Never;
                if let Some(callback) = entry.callback.take() {
                    return Some((queued.key, callback));
                }
            }
        }
        None
    }

    /// It has returned. Hands the callback back if nobody needs it any more, to be dropped outside the lock.
    fn finish(&mut self, key: usize, callback: Callback, clock: &Clock) -> Option<Callback> {
        // None: the context was closed from within.
        let Some(entry) = self.entries.get_mut(key) else { return Some(callback) };
        if entry.deleted || entry.one_shot {
            self.entries.remove(key);
            return Some(callback);
        }
        entry.callback = Some(callback);
        self.enqueue(key, clock);
        None
    }
}

impl BottomHalves {
    /// Runs what is due. Returns whether anything was.
    ///
    /// # Control
    ///
    /// May enter and poll, by what the callbacks do.
    pub(crate) fn run(&self, shared: &Shared) -> bool {
        /// Puts the callback back though it panicked.
        struct Running<'a>(&'a BottomHalves, &'a Clock, usize, Option<Callback>);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                if let Some(callback) = self.3.take() {
                    let unneeded = self.0.finish(&mut self.0.table.lock(), self.2, callback, self.1);
                    drop(unneeded);
                }
            }
        }
        // Relaxed: the fences of `SleepState` order it before the loop's last look; an earlier look may miss it.
        if !self.queued.load(Ordering::Relaxed) {
            return false;
        }
        let clock = &shared.clock;
        let mut table = self.table.lock();
        table.take_up(clock);
        let mut progress = false;
        loop {
            let Some((key, callback)) = table.start_next() else {
                self.queued.store(!table.is_empty(), Ordering::Relaxed);
                return progress;
            };
            drop(table);
            progress = true;
            let mut running = Running(self, clock, key, Some(callback));
            let callback = running.3.as_mut().expect("just put there");
            let told = shared.traced(Span::BottomHalf);
            callback();
            drop(told);
            let callback = running.3.take().expect("still there");
            table = self.table.lock();
            if let Some(unneeded) = self.finish(&mut table, key, callback, clock) {
                drop(table);
                drop(unneeded);
                table = self.table.lock();
            }
        }
    }

    /// Schedules one that is there. Returns whether the loop must be told.
    fn schedule(&self, table: &mut Table, key: usize, due: Due, clock: &Clock) -> bool {
        let news = table.schedule(key, due, clock);
        if news {
            self.queued.store(true, Ordering::Relaxed);
        }
        news
    }

    /// As `Table::finish`.
    fn finish(&self, table: &mut Table, key: usize, callback: Callback, clock: &Clock) -> Option<Callback> {
        let unneeded = table.finish(key, callback, clock);
        // It may have been scheduled while it ran, and is on the queue now.
        self.queued.store(true, Ordering::Relaxed);
        unneeded
    }

    /// Whether something is due in the next round.
    pub(crate) fn is_due(&self) -> bool {
        let table = self.table.lock();
        table.taken.iter().chain(&table.scheduled).any(|&queued| table.is_current(queued))
    }

    /// In words. Not if the table is in use: a thread that was stopped while it used it would never let go.
    pub(crate) fn describe(&self) -> Option<String> {
        let table = self.table.try_lock()?;
        let count = |due| table.entries.iter().filter(|(_, entry)| entry.due == due).count();
        let (due, idle) = (count(Due::NextRound), count(Due::Idle));
        Some(format!("{}, of them {due} due and {idle} idle", table.entries.len()))
    }

    /// When the first idle one is due; `None` without any.
    pub(crate) fn next_idle(&self) -> Option<Instant> {
        let table = self.table.lock();
        let (due, _) = table.idle.iter().find(|(_, queued)| table.is_current(*queued))?;
        Some(*due)
    }

    /// Nothing that is due runs, nor anything later; unless another thread holds the table. Drops nothing.
    pub(crate) fn forget_due(&self) {
        if let Some(mut table) = self.table.try_lock() {
            table.taken.clear();
            table.scheduled.clear();
            table.idle.clear();
        }
    }

    /// Deletes all of them; callbacks are dropped outside the lock.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *self.table.lock());
        drop(all);
    }
}

impl AioContext {
    /// Makes a bottom half: `callback` runs in the loop's next round whenever it is scheduled.
    ///
    /// It is `Send`, since another thread's poll may run it.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "aio_bh_new")]
    pub fn bottom_half(&self, callback: impl FnMut() + Send + 'static) -> BottomHalf {
        let key = self.shared.bottom_halves.table.lock().insert(Box::new(callback), false);
        BottomHalf { shared: Arc::clone(&self.shared), key }
    }

    /// Runs `callback` once, in the loop's next round. From any thread.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "aio_bh_schedule_oneshot")]
    pub fn schedule_oneshot(&self, callback: impl FnOnce() + Send + 'static) {
        let mut callback = Some(callback);
        let run = move || {
            if let Some(callback) = callback.take() {
                callback();
            }
        };
        {
            let bottom_halves = &self.shared.bottom_halves;
            let mut table = bottom_halves.table.lock();
            let key = table.insert(Box::new(run), true);
            bottom_halves.schedule(&mut table, key, Due::NextRound, &self.shared.clock);
        }
        self.shared.notify();
    }
}

/// A callback that the loop runs when it is scheduled. Dropping the handle deletes it, also within the callback.
///
/// ```
/// use coralio_runtime::AioContext;
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use std::sync::Arc;
///
/// AioContext::run(|ctx| {
///     let runs = Arc::new(AtomicU32::new(0));
///     let bh = ctx.bottom_half({
///         let runs = Arc::clone(&runs);
///         move || { runs.fetch_add(1, Ordering::Relaxed); }
///     });
///     bh.schedule();
///     bh.schedule(); // still once
///     assert!(ctx.poll(false));
///     assert_eq!(runs.load(Ordering::Relaxed), 1);
/// });
/// ```
#[doc(alias = "QEMUBH")]
#[must_use = "dropping it deletes the bottom half"]
pub struct BottomHalf {
    shared: Arc<Shared>,
    key: usize,
}

impl BottomHalf {
    /// Makes it run once in the next round, however often it is scheduled until then. From any thread.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "qemu_bh_schedule")]
    pub fn schedule(&self) {
        self.schedule_for(Due::NextRound);
    }

    /// Makes it run within the next 10 ms, without keeping the loop busy. From any thread.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "qemu_bh_schedule_idle")]
    pub fn schedule_idle(&self) {
        self.schedule_for(Due::Idle);
    }

    fn schedule_for(&self, due: Due) {
        let bottom_halves = &self.shared.bottom_halves;
        let mut table = bottom_halves.table.lock();
        let news =
            table.entries.contains(self.key) && bottom_halves.schedule(&mut table, self.key, due, &self.shared.clock);
        drop(table);
        if news {
            self.shared.notify();
        }
    }

    /// Undoes a schedule: it does not run, unless it runs already. From any thread.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "qemu_bh_cancel")]
    pub fn cancel(&self) {
        if let Some(entry) = self.shared.bottom_halves.table.lock().entries.get_mut(self.key) {
            entry.due = Due::Never;
        }
    }
}

impl Drop for BottomHalf {
    fn drop(&mut self) {
        let mut table = self.shared.bottom_halves.table.lock();
        let Some(entry) = table.entries.get_mut(self.key) else { return };
        entry.due = Due::Never;
        if entry.callback.is_none() {
            entry.deleted = true;
            return;
        }
        let callback = table.entries.remove(self.key);
        drop(table);
        drop(callback);
    }
}

impl fmt::Debug for BottomHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BottomHalf").finish_non_exhaustive()
    }
}
