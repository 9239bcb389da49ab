//! Several contexts, each with its I/O engine and a thread of its own.
//!
//! ```text
//!   the caller     thread 0                     thread 1
//!   ----------     --------                     --------
//!   run(f)  --->   context, engine              context, engine
//!                  f(0)                         f(1) returns; the loop continues
//!                  contexts()[1].spawn(..) -->  runs the coroutine
//!                  returns; all have returned:
//!   results  <---  the context ends             the context ends
//! ```

use std::io;
use std::panic::resume_unwind;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use coralio_runtime::{AioContext, Semaphore, allowed_cpus, explained};

use crate::builder::RuntimeBuilder;

/// Configures several contexts of the same settings, each on a thread of its own, and runs them:
/// see [`RuntimeBuilder::threads`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ThreadBuilder {
    settings: RuntimeBuilder,
    count: usize,
    pinned: bool,
}

/// The contexts that run together, and the index of this thread.
#[derive(Clone, Copy, Debug)]
pub struct ContextThreads<'a> {
    index: usize,
    contexts: &'a [AioContext],
}

impl<'a> ContextThreads<'a> {
    /// Returns the index of this thread, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns the contexts of all threads, by index, to hand work to them:
    /// [`AioContext::spawn`].
    pub fn contexts(&self) -> &'a [AioContext] {
        self.contexts
    }
}

impl ThreadBuilder {
    pub(crate) fn new(settings: RuntimeBuilder, count: usize) -> ThreadBuilder {
        ThreadBuilder { settings, count, pinned: false }
    }

    /// Sets whether each thread stays on one CPU: thread 0 on the first that the calling thread may
    /// use, thread 1 on the second, and so on, from the start again if there are more threads than
    /// CPUs. Default: false.
    pub fn pinned(mut self, pinned: bool) -> ThreadBuilder {
        self.pinned = pinned;
        self
    }

    /// Runs `f` on each thread, as the first coroutine of the thread's context, and returns the
    /// results by index.
    ///
    /// The loops run until `f` has returned on all threads; so a thread whose `f` returns early
    /// still serves coroutines that others spawn in its context. Then the remaining coroutines are
    /// unwound.
    ///
    /// ```
    /// use coralio::RuntimeBuilder;
    ///
    /// let sums = RuntimeBuilder::new().threads(2).run(|threads| {
    ///     let next = &threads.contexts()[(threads.index() + 1) % 2];
    ///     next.spawn(|| (1..=10).sum::<i32>()).join().unwrap()
    /// })?;
    /// assert_eq!(sums, [55, 55]);
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`RuntimeBuilder::run`], or a thread cannot be created. `InvalidInput`: no thread. `f` then
    /// runs on none of them.
    ///
    /// # Panics
    ///
    /// Propagates the panic of the first thread, by index, on which `f` panicked; the other threads
    /// have ended by then.
    ///
    /// # Control
    ///
    /// Blocks the thread.
    pub fn run<T: Send>(self, f: impl Fn(ContextThreads<'_>) -> T + Sync) -> io::Result<Vec<T>> {
        let ThreadBuilder { settings, count, pinned } = self;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "invalid number of threads 0: must be 1 or more"));
        }
        let cpus = if pinned { allowed_cpus()? } else { Vec::new() };
        let meeting = Meeting::new(count);
        let (meeting, f) = (&meeting, &f);
        thread::scope(|scope| {
            let started = (0..count).map(|index| {
                let mut settings = settings.clone();
                if pinned {
                    settings = settings.cpus([cpus[index % cpus.len()]]);
                }
                let thread = thread::Builder::new().name(format!("coralio-{index}"));
                let spawned = thread.spawn_scoped(scope, move || meeting.attend(index, settings, f));
                spawned.map_err(|error| meeting.fail(index, error))
            });
            let threads: Vec<_> = started.map_while(Result::ok).collect();
            let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
            if let Some(error) = meeting.error() {
                return Err(error);
            }
            Ok(ended.into_iter().flat_map(|ended| ended.unwrap_or_else(|panic| resume_unwind(panic))).collect())
        })
    }
}

/// Where the threads meet: before `f`, when all contexts exist; and after `f` has returned on all.
struct Meeting {
    start: Mutex<Start>,
    arrived: Condvar,
    /// For each thread, one permit from each thread on which `f` has ended.
    ended: Box<[Semaphore]>,
}

struct Start {
    contexts: Vec<Option<AioContext>>,
    error: Option<io::Error>,
}

impl Meeting {
    fn new(count: usize) -> Meeting {
        Meeting {
            start: Mutex::new(Start { contexts: vec![None; count], error: None }),
            arrived: Condvar::new(),
            ended: (0..count).map(|_| Semaphore::new(0)).collect(),
        }
    }

    fn start(&self) -> MutexGuard<'_, Start> {
        self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a thread's part. Returns `None` if a thread failed to start.
    fn attend<T>(&self, index: usize, settings: RuntimeBuilder, f: &impl Fn(ContextThreads<'_>) -> T) -> Option<T> {
        let ran = settings.run(|| {
            let contexts = self.arrive(index)?;
            let ended = Ended(self);
            let result = f(ContextThreads { index, contexts: &contexts });
            drop(ended);
            let _all = self.ended[index].acquire_many(contexts.len());
            Some(result)
        });
        ran.unwrap_or_else(|error| {
            self.fail(index, error);
            None
        })
    }

    /// Waits until all threads have a context, and returns them; `None` if one failed. Blocks the
    /// thread, whose context has nothing to run yet.
    fn arrive(&self, index: usize) -> Option<Box<[AioContext]>> {
        let mut start = self.start();
        start.contexts[index] = AioContext::current();
        self.arrived.notify_all();
        while start.error.is_none() {
            if let Some(contexts) = start.contexts.iter().cloned().collect() {
                return Some(contexts);
            }
            start = self.arrived.wait(start).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn fail(&self, index: usize, error: io::Error) {
        let why = format!("cannot start thread {index} with a context: {error}");
        self.start().error.get_or_insert_with(|| explained(error.kind(), why, error));
        self.arrived.notify_all();
    }

    fn error(&self) -> Option<io::Error> {
        self.start().error.take()
    }
}

/// Tells all threads, when dropped, that `f` has ended on one of them, even by a panic.
struct Ended<'a>(&'a Meeting);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.ended.iter().for_each(|thread| thread.add_permits(1));
    }
}
