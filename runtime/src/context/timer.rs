//! Timers: callbacks that the loop runs when their time has come, and wake-ups of coroutines that sleep (rule X7).
//!
//! Built like the bottom halves: a table under one small lock that is never held while a callback runs; a heap of
//! deadlines beside it. Each arming has a ticket. Disarming or arming anew changes the ticket in the table, and what is
//! left in the heap is stale: it is passed over when its time comes, and when most of the heap is stale, swept out. So
//! arming one of a million costs O(log n), and disarming next to nothing.
//!
//! What a round finds due it takes up whole, in order of time; a nested poll goes on there.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use slab::Slab;

use crate::coroutine::Token;
use crate::trace::Span;

use super::AioContext;
use super::shared::Shared;

type Callback = Box<dyn FnMut() + Send>;

/// What happens when the time has come.
pub(crate) enum Action {
    Callback(Callback),
    Wake(Token),
    /// Its callback runs.
    Running,
    /// The loop wakes up for it, and that is all.
    Nothing,
}

struct Entry {
    action: Action,
    /// Of the arming that counts; 0 if it is not armed.
    ticket: u64,
    deadline: Instant,
    /// Dropped by its owner while it ran: freed when it returns.
    deleted: bool,
}

/// One arming. Ordered by time, then by order of arming.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    ticket: u64,
    key: usize,
}

#[derive(Default)]
struct Table {
    entries: Slab<Entry>,
    heap: BinaryHeap<Reverse<Due>>,
    taken: VecDeque<Due>,
    tickets: u64,
    armed: usize,
}

/// All timers of a context.
#[derive(Default)]
pub(crate) struct Timers {
    table: Mutex<Table>,
    /// How many are armed; read without the lock, so that a round without timers need not look at the clock.
    armed: AtomicUsize,
}

impl Table {
    fn is_current(&self, due: Due) -> bool {
        self.entries.get(due.key).is_some_and(|entry| entry.ticket == due.ticket)
    }

    fn arm(&mut self, key: usize, at: Instant) {
        self.tickets += 1;
        let ticket = self.tickets;
        let entry = &mut self.entries[key];
        if entry.deleted {
            return;
        }
        self.armed += usize::from(entry.ticket == 0);
        (entry.ticket, entry.deadline) = (ticket, at);
        // One that runs goes on the heap when it has returned: it is not entered again before.
        if !matches!(entry.action, Action::Running) {
            self.enqueue(key);
        }
    }

    fn enqueue(&mut self, key: usize) {
        let Entry { ticket, deadline: at, .. } = self.entries[key];
        self.heap.push(Reverse(Due { at, ticket, key }));
        self.sweep();
    }

    fn disarm(&mut self, key: usize) {
        if let Some(entry) = self.entries.get_mut(key)
            && entry.ticket != 0
        {
            entry.ticket = 0;
            self.armed -= 1;
        }
    }

    /// Throws out what is stale, once that is most of the heap.
    fn sweep(&mut self) {
        if self.heap.len() > 2 * self.armed + 64 {
            let mut heap = std::mem::take(&mut self.heap);
            heap.retain(|&Reverse(due)| self.is_current(due));
            self.heap = heap;
        }
    }

    /// When the first is due.
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
        while let Some(&Reverse(due)) = self.heap.peek()
            && due.at <= now
        {
            self.heap.pop();
            if self.is_current(due) {
                self.taken.push_back(due);
            }
        }
    }

    /// The next one to fire, disarmed, with its callback taken out.
    fn start_next(&mut self) -> Option<(usize, Action)> {
        while let Some(due) = self.taken.pop_front() {
            if !self.is_current(due) {
                continue;
            }
            let action = match self.entries[due.key].action {
                Action::Callback(_) => std::mem::replace(&mut self.entries[due.key].action, Action::Running),
                Action::Wake(token) => Action::Wake(token),
                Action::Nothing => Action::Nothing,
                Action::Running => unreachable!("one that runs is not on the heap"),
            };
            self.disarm(due.key);
            return Some((due.key, action));
        }
        None
    }

    /// Its callback has returned. Hands it back if nobody needs it any more, to be dropped outside the lock.
    fn finish(&mut self, key: usize, callback: Callback) -> Option<Callback> {
        // None: the context was closed from within.
        let Some(entry) = self.entries.get_mut(key) else { return Some(callback) };
        if entry.deleted {
            self.entries.remove(key);
            return Some(callback);
        }
        entry.action = Action::Callback(callback);
        if entry.ticket != 0 {
            self.enqueue(key);
        }
        None
    }
}

impl Timers {
    /// Runs what is due. Returns whether anything was.
    ///
    /// # Control
    ///
    /// May enter and poll, by what the callbacks do.
    pub(crate) fn run(&self, shared: &Shared) -> bool {
        /// Puts the callback back though it panicked.
        struct Running<'a>(&'a Timers, usize, Option<Callback>);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                if let Some(callback) = self.2.take() {
                    let unneeded = self.0.table.lock().finish(self.1, callback);
                    drop(unneeded);
                }
            }
        }
        // Relaxed: the fences of `SleepState` order it before the loop's last look; an earlier look may miss it.
        if self.armed.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let now = shared.clock.now();
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
            let _told = shared.traced(Span::Timer);
            match action {
                Action::Callback(callback) => {
                    let mut running = Running(self, key, Some(callback));
                    running.2.as_mut().expect("just put there")();
                }
                Action::Wake(token) => token.wake(shared),
                Action::Nothing | Action::Running => {}
            }
        }
    }

    /// When the first is due; `None` without any.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        // Relaxed, as in `run`.
        if self.armed.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.table.lock().first()
    }

    /// In words; as [`BottomHalves::describe`](super::bottom_half::BottomHalves::describe).
    pub(crate) fn describe(&self, now: Instant) -> Option<String> {
        let mut table = self.table.try_lock()?;
        let armed = table.armed;
        Some(match table.first() {
            Some(first) => format!("{armed} armed, the next in {:?}", first.saturating_duration_since(now)),
            None => "none armed".into(),
        })
    }

    /// One that fires at `deadline`, for as long as the handle lives.
    pub(crate) fn start(&self, deadline: Instant, action: Action, shared: &Arc<Shared>) -> Timer {
        let timer = self.insert(action, shared);
        timer.arm_at(deadline);
        timer
    }

    fn insert(&self, action: Action, shared: &Arc<Shared>) -> Timer {
        let entry = Entry { action, ticket: 0, deadline: shared.clock.now(), deleted: false };
        let key = self.table.lock().entries.insert(entry);
        Timer { shared: Arc::clone(shared), key }
    }

    /// Nothing that was taken up fires; unless another thread holds the table. Drops nothing.
    pub(crate) fn forget_due(&self) {
        if let Some(mut table) = self.table.try_lock() {
            table.taken.clear();
        }
    }

    /// Deletes all of them; callbacks are dropped outside the lock.
    pub(crate) fn clear(&self) {
        let all = std::mem::take(&mut *self.table.lock());
        self.armed.store(0, Ordering::Relaxed);
        drop(all);
    }
}

impl AioContext {
    /// Makes a timer: `callback` runs in the loop, once each time the timer was armed and its time has come.
    ///
    /// It is `Send`, since another thread's poll may run it.
    ///
    /// ```
    /// use coralio_runtime::AioContext;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use std::time::Duration;
    ///
    /// AioContext::run(|ctx| {
    ///     let rang = Arc::new(AtomicBool::new(false));
    ///     let timer = ctx.timer({
    ///         let rang = Arc::clone(&rang);
    ///         move || rang.store(true, Ordering::Relaxed)
    ///     });
    ///     timer.arm_after(Duration::from_millis(1));
    ///     while !rang.load(Ordering::Relaxed) {
    ///         ctx.poll(true);
    ///     }
    /// });
    /// ```
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "aio_timer_new")]
    pub fn timer(&self, callback: impl FnMut() + Send + 'static) -> Timer {
        self.shared.timers.insert(Action::Callback(Box::new(callback)), &self.shared)
    }
}

/// A callback that the loop runs at a time. Armed for one time at most; dropping it deletes it, also within the callback.
/// All of it works from any thread.
#[doc(alias = "QEMUTimer")]
#[must_use = "dropping it deletes the timer"]
pub struct Timer {
    shared: Arc<Shared>,
    key: usize,
}

impl Timer {
    /// Makes it fire at `deadline`, not before, and not at the time it was armed for until now. If that has passed, it fires
    /// in the next round.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "timer_mod")]
    pub fn arm_at(&self, deadline: Instant) {
        let timers = &self.shared.timers;
        let mut table = timers.table.lock();
        if !table.entries.contains(self.key) {
            return;
        }
        let before = table.first();
        table.arm(self.key, deadline);
        timers.armed.store(table.armed, Ordering::Relaxed);
        drop(table);
        // A loop that sleeps till an earlier time looks again by itself.
        if before.is_none_or(|before| deadline < before) {
            self.shared.notify();
        }
    }

    /// Makes it fire so much later than now. A time beyond what the clock can tell is never.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn arm_after(&self, delay: Duration) {
        match self.shared.clock.now().checked_add(delay) {
            Some(deadline) => self.arm_at(deadline),
            None => self.disarm(),
        }
    }

    /// Makes it not fire, unless its callback runs already.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "timer_del")]
    pub fn disarm(&self) {
        let timers = &self.shared.timers;
        let mut table = timers.table.lock();
        table.disarm(self.key);
        timers.armed.store(table.armed, Ordering::Relaxed);
    }

    /// When it will fire, if it is armed.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn deadline(&self) -> Option<Instant> {
        let table = self.shared.timers.table.lock();
        table.entries.get(self.key).filter(|entry| entry.ticket != 0).map(|entry| entry.deadline)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let timers = &self.shared.timers;
        let mut table = timers.table.lock();
        table.disarm(self.key);
        timers.armed.store(table.armed, Ordering::Relaxed);
        let Some(entry) = table.entries.get_mut(self.key) else { return };
        if matches!(entry.action, Action::Running) {
            entry.deleted = true;
            return;
        }
        let entry = table.entries.remove(self.key);
        drop(table);
        drop(entry);
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("deadline", &self.deadline()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stale_does_not_pile_up() {
        // X7: a timer that is armed and disarmed again and again, as the timeout of each request is, leaves nothing behind
        AioContext::run(|ctx| {
            let armed: Vec<_> = (0..10).map(|_| ctx.timer(|| {})).collect();
            armed.iter().for_each(|timer| timer.arm_after(Duration::from_secs(60)));
            let timer = ctx.timer(|| {});
            for _ in 0..10_000 {
                timer.arm_after(Duration::from_secs(3600));
                timer.disarm();
            }
            assert!(ctx.shared.timers.table.lock().heap.len() <= 2 * 11 + 64);
        });
    }
}
