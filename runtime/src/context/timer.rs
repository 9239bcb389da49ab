//! Timers: callbacks that the loop runs when their time has come, and wake-ups of coroutines that sleep (rule X7).
//!
//! Built like the bottom halves: a table under one small lock that is never held while a callback runs; a heap of
//! deadlines beside it. Each arming has a ticket. Disarming or arming anew changes the ticket in the table, and what is
//! left in the heap is stale: it is passed over when its time comes, and when most of the heap is stale, swept out. So
//! arming one of a million costs O(log n), and disarming next to nothing.
//!
//! What a round finds due it takes up whole, in order of time; a nested poll goes on there.

use std::any::Any;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::coroutine::Token;
use crate::trace::Span;

use super::AioContext;
use super::registry::{ContextEnded, Key, Registry};
use super::shared::Shared;

/// Called with what a handle to the timer consists of.
type Callback = Box<dyn FnMut(&Arc<Shared>, Key) + Send>;

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
    created_at: &'static Location<'static>,
}

impl Entry {
    fn new(action: Action, deadline: Instant, created_at: &'static Location<'static>) -> Entry {
        Entry { action, ticket: 0, deadline, deleted: false, created_at }
    }
}

/// One arming. Ordered by time, then by order of arming.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    ticket: u64,
    /// The place in the table.
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
    /// How many are armed; read without the lock, so that a round without timers need not look at the clock.
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
        // One that runs goes on the heap when it has returned: it is not entered again before.
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
    fn start_next(&mut self) -> Option<(Key, Action)> {
        while let Some(due) = self.taken.pop_front() {
            if !self.is_current(due) {
                continue;
            }
            let (key, entry) = self.entries.at_mut(due.index)?;
            let action = match entry.action {
                Action::Callback(_) => std::mem::replace(&mut entry.action, Action::Running),
                Action::Wake(token) => Action::Wake(token),
                Action::Nothing => Action::Nothing,
                Action::Running => unreachable!("one that runs is not on the heap"),
            };
            entry.ticket = 0;
            self.armed -= 1;
            return Some((key, action));
        }
        None
    }

    /// Its callback has returned. Hands back what is to be dropped outside the lock, and whether the timer was armed
    /// meanwhile and is on the heap now.
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
    /// Runs what is due. Returns whether anything was.
    ///
    /// # Control
    ///
    /// May enter and poll, by what the callbacks do.
    pub(crate) fn run(&self, shared: &Arc<Shared>) -> bool {
        /// Puts the callback back though it panicked.
        struct Running<'a>(&'a Shared, Key, Option<Callback>);
        impl Drop for Running<'_> {
            fn drop(&mut self) {
                if let Some(callback) = self.2.take() {
                    let (unneeded, armed) = self.0.timers.table.lock().finish(self.1, callback);
                    if armed {
                        self.0.wake_loop_of_another();
                    }
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
                    let mut running = Running(shared, key, Some(callback));
                    running.2.as_mut().expect("just put there")(shared, key);
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

    /// One that fires at `deadline`, for as long as the handle lives. For what runs no code of the user's: so also while
    /// the context ends, and coroutines that it unwinds sleep on the thread's own stack.
    #[track_caller]
    pub(crate) fn start(&self, deadline: Instant, action: Action, shared: &Arc<Shared>) -> Timer {
        debug_assert!(!matches!(action, Action::Callback(_)));
        let key = self.table.lock().entries.insert_always(Entry::new(action, deadline, Location::caller()));
        let timer = Timer { shared: Arc::clone(shared), key, owns: true };
        timer.arm_at(deadline);
        timer
    }

    /// Nothing that was taken up fires; unless another thread holds the table. Drops nothing.
    pub(crate) fn forget_due(&self) {
        if let Some(mut table) = self.table.try_lock() {
            table.taken.clear();
        }
    }

    /// Deletes all of them, and rejects new callbacks. Returns what is to be dropped outside the lock.
    pub(crate) fn close(&self) -> impl Iterator<Item: Any> + use<> {
        let mut table = self.table.lock();
        let entries = table.entries.close();
        // Those of the deleted entries are stale.
        table.armed = 0;
        self.armed.store(0, Ordering::Relaxed);
        entries.into_iter()
    }
}

impl AioContext {
    /// Creates a timer: `callback` runs in the loop, once each time the timer was armed and its time has come.
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
    ///     })?;
    ///     timer.arm_after(Duration::from_millis(1));
    ///     while !rang.load(Ordering::Relaxed) {
    ///         ctx.poll(true);
    ///     }
    ///     Ok::<_, coralio_runtime::ContextEnded>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The context has ended. `callback` is dropped.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "aio_timer_new")]
    #[track_caller]
    pub fn timer(&self, mut callback: impl FnMut() + Send + 'static) -> Result<Timer, ContextEnded> {
        self.insert_timer(Box::new(move |_, _| callback()))
    }

    /// As [`timer`](Self::timer), for a callback that arms, disarms or [deletes](Timer::delete) its own timer, whose handle
    /// it receives.
    ///
    /// ```
    /// use coralio_runtime::AioContext;
    /// use std::time::Duration;
    ///
    /// AioContext::run(|ctx| {
    ///     let heartbeat = ctx.timer_with(|own| own.arm_after(Duration::from_secs(1)))?;
    ///     heartbeat.arm_after(Duration::ZERO);
    ///     assert!(ctx.poll(false));
    ///     assert!(heartbeat.deadline().is_some());
    ///     Ok::<_, coralio_runtime::ContextEnded>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`timer`](Self::timer).
    ///
    /// # Control
    ///
    /// Never switches.
    #[track_caller]
    pub fn timer_with(&self, mut callback: impl FnMut(&Timer) + Send + 'static) -> Result<Timer, ContextEnded> {
        self.insert_timer(Box::new(move |shared, key| {
            callback(&Timer { shared: Arc::clone(shared), key, owns: false });
        }))
    }

    #[track_caller]
    fn insert_timer(&self, callback: Callback) -> Result<Timer, ContextEnded> {
        let entry = Entry::new(Action::Callback(callback), self.now(), Location::caller());
        // In a statement of its own, so that a rejected callback is dropped without the lock.
        let inserted = self.shared.timers.table.lock().entries.insert(entry);
        match inserted {
            Ok(key) => Ok(Timer { shared: Arc::clone(&self.shared), key, owns: true }),
            Err(_rejected) => Err(ContextEnded { operation: "create a timer" }),
        }
    }

    /// Returns the timers of this context, those of sleeps and timeouts included. From any thread, also while the loop
    /// hangs.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn timers(&self) -> Vec<TimerInfo> {
        let table = self.shared.timers.table.lock();
        let info = |(_, entry): (Key, &Entry)| TimerInfo {
            created_at: entry.created_at,
            deadline: (entry.ticket != 0).then_some(entry.deadline),
            has_callback: matches!(entry.action, Action::Callback(_) | Action::Running),
            is_running: matches!(entry.action, Action::Running),
        };
        table.entries.iter().map(info).collect()
    }
}

/// The state of a timer, as [`AioContext::timers`] returns it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TimerInfo {
    /// Where the timer was created.
    pub created_at: &'static Location<'static>,
    /// When the timer fires, by [the context's clock](AioContext::now), if it is armed.
    pub deadline: Option<Instant>,
    /// Runs a callback; otherwise the timer ends a sleep or a timeout.
    pub has_callback: bool,
    /// The callback runs at the moment.
    pub is_running: bool,
}

/// A callback that the loop runs at a time. Armed for one time at most; dropping it deletes it, also within the callback.
/// All of it works from any thread. After the context has ended, a handle does nothing.
#[doc(alias = "QEMUTimer")]
#[must_use = "dropping it deletes the timer"]
pub struct Timer {
    shared: Arc<Shared>,
    key: Key,
    /// False for the handle that the callback receives, whose end deletes nothing.
    owns: bool,
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
        let before = table.first();
        table.arm(self.key, deadline);
        timers.armed.store(table.armed, Ordering::Relaxed);
        drop(table);
        // A loop that sleeps till an earlier time looks again by itself.
        if before.is_none_or(|before| deadline < before) {
            self.shared.wake_loop();
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

    /// Deletes the timer, as dropping its handle does. Its callback is dropped, or runs to its end first.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "timer_free")]
    pub fn delete(&self) {
        let timers = &self.shared.timers;
        let mut table = timers.table.lock();
        let Some(entry) = table.entries.get_mut(self.key) else { return };
        let was_armed = std::mem::take(&mut entry.ticket) != 0;
        entry.deleted = matches!(entry.action, Action::Running);
        let is_running = entry.deleted;
        table.armed -= usize::from(was_armed);
        timers.armed.store(table.armed, Ordering::Relaxed);
        if is_running {
            return;
        }
        let entry = table.entries.remove(self.key);
        drop(table);
        drop(entry);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if self.owns {
            self.delete();
        }
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
            let armed: Vec<_> = (0..10).map(|_| ctx.timer(|| {}).unwrap()).collect();
            armed.iter().for_each(|timer| timer.arm_after(Duration::from_secs(60)));
            let timer = ctx.timer(|| {}).unwrap();
            for _ in 0..10_000 {
                timer.arm_after(Duration::from_secs(3600));
                timer.disarm();
            }
            assert!(ctx.shared.timers.table.lock().heap.len() <= 2 * 11 + 64);
        });
    }
}
