//! Bottom halves: callbacks that the loop runs in its next iteration (rule X3).
//!
//! Bottom halves live in a table under one small lock that is never held while a callback runs. A
//! queue entry carries a ticket; cancelling or rescheduling changes the ticket in the table, which
//! makes the entry stale. The entries that an iteration has *taken up* are in a queue of the
//! context, not of the iteration: a nested poll continues where the outer iteration stopped, and
//! leaves it nothing.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::context::AioContext;
use crate::context::registry::{ContextEnded, Key, Registry};
use crate::context::shared::SharedContext;
use crate::sys::clock::Clock;
use crate::trace::Span;

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
    pub(crate) fn run(&self, shared: &Arc<SharedContext>) -> bool {
        /// Puts the callback back, even after a panic.
        struct Running<'a>(&'a BottomHalves, &'a Arc<SharedContext>, Key, Option<Callback>);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                if let Some(callback) = self.3.take() {
                    let unneeded = self.0.finish(&mut self.0.table.lock(), self.2, callback, self.1);
                    drop(unneeded);
                }
            }
        }
        // Relaxed: the fences of `NotifyState` order it before the loop's last check; an earlier
        // check may miss it.
        if !self.queued.load(Ordering::Relaxed) {
            return false;
        }
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
            let mut running = Running(self, shared, key, Some(callback));
            let callback = running.3.as_mut().expect("just put there");
            let span = shared.scheduler.span(Span::BottomHalf);
            callback(shared, key);
            drop(span);
            let callback = running.3.take().expect("still there");
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

impl AioContext {
    /// Creates a bottom half: when it is scheduled, the loop runs `callback` in its next iteration.
    ///
    /// The callback is `Send`, since another thread's poll may run it.
    ///
    /// # Errors
    ///
    /// Fails if the context has ended. `callback` is dropped.
    #[doc(alias = "aio_bh_new")]
    #[track_caller]
    pub fn bottom_half(&self, mut callback: impl FnMut() + Send + 'static) -> Result<BottomHalf, ContextEnded> {
        self.insert_bottom_half(Box::new(move |_, _| callback()))
    }

    /// As [`bottom_half`](Self::bottom_half), for a callback that schedules, cancels or
    /// [deletes](BottomHalf::delete) its own bottom half: the callback receives its own handle.
    ///
    /// ```
    /// use coralio_runtime::AioContext;
    ///
    /// AioContext::run(|ctx| {
    ///     let mut left = 3;
    ///     let bh = ctx.bottom_half_with(move |own| {
    ///         left -= 1;
    ///         if left > 0 { own.schedule() } else { own.delete() }
    ///     })?;
    ///     bh.schedule();
    ///     (0..3).for_each(|_| assert!(ctx.poll(false)));
    ///     assert!(!ctx.poll(false));
    ///     Ok::<_, coralio_runtime::ContextEnded>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`bottom_half`](Self::bottom_half).
    #[track_caller]
    pub fn bottom_half_with(
        &self,
        mut callback: impl FnMut(&BottomHalf) + Send + 'static,
    ) -> Result<BottomHalf, ContextEnded> {
        self.insert_bottom_half(Box::new(move |shared, key| {
            callback(&BottomHalf { shared: Arc::clone(shared), key, owns: false });
        }))
    }

    #[track_caller]
    fn insert_bottom_half(&self, callback: Callback) -> Result<BottomHalf, ContextEnded> {
        let entry = Entry::new(callback, false, Location::caller());
        // In a statement of its own, so that a rejected callback is dropped without the lock.
        let inserted = self.shared.bottom_halves.table.lock().entries.insert(entry);
        match inserted {
            Ok(key) => Ok(BottomHalf { shared: Arc::clone(&self.shared), key, owns: true }),
            Err(_rejected) => Err(ContextEnded { operation: "create a bottom half" }),
        }
    }

    /// Runs `callback` once, in the loop's next iteration. From any thread.
    ///
    /// # Errors
    ///
    /// Fails if the context has ended. `callback` is dropped. A callback that was accepted, but has
    /// not run when the context ends, is dropped then.
    #[doc(alias = "aio_bh_schedule_oneshot")]
    #[track_caller]
    pub fn schedule_oneshot(&self, callback: impl FnOnce() + Send + 'static) -> Result<(), ContextEnded> {
        let mut callback = Some(callback);
        let run: Callback = Box::new(move |_, _| {
            if let Some(callback) = callback.take() {
                callback();
            }
        });
        let bottom_halves = &self.shared.bottom_halves;
        let mut table = bottom_halves.table.lock();
        let inserted = table.entries.insert(Entry::new(run, true, Location::caller()));
        if let Ok(key) = inserted {
            table.schedule(key, Due::NextRound, &self.shared.scheduler.clock);
            bottom_halves.queued.store(true, Ordering::Relaxed);
        }
        drop(table);
        match inserted {
            Ok(_) => self.shared.scheduler.wake_loop(),
            Err(_rejected) => return Err(ContextEnded { operation: "schedule a one-shot callback" }),
        }
        Ok(())
    }

    /// Returns the bottom halves of this context, including one-shots. From any thread, even while
    /// the loop hangs.
    pub fn bottom_halves(&self) -> Vec<BottomHalfInfo> {
        let table = self.shared.bottom_halves.table.lock();
        let info = |(_, entry): (Key, &Entry)| BottomHalfInfo {
            created_at: entry.created_at,
            is_scheduled: entry.due == Due::NextRound,
            is_idle_scheduled: entry.due == Due::Idle,
            is_one_shot: entry.one_shot,
            is_running: entry.callback.is_none(),
        };
        table.entries.iter().map(info).collect()
    }
}

/// The state of a bottom half, returned by [`AioContext::bottom_halves`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BottomHalfInfo {
    /// Where the bottom half was created.
    pub created_at: &'static Location<'static>,
    /// Scheduled for the next iteration.
    pub is_scheduled: bool,
    /// Scheduled to run within 10 ms ([`BottomHalf::schedule_idle`]).
    pub is_idle_scheduled: bool,
    /// Created by [`AioContext::schedule_oneshot`].
    pub is_one_shot: bool,
    /// The callback is running.
    pub is_running: bool,
}

/// A callback that the loop runs when scheduled. Dropping the handle, even within the callback,
/// deletes the bottom half. After the context has ended, a handle does nothing.
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
///     })?;
///     bh.schedule();
///     bh.schedule(); // still once
///     assert!(ctx.poll(false));
///     assert_eq!(runs.load(Ordering::Relaxed), 1);
///     Ok::<_, coralio_runtime::ContextEnded>(())
/// })
/// .unwrap();
/// ```
#[doc(alias = "QEMUBH")]
#[must_use = "dropping it deletes the bottom half"]
pub struct BottomHalf {
    shared: Arc<SharedContext>,
    key: Key,
    /// False for the handle passed to the callback; dropping that one deletes nothing.
    owns: bool,
}

impl BottomHalf {
    /// Schedules the bottom half for the next iteration. Scheduling it again before it runs has no
    /// effect. From any thread.
    #[doc(alias = "qemu_bh_schedule")]
    pub fn schedule(&self) {
        self.shared.bottom_halves.schedule(self.key, Due::NextRound, &self.shared);
    }

    /// Schedules the bottom half to run within 10 ms, without keeping the loop busy. From any
    /// thread.
    #[doc(alias = "qemu_bh_schedule_idle")]
    pub fn schedule_idle(&self) {
        self.shared.bottom_halves.schedule(self.key, Due::Idle, &self.shared);
    }

    /// Cancels a schedule. A callback that is running already is not affected. From any thread.
    #[doc(alias = "qemu_bh_cancel")]
    pub fn cancel(&self) {
        if let Some(entry) = self.shared.bottom_halves.table.lock().entries.get_mut(self.key) {
            entry.due = Due::Never;
        }
    }

    /// Deletes the bottom half, as dropping its handle does. A running callback finishes first.
    /// From any thread.
    #[doc(alias = "qemu_bh_delete")]
    pub fn delete(&self) {
        let mut table = self.shared.bottom_halves.table.lock();
        let Some(entry) = table.entries.get_mut(self.key) else { return };
        entry.due = Due::Never;
        if entry.callback.is_none() {
            entry.deleted = true;
            return;
        }
        let entry = table.entries.remove(self.key);
        drop(table);
        drop(entry);
    }
}

impl Drop for BottomHalf {
    fn drop(&mut self) {
        if self.owns {
            self.delete();
        }
    }
}

impl fmt::Debug for BottomHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BottomHalf").finish_non_exhaustive()
    }
}
