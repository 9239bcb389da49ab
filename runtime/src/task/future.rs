//! Futures and coroutines, in both directions: a coroutine waits for any `Future`, and handles are
//! `Future`s. No second runtime.
//!
//! Waiting for a future means polling it, and suspending until its waker is called. The waker only
//! schedules and never enters: it may be called with foreign locks held. A poll may itself wait,
//! and consume the wake; so a flag also records that the waker was called.

use std::future::{Future, IntoFuture};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker as TaskWaker};
use std::thread::{self, Thread};

use crate::context::LocalContext;
use crate::coroutine::{Cancelled, WaitReason};
use crate::scheduler::SharedScheduler;
use crate::task::{Coroutine, Waker};

/// The waker of a thread or coroutine that waits for a future.
struct FutureWaker {
    target: WakeTarget,
    /// Whether the waker was called since the last poll of the future.
    called: AtomicBool,
}

enum WakeTarget {
    Coroutine(Waker),
    /// The stack of a thread that runs a context: the loop runs meanwhile.
    Loop(Arc<SharedScheduler>),
    /// Any other thread.
    Thread(Thread),
}

impl Wake for FutureWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Relaxed: the woken party sees the store through the lock, the state word, the
        // notification or the park token that wakes it.
        self.called.store(true, Ordering::Relaxed);
        self.target.wake();
    }
}

impl WakeTarget {
    fn wake(&self) {
        match self {
            // An error means it is scheduled already: one wake serves both calls.
            WakeTarget::Coroutine(waker) => drop(waker.schedule()),
            WakeTarget::Loop(shared) => shared.notify(),
            WakeTarget::Thread(thread) => thread.unpark(),
        }
    }
}

/// Waits for `future`. A coroutine is suspended meanwhile; on the stack of a thread that runs a
/// context, the loop runs meanwhile; any other thread is blocked.
///
/// The future is polled only by this call, so it need not be `Send`.
///
/// ```
/// use coralio::{block_on, spawn};
///
/// let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// let _entered = tokio.enter();
/// coralio::run(|| {
///     let tasks = [1, 2].map(|n| spawn(move || block_on(tokio::task::spawn_blocking(move || n * 10))));
///     let results = tasks.map(|task| task.join().unwrap().unwrap().unwrap());
///     assert_eq!(results, [10, 20]);
/// });
/// ```
///
/// ```
/// use coralio::{block_on, spawn};
///
/// coralio::run(|| {
///     let sum = spawn(|| block_on(async { 40 + 2 }));
///     let sum = spawn(|| block_on(sum).unwrap()); // a handle is a future too
///     assert_eq!(sum.join().unwrap().unwrap(), Ok(42));
/// });
/// ```
///
/// # With other executors
///
/// - *Runtime of a future.* A future that needs a runtime, as tokio's sockets do, finds it if that
///   runtime was entered on this thread. Enter it once, around the call that runs the context. A guard
///   of `Handle::enter` that a coroutine holds across a suspension makes tokio panic as soon as two
///   coroutines drop theirs out of order: see [thread state held across a
///   suspension](crate#thread-state-held-across-a-suspension). tokio's sockets and timers need a
///   runtime whose own threads drive them (`new_multi_thread`).
/// - *Within an executor's task.* Outside a context, this function and the handles' `join` block the
///   thread, and with it all tasks that the executor would run there; a future that needs one of them
///   is never ready. tokio's own `block_on` panics there, this one cannot know. `await` the handle
///   instead: any executor can.
/// - *Handles as futures.* A [`JoinHandle`](crate::JoinHandle) stays on its thread. For tasks on other
///   threads spawn by [`AioContext::spawn`](crate::AioContext::spawn), whose handle is `Send`. Dropping
///   either future detaches the coroutine; `cancel_on_drop` turns the handle into a future that
///   cancels it, as expected of an `async fn` under a timeout or in `select!`.
/// - *Cancelled waits.* The future is dropped where it waits, as by `select!`. If it is not
///   cancel-safe, what it has done by then is lost: wait under a [`shield`](crate::shield), pass the
///   future by `&mut` and wait again, or hand it to its own runtime (`tokio::spawn`) and wait for that
///   handle.
/// - *Wakers.* The waker passed to the future may be called on any thread, with locks held, and more
///   than once: it only schedules the coroutine for the loop's next iteration, and notifies the loop
///   at most once per sleep. The waker of an executor that polls a handle is called on the thread of
///   the context when the coroutine ends, outside any coroutine; an executor that runs the task inside
///   `wake` holds up the loop.
/// - *Stack.* The future lies on the stack of the coroutine, and is polled there: box a large one, or
///   set [`stack_size`](crate::CoroutineBuilder::stack_size).
///
/// # Errors
///
/// [`Cancelled`], if the coroutine was cancelled or an enclosing timeout expired. The future is
/// then dropped.
///
/// # Control
///
/// May yield; on a thread's own stack, may enter.
#[track_caller]
pub fn block_on<F: IntoFuture>(future: F) -> Result<F::Output, Cancelled> {
    let home = LocalContext::current();
    let target = match (home, Coroutine::current()) {
        (_, Some(coroutine)) => WakeTarget::Coroutine(coroutine.waker()),
        (Some(home), None) => WakeTarget::Loop(Arc::clone(&home.context.shared.scheduler)),
        (None, None) => WakeTarget::Thread(thread::current()),
    };
    let future_waker = Arc::new(FutureWaker { target, called: AtomicBool::new(false) });
    let waker = TaskWaker::from(Arc::clone(&future_waker));
    let mut future = pin!(future.into_future());
    let mut look = || {
        future_waker.called.store(false, Ordering::Relaxed);
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => {
                // A wait within that poll may have consumed the wake. Wake again rather than poll
                // immediately, which would give other coroutines no turn.
                if future_waker.called.load(Ordering::Relaxed) {
                    future_waker.target.wake();
                }
                None
            }
        }
    };
    match home {
        Some(home) if home.scheduler.running().is_some() => home.scheduler.suspend_until(WaitReason::Future, look),
        Some(home) => {
            let mut output = None;
            home.context.poll_until(|| {
                output = look();
                output.is_some()
            });
            // The loop ran until there was one.
            output.ok_or(Cancelled)
        }
        None => loop {
            if let Some(output) = look() {
                return Ok(output);
            }
            thread::park();
        },
    }
}
