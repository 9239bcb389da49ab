//! Timers: callbacks that the loop runs at their deadline, and wake-ups of sleeping coroutines
//! (rule X7).
//!
//! Built like the bottom halves: a table under one small lock that is never held while a callback
//! runs, and a heap of deadlines. Each arming has a ticket. Disarming or rearming changes the
//! ticket in the table, which makes the heap entry stale: a stale entry is skipped at its deadline,
//! or removed when most of the heap is stale. So arming one of a million timers costs O(log n), and
//! disarming next to nothing.
//!
//! An iteration moves all due timers to a queue, in order of deadline; a nested poll continues that
//! queue.

use std::any::Any;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::context::{Key, Registry, SharedContext, call};
use crate::coroutine::BlockRef;
use crate::trace::Span;

mod handle;

pub use handle::{Timer, TimerInfo};

/// Called with the parts of a handle to the timer.
type Callback = Box<dyn FnMut(&Arc<SharedContext>, Key) + Send>;

/// What to do at the deadline.
pub(crate) enum Action {
    Callback(Callback),
    Wake(BlockRef),
    /// The callback is running.
    Running,
    /// Only wakes the loop.
    Nothing,
}

struct Entry {
    action: Action,
    /// The ticket of the current arming; 0 if not armed.
    ticket: u64,
    deadline: Instant,
    /// The owner dropped the handle while the callback ran; freed when it returns.
    deleted: bool,
    created_at: &'static Location<'static>,
}

impl Entry {
    fn new(action: Action, deadline: Instant, created_at: &'static Location<'static>) -> Entry {
        Entry { action, ticket: 0, deadline, deleted: false, created_at }
    }
}

/// One arming. Ordered by deadline, then by order of arming.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    ticket: u64,
    /// The index in the table.
    index: usize,
}

#[derive(Default)]
struct Table {
    entries: Registry<Entry>,
    heap: BinaryHeap<Reverse<Due>>,
    taken: VecDeque<Due>,
    tickets: u64,
    armed: usize,
}

/// All timers of a context.
#[derive(Default)]
pub(crate) struct Timers {
    table: Mutex<Table>,
    /// Number of armed timers; readable without the lock, so that an iteration without timers need
    /// not read the clock.
    armed: AtomicUsize,
}

impl Table {
    fn is_current(&self, due: Due) -> bool {
        self.entries.at(due.index).is_some_and(|entry| entry.ticket == due.ticket)
    }

    fn arm(&mut self, key: Key, at: Instant) {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| !entry.deleted) else { return };
        self.tickets += 1;
        self.armed += usize::from(entry.ticket == 0);
        (entry.ticket, entry.deadline) = (self.tickets, at);
        // A running timer is pushed when its callback has returned, so that it is not entered again
        // before.
        if !matches!(entry.action, Action::Running) {
            self.enqueue(key.index);
        }
    }

    fn enqueue(&mut self, index: usize) {
        let Entry { ticket, deadline: at, .. } = self.entries[index];
        self.heap.push(Reverse(Due { at, ticket, index }));
        self.sweep();
    }

    fn disarm(&mut self, key: Key) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        if entry.ticket != 0 {
            entry.ticket = 0;
            self.armed -= 1;
        }
    }

    /// Removes stale entries once they are most of the heap.
    fn sweep(&mut self) {
        if self.heap.len() > 2 * self.armed + 64 {
            let mut heap = std::mem::take(&mut self.heap);
            heap.retain(|&Reverse(due)| self.is_current(due));
            self.heap = heap;
        }
    }

    /// Returns the first deadline.
    fn first(&mut self) -> Option<Instant> {
        if let Some(&due) = self.taken.iter().find(|&&due| self.is_current(due)) {
            return Some(due.at);
        }
        loop {
            let Reverse(due) = *self.heap.peek()?;
            if self.is_current(due) {
                return Some(due.at);
            }
            self.heap.pop();
        }
    }

    fn take_up(&mut self, now: Instant) {
        while let Some(&Reverse(due)) = self.heap.peek().filter(|due| due.0.at <= now) {
            self.heap.pop();
            if self.is_current(due) {
                self.taken.push_back(due);
            }
        }
    }

    /// Returns the next timer to fire, disarmed, with its callback taken out.
    fn start_next(&mut self) -> Option<(Key, Action)> {
        while let Some(due) = self.taken.pop_front() {
            if !self.is_current(due) {
                continue;
            }
            let (key, entry) = self.entries.at_mut(due.index)?;
            let action = match entry.action {
                Action::Callback(_) => std::mem::replace(&mut entry.action, Action::Running),
                Action::Wake(id) => Action::Wake(id),
                Action::Nothing => Action::Nothing,
                Action::Running => unreachable!("one that runs is not on the heap"),
            };
            entry.ticket = 0;
            self.armed -= 1;
            return Some((key, action));
        }
        None
    }

    /// Puts the callback back after it has returned. Returns the callback if it must be dropped
    /// outside the lock, and whether the timer was rearmed meanwhile and is on the heap now.
    fn finish(&mut self, key: Key, callback: Callback) -> (Option<Callback>, bool) {
        // None: the context was closed meanwhile.
        let Some(entry) = self.entries.get_mut(key) else { return (Some(callback), false) };
        if entry.deleted {
            self.entries.remove(key);
            return (Some(callback), false);
        }
        entry.action = Action::Callback(callback);
        let armed = entry.ticket != 0;
        if armed {
            self.enqueue(key.index);
        }
        (None, armed)
    }
}

impl Timers {
    /// Runs the timers that are due. Returns whether there were any.
    ///
    /// # Control
    ///
    /// May enter and poll, through the callbacks.
    #[inline]
    pub(crate) fn run(&self, shared: &Arc<SharedContext>) -> bool {
        // Relaxed: the fences of `NotifyState` order it before the loop's last check; an earlier
        // check may miss it.
        self.armed.load(Ordering::Relaxed) != 0 && self.run_armed(shared)
    }

    #[inline(never)]
    fn run_armed(&self, shared: &Arc<SharedContext>) -> bool {
        let now = shared.scheduler.clock.now();
        self.table.lock().take_up(now);
        let mut progress = false;
        loop {
            let next = {
                let mut table = self.table.lock();
                let next = table.start_next();
                self.armed.store(table.armed, Ordering::Relaxed);
                next
            };
            let Some((key, action)) = next else { return progress };
            progress = true;
            let _span = shared.scheduler.span(Span::Timer);
            match action {
                Action::Callback(callback) => {
                    let put_back = |callback| {
                        let (unneeded, armed) = self.table.lock().finish(key, callback);
                        if armed {
                            shared.scheduler.wake_loop_of_another();
                        }
                        drop(unneeded);
                    };
                    put_back(call(callback, |callback| callback(shared, key), put_back));
                }
                Action::Wake(id) => shared.scheduler.wake(id),
                Action::Nothing | Action::Running => {}
            }
        }
    }

    /// Returns the first deadline, if any timer is armed.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        // Relaxed, as in `run`.
        if self.armed.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.table.lock().first()
    }

    /// Describes the timers, as
    /// [`BottomHalves::describe`](super::bottom_half::BottomHalves::describe) does.
    pub(crate) fn describe(&self, now: Instant) -> Option<String> {
        let mut table = self.table.try_lock()?;
        let armed = table.armed;
        Some(match table.first() {
            Some(first) => format!("{armed} armed, next in {:?}", first.saturating_duration_since(now)),
            None => "none armed".into(),
        })
    }

    /// Creates a timer that fires at `deadline` unless the handle is dropped before. For actions
    /// without user code, which work even while the context ends and coroutines that it unwinds
    /// sleep on the thread's own stack.
    #[track_caller]
    pub(crate) fn start(&self, deadline: Instant, action: Action, shared: &Arc<SharedContext>) -> Timer {
        debug_assert!(!matches!(action, Action::Callback(_)));
        let key = self.table.lock().entries.insert_always(Entry::new(action, deadline, Location::caller()));
        let timer = Timer { shared: Arc::clone(shared), key, owns: true };
        timer.arm_at(deadline);
        timer
    }

    /// Discards the due timers, unless another thread holds the table. Drops nothing.
    pub(crate) fn forget_due(&self) {
        if let Some(mut table) = self.table.try_lock() {
            table.taken.clear();
        }
    }

    /// Deletes all timers, and rejects new callbacks. Returns the values to drop outside the lock.
    pub(crate) fn close(&self) -> impl Iterator<Item: Any> + use<> {
        let mut table = self.table.lock();
        let entries = table.entries.close();
        // The heap entries of deleted timers are stale.
        table.armed = 0;
        self.armed.store(0, Ordering::Relaxed);
        entries.into_iter()
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
            assert!(ctx.shared.timers.table.lock().heap.len() <= 2 * 11 + 64);
        });
    }
}
