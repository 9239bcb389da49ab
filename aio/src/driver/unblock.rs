//! Blocking work on pool threads (rule E15): the coroutine waits while its loop continues.
//!
//! The states of a call, in order:
//!
//! | stage   | contains    | ended by                                                              |
//! |---------|-------------|-----------------------------------------------------------------------|
//! | Queued  | the closure | a worker that takes it; or the cancelled caller, which gets it back   |
//! | Running |             | the worker, when the closure has returned or panicked                 |
//! | Done    | the result  | the caller                                                            |
//! | Over    |             |                                                                       |
//!
//! *Never left behind*: a call returns or unwinds only from Queued or Done, so the closure never
//! runs after its caller is gone. Calls have a pool separate from the one for I/O: a closure may
//! wait for anything, even for I/O of the coroutine that waits for it.

use std::io;
use std::iter;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use coralio_runtime::{AioContext, Cancelled, CoroutineId, HomeRef};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::backend::pool::{Pool, PoolConfig, Work, refused_in_child};
use crate::driver::Driver;

const CONFIG: PoolConfig = PoolConfig {
    name: "coralio-call",
    // What the closures wait for is unknown, so the limit only prevents runaway thread creation.
    max_threads: 64,
    // As large as std's thread stacks, because user code runs there.
    stack_size: 2 << 20,
    idle_timeout: Duration::from_secs(5),
    leaves_signals: false,
};

/// Runs the blocking closure `f` on a pool thread and returns its result. The coroutine is
/// suspended meanwhile, and its loop continues.
///
/// Up to 64 such calls run at the same time in a process; further ones are queued. `f` runs on the
/// calling thread, which blocks, in three cases: no thread can be started at all; the call is made
/// outside a coroutine; or in a [simulation](mod@crate::simulate).
///
/// ```
/// let hosts = coralio::run(|| coralio::unblock(|| std::fs::read_to_string("/etc/hosts")))??;
/// assert!(!hosts.is_empty());
/// # std::io::Result::Ok(())
/// ```
///
/// # Errors
///
/// [`Cancelled`](coralio_runtime::Cancelled), if the coroutine was cancelled or an enclosing
/// timeout expired before `f` began: `f` then never runs. Once `f` has begun, the call waits for
/// it. `Unsupported`: the process was forked inside a context, or from one that uses the pool.
///
/// # Panics
///
/// Propagates `f`'s panic.
///
/// # Control
///
/// May yield. Blocks the thread if the coroutine cannot suspend, as in a destructor while the stack
/// unwinds, and may hold the context's lock meanwhile: `f` must not wait for that lock.
#[doc(alias = "spawn_blocking")]
pub fn unblock<F, T>(f: F) -> io::Result<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    static POOL: Pool<Box<dyn FnOnce() + Send>> = Pool::new(CONFIG);
    unblock_on(&POOL, f)
}

impl Work for Box<dyn FnOnce() + Send> {
    fn run(self) {
        // A panic of `f` has been caught already; this one is from the destructor of an unclaimed
        // result.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(self)) {
            mem::forget(payload);
        }
    }
}

fn unblock_on<F, T>(pool: &'static Pool<Box<dyn FnOnce() + Send>>, f: F) -> io::Result<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let context = AioContext::current();
    let current = context.as_ref().and_then(|context| context.at_home(|here| here.current()).flatten());
    let (Some(context), Some(caller)) = (context, current) else {
        return if HomeRef::in_child() { Err(refused_in_child()) } else { Ok(f()) };
    };
    context.at_home(|here| here.check_cancelled()).transpose()?;
    // Another thread's timing would make the simulation nondeterministic.
    if Driver::simulated().is_some() {
        return Ok(f());
    }
    pool.claim()?;
    let call = Arc::new(BlockingTask {
        state: Mutex::new(TaskState { queued: Some(f), is_running: false, done: None }),
        done: Condvar::new(),
        context: context.clone(),
        caller,
    });
    let work = Arc::clone(&call);
    let caught = TaskGuard(&call);
    pool.put(iter::once(Box::new(move || work.run()) as Box<dyn FnOnce() + Send>));
    let result = || call.state.lock().done.take().map(Ok);
    let cancel = || call.take_closure(false).map(Err);
    let found = context.at_home(|here| here.suspend_until(result, cancel)).flatten();
    mem::forget(caught);
    match found.unwrap_or_else(|| Ok(call.take_in_place())) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(payload)) => resume_unwind(payload),
        Err(_closure) => {
            // The closure will not run, so an expired timeout reports the error.
            let _ = context.at_home(|here| here.check_cancelled());
            Err(Cancelled.into())
        }
    }
}

struct BlockingTask<F, T> {
    state: Mutex<TaskState<F, T>>,
    /// For a caller that cannot suspend.
    done: Condvar,
    context: AioContext,
    caller: CoroutineId,
}

/// At most one of these; none when the call is over.
struct TaskState<F, T> {
    queued: Option<F>,
    is_running: bool,
    done: Option<thread::Result<T>>,
}

impl<F: FnOnce() -> T, T> BlockingTask<F, T> {
    /// Takes the closure if it has not begun, to run it on a worker or not.
    fn take_closure(&self, is_running: bool) -> Option<F> {
        let mut state = self.state.lock();
        let f = state.queued.take()?;
        state.is_running = is_running;
        Some(f)
    }

    fn run(&self) {
        let Some(f) = self.take_closure(true) else { return };
        let result = catch_unwind(AssertUnwindSafe(f));
        {
            let mut state = self.state.lock();
            state.is_running = false;
            state.done = Some(result);
        }
        self.done.notify_one();
        self.context.schedule(self.caller);
    }

    /// Returns the result without suspending. Runs a closure that has not begun, since this thread
    /// blocks anyway.
    #[cold]
    fn take_in_place(&self) -> thread::Result<T> {
        match self.take_closure(false) {
            Some(f) => catch_unwind(AssertUnwindSafe(f)),
            None => self.wait_in_place().done.take().expect("a finished call has a result, taken once"),
        }
    }

    fn wait_in_place(&self) -> MutexGuard<'_, TaskState<F, T>> {
        let mut state = self.state.lock();
        self.done.wait_while(&mut state, |state| state.is_running);
        state
    }
}

/// Guard for an unwinding caller, as when its context ends: a closure that has not begun never
/// runs, and one that has is awaited.
struct TaskGuard<'a, F: FnOnce() -> T, T>(&'a BlockingTask<F, T>);

impl<F: FnOnce() -> T, T> Drop for TaskGuard<'_, F, T> {
    fn drop(&mut self) {
        if self.0.take_closure(false).is_none() {
            drop(self.0.wait_in_place());
        }
    }
}

#[cfg(test)]
mod tests;
