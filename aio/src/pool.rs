//! Threads for what only blocks: started on demand up to a bound, and ended when they were idle for
//! a while.
//!
//! ```text
//!   put(batch)        a worker                         another one
//!   ----------        --------                         -----------
//!   one lock
//!   wakes one  ---->  takes the first
//!                     is there more, and nobody on
//!                     the way?  wakes one  --------->  takes the next, ..
//!                     runs what it took
//!                     takes the next
//! ```
//!
//! Each wakes the next one before it blocks itself. So whoever puts pays for one wake, whatever the
//! batch; work that does not block is done by few threads, one after the other; and while work is
//! left and a thread is to be had, somebody is on the way (*somebody comes*). The one that went
//! idle last is woken first: its stack is warm, and those that nobody needs come to their end.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// What a thread of a pool does. It does not panic.
pub(crate) trait Work: Send + 'static {
    fn run(self);
}

/// What a pool's threads are like.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Shown by `ps -T` and debuggers.
    pub(crate) name: &'static str,
    pub(crate) most: usize,
    pub(crate) stack_size: usize,
    /// For how long an idle one stays.
    pub(crate) patience: Duration,
    /// Whether signals are left to other threads. Not where the user's code runs: a program that it
    /// starts inherits what is blocked, and could not be stopped.
    pub(crate) leaves_signals: bool,
}

/// A queue of work and the threads that do it. It is never freed: they may outlive whoever made it.
pub(crate) struct Pool<W: Work> {
    kind: Kind,
    /// The process whose threads they are: a forked child has none of them.
    process: u32,
    start: fn(&'static Pool<W>) -> io::Result<()>,
    state: Mutex<State<W>>,
}

struct State<W> {
    queue: VecDeque<W>,
    /// Those that wait for work, the last to come at the end.
    idle: Vec<Thread>,
    /// Threads that have not ended, idle ones included.
    live: usize,
    /// Woken or started, and not here yet: they will look at the queue.
    coming: usize,
}

/// How one more thread comes to look at the queue. Decided under the lock, done without it.
enum Summons {
    Nobody,
    Wake(Thread),
    Start,
}

impl<W: Work> State<W> {
    /// Keeps up that *somebody comes*.
    fn summon(&mut self, most: usize) -> Summons {
        if self.queue.is_empty() || self.coming > 0 {
            return Summons::Nobody;
        }
        if let Some(thread) = self.idle.pop() {
            self.coming += 1;
            return Summons::Wake(thread);
        }
        if self.live == most {
            return Summons::Nobody;
        }
        self.live += 1;
        self.coming += 1;
        Summons::Start
    }
}

impl<W: Work> Pool<W> {
    pub(crate) fn new(kind: Kind) -> Pool<W> {
        let start = |pool: &'static Pool<W>| {
            let builder = thread::Builder::new().name(pool.kind.name.into()).stack_size(pool.kind.stack_size);
            builder.spawn(|| pool.serve()).map(drop)
        };
        let state = State { queue: VecDeque::new(), idle: Vec::new(), live: 0, coming: 0 };
        Pool { kind, process: std::process::id(), start, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its threads are this process's.
    pub(crate) fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }

    /// Puts work on the queue, in order. If there is no thread and none can be started, this one
    /// does the work before it returns.
    pub(crate) fn put(&'static self, work: impl Iterator<Item = W>) {
        let mut state = self.state();
        state.queue.extend(work);
        let summons = state.summon(self.kind.most);
        drop(state);
        self.bring(summons);
    }

    /// Takes work off the queue that nobody has begun.
    pub(crate) fn take_back(&self, wanted: impl Fn(&W) -> bool) -> Option<W> {
        let mut state = self.state();
        let place = state.queue.iter().position(wanted)?;
        state.queue.remove(place)
    }

    fn bring(&'static self, summons: Summons) {
        match summons {
            Summons::Nobody => {}
            Summons::Wake(thread) => thread.unpark(),
            Summons::Start => {
                if (self.start)(self).is_err() {
                    self.do_without();
                }
            }
        }
    }

    /// No thread could be started. Those that live do the work; if none does, this one.
    #[cold]
    fn do_without(&'static self) {
        let mut state = self.state();
        state.live -= 1;
        state.coming -= 1;
        // Others may have put theirs meanwhile, counting on the one that did not come; and some may
        // have gone idle.
        if let Some(idle) = (!state.queue.is_empty()).then(|| state.idle.pop()).flatten() {
            state.coming += 1;
            drop(state);
            return idle.unpark();
        }
        while state.live == 0
            && let Some(work) = state.queue.pop_front()
        {
            drop(state);
            work.run();
            state = self.state();
        }
    }

    /// A thread's life.
    fn serve(&'static self) {
        if self.kind.leaves_signals {
            leave_signals_to_others();
        }
        let mut state = self.state();
        state.coming -= 1;
        loop {
            if let Some(work) = state.queue.pop_front() {
                let summons = state.summon(self.kind.most);
                drop(state);
                self.bring(summons);
                work.run();
                state = self.state();
            } else if let Some(again) = self.idle(state) {
                state = again;
            } else {
                return;
            }
        }
    }

    /// Waits for work. `None`: none came for so long that the thread ends.
    fn idle<'a>(&'a self, mut state: MutexGuard<'a, State<W>>) -> Option<MutexGuard<'a, State<W>>> {
        let me = thread::current();
        state.idle.push(me.clone());
        let since = Instant::now();
        loop {
            drop(state);
            thread::park_timeout(self.kind.patience.saturating_sub(since.elapsed()));
            state = self.state();
            match state.idle.iter().position(|thread| thread.id() == me.id()) {
                // Whoever takes one off the list has made it come.
                None => {
                    state.coming -= 1;
                    return Some(state);
                }
                Some(place) if since.elapsed() >= self.kind.patience => {
                    state.idle.remove(place);
                    state.live -= 1;
                    return None;
                }
                Some(_) => {}
            }
        }
    }
}

/// Signal handlers run on a thread that the program knows, with a stack to its taste. What a thread
/// brings on itself by a fault it still gets.
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

/// The process's pool of one kind, made when first asked for; a forked child makes its own.
pub(crate) struct Global<W: Work>(AtomicPtr<Pool<W>>);

impl<W: Work> Global<W> {
    pub(crate) const fn new() -> Global<W> {
        Global(AtomicPtr::new(ptr::null_mut()))
    }

    /// No lock, which a fork could leave locked in the child for ever.
    pub(crate) fn get(&self, kind: Kind) -> &'static Pool<W> {
        loop {
            // Acquire pairs with the release below: the pool is complete.
            let there = self.0.load(Ordering::Acquire);
            // SAFETY: what is put there is never freed.
            if let Some(pool) = unsafe { there.as_ref() }.filter(|pool| pool.is_ours()) {
                return pool;
            }
            let new = Box::into_raw(Box::new(Pool::new(kind)));
            if self.0.compare_exchange(there, new, Ordering::Release, Ordering::Relaxed).is_err() {
                // SAFETY: made above, and nobody else has seen it.
                drop(unsafe { Box::from_raw(new) });
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
