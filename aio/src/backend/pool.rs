//! A thread pool for blocking work: threads are started on demand up to a limit, and end after an
//! idle period.
//!
//! ```text
//!   put(batch)        a worker                         another worker
//!   ----------        --------                         --------------
//!   locks once
//!   wakes one  ---->  takes the first item
//!                     more queued, and no thread
//!                     coming?  wakes one  ---------->  takes the next, ..
//!                     runs its item
//!                     takes the next
//! ```
//!
//! Each worker wakes the next one before it runs its own item. So `put` pays for one wake-up,
//! whatever the batch size; work that does not block is done by few threads, one item after the
//! other; and while work is queued and a thread is available, one is on its way (*somebody comes*).
//! The thread that became idle last is woken first: its stack is warm, and surplus threads time
//! out.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

/// An item of work for a pool. `run` must not panic.
pub(crate) trait Work: Send + 'static {
    fn run(self);
}

/// The properties of a pool's threads.
#[derive(Clone, Copy)]
pub(crate) struct PoolConfig {
    /// Shown by `ps -T` and debuggers.
    pub(crate) name: &'static str,
    pub(crate) max_threads: usize,
    pub(crate) stack_size: usize,
    /// How long an idle thread stays.
    pub(crate) idle_timeout: Duration,
    /// Whether to block signals, so that other threads handle them. Not where user code runs: a
    /// program started there would inherit the blocked signals, and could not be stopped.
    pub(crate) leaves_signals: bool,
}

/// A queue of work and its threads. It is never freed, because the threads may outlive its creator.
pub(crate) struct Pool<W: Work> {
    config: PoolConfig,
    /// The process that uses the pool first, to which its threads belong; 0 before.
    process: AtomicU32,
    start: fn(&'static Pool<W>) -> io::Result<()>,
    state: Mutex<State<W>>,
}

struct State<W> {
    queue: VecDeque<W>,
    /// Threads waiting for work; the last to become idle is at the end.
    idle: Vec<Thread>,
    /// Threads that have not ended, idle ones included.
    live: usize,
    /// Threads woken or started that have not reached the queue yet, but will check it.
    waking: usize,
}

/// How to get one more thread to check the queue. Decided under the lock, carried out without it.
enum Wakeup {
    None,
    Unpark(Thread),
    Spawn,
}

impl<W: Work> State<W> {
    /// Maintains *somebody comes*.
    fn next_wakeup(&mut self, max_threads: usize) -> Wakeup {
        if self.queue.is_empty() || self.waking > 0 {
            return Wakeup::None;
        }
        if let Some(thread) = self.idle.pop() {
            self.waking += 1;
            return Wakeup::Unpark(thread);
        }
        if self.live == max_threads {
            return Wakeup::None;
        }
        self.live += 1;
        self.waking += 1;
        Wakeup::Spawn
    }
}

impl<W: Work> Pool<W> {
    pub(crate) const fn new(config: PoolConfig) -> Pool<W> {
        let start = |pool: &'static Pool<W>| {
            let builder = thread::Builder::new().name(pool.config.name.into()).stack_size(pool.config.stack_size);
            builder.spawn(|| pool.serve()).map(drop)
        };
        let state = State { queue: VecDeque::new(), idle: Vec::new(), live: 0, waking: 0 };
        Pool { config, process: AtomicU32::new(0), start, state: Mutex::new(state) }
    }

    /// Whether the pool's threads belong to this process.
    pub(crate) fn is_ours(&self) -> bool {
        self.process.load(Ordering::Relaxed) == std::process::id()
    }

    /// Claims the pool for this process, before it is used. Fails in a forked child: it has none of
    /// the threads, and would wait for them forever.
    pub(crate) fn claim(&self) -> io::Result<()> {
        let me = std::process::id();
        // Relaxed: the value depends on the process alone, and guards no other data.
        match self.process.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed) {
            Err(other) if other != me => Err(refused_in_child()),
            _ => Ok(()),
        }
    }

    /// Queues work, in order. If there is no thread and none can be started, the caller's thread
    /// does the work before this returns.
    pub(crate) fn put(&'static self, work: impl Iterator<Item = W>) {
        let mut state = self.state.lock();
        state.queue.extend(work);
        let wakeup = state.next_wakeup(self.config.max_threads);
        drop(state);
        self.wake(wakeup);
    }

    /// Removes work from the queue that has not begun.
    pub(crate) fn remove(&self, wanted: impl Fn(&W) -> bool) -> Option<W> {
        let mut state = self.state.lock();
        let place = state.queue.iter().position(wanted)?;
        state.queue.remove(place)
    }

    fn wake(&'static self, wakeup: Wakeup) {
        match wakeup {
            Wakeup::None => {}
            Wakeup::Unpark(thread) => thread.unpark(),
            Wakeup::Spawn => {
                if (self.start)(self).is_err() {
                    self.run_inline();
                }
            }
        }
    }

    /// Handles a failure to start a thread: existing threads do the work; without any, the caller
    /// does.
    #[cold]
    fn run_inline(&'static self) {
        let mut state = self.state.lock();
        state.live -= 1;
        state.waking -= 1;
        // Other callers may have queued work meanwhile, relying on the thread that did not start;
        // and some threads may have become idle.
        if let Some(idle) = (!state.queue.is_empty()).then(|| state.idle.pop()).flatten() {
            state.waking += 1;
            drop(state);
            return idle.unpark();
        }
        while state.live == 0 {
            let Some(work) = state.queue.pop_front() else { break };
            drop(state);
            work.run();
            state = self.state.lock();
        }
    }

    /// The main function of a worker.
    fn serve(&'static self) {
        coralio_runtime::unrestrict_cpus();
        if self.config.leaves_signals {
            leave_signals_to_others();
        }
        let mut state = self.state.lock();
        state.waking -= 1;
        loop {
            if let Some(work) = state.queue.pop_front() {
                let wakeup = state.next_wakeup(self.config.max_threads);
                drop(state);
                self.wake(wakeup);
                work.run();
                state = self.state.lock();
            } else if let Some(again) = self.idle(state) {
                state = again;
            } else {
                return;
            }
        }
    }

    /// Waits for work. Returns `None` when the idle period is over and the thread ends.
    fn idle<'a>(&'a self, mut state: MutexGuard<'a, State<W>>) -> Option<MutexGuard<'a, State<W>>> {
        let me = thread::current();
        state.idle.push(me.clone());
        let since = Instant::now();
        loop {
            drop(state);
            thread::park_timeout(self.config.idle_timeout.saturating_sub(since.elapsed()));
            state = self.state.lock();
            match state.idle.iter().position(|thread| thread.id() == me.id()) {
                // The thread that removed this one from the list has counted it in `waking`.
                None => {
                    state.waking -= 1;
                    return Some(state);
                }
                Some(place) if since.elapsed() >= self.config.idle_timeout => {
                    state.idle.remove(place);
                    state.live -= 1;
                    return None;
                }
                Some(_) => {}
            }
        }
    }
}

/// Blocks asynchronous signals so that handlers run on the program's own threads. Synchronous
/// faults stay deliverable.
fn leave_signals_to_others() {
    // SAFETY: the set is plain data, filled before it is read; nothing else is touched.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&mut set);
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT] {
            libc::sigdelset(&mut set, fault);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut());
    }
}

/// Returns the error for work of a forked child.
pub(crate) fn refused_in_child() -> io::Error {
    let why = "no pool threads after fork: they belong to the process that this one was forked from; call exec or _exit \
         in the child, or fork before the first `run`";
    io::Error::new(io::ErrorKind::Unsupported, why)
}

#[cfg(test)]
pub(crate) mod tests;
