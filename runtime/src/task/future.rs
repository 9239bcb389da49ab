//! Futures and coroutines, in both directions: a coroutine waits for any `Future`, and handles are
//! `Future`s. No second runtime.
//!
//! Waiting for a future means polling it, and suspending until its waker is called. The waker only
//! schedules and never enters: it may be called with foreign locks held. A poll may itself wait,
//! and consume the wake; so a flag also records that the waker was called.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker as TaskWaker};
use std::thread::{self, Thread};

use parking_lot::Mutex;

use crate::AioContext;
use crate::context::shared::SharedContext;
use crate::coroutine::error::Cancelled;
use crate::coroutine::wait_reason::WaitReason;
use crate::scheduler::Home;
use crate::task::coroutine::Coroutine;
use crate::task::waker::Waker;

/// The waker of a thread or coroutine that waits for a future.
struct FutureWaker {
    target: WakeTarget,
    /// Whether the waker was called since the last poll of the future.
    called: AtomicBool,
}

enum WakeTarget {
    Coroutine(Waker),
    /// The stack of a thread that runs a context: the loop runs meanwhile.
    Loop(Arc<SharedContext>),
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
/// A future that needs a runtime, as tokio's sockets do, finds it if that runtime was entered on
/// this thread. Enter it once, around the call that runs the context. A guard of `Handle::enter`
/// that a coroutine holds across a suspension makes tokio panic as soon as two coroutines drop
/// theirs out of order: see [thread state held across a
/// suspension](crate#thread-state-held-across-a-suspension). tokio's sockets and timers need a
/// runtime whose own threads drive them (`new_multi_thread`).
///
/// ```
/// use coralio_runtime::{AioContext, await_future, spawn};
///
/// let tokio = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// let _entered = tokio.enter();
/// AioContext::run(|_ctx| {
///     let tasks = [1, 2].map(|n| spawn(move || await_future(tokio::task::spawn_blocking(move || n * 10))));
///     let results = tasks.map(|task| task.join().unwrap().unwrap().unwrap());
///     assert_eq!(results, [10, 20]);
/// });
/// ```
///
/// ```
/// use coralio_runtime::{AioContext, await_future, spawn};
///
/// AioContext::run(|_ctx| {
///     let sum = spawn(|| await_future(async { 40 + 2 }));
///     let sum = spawn(|| await_future(sum).unwrap()); // a handle is a future too
///     assert_eq!(sum.join().unwrap().unwrap(), Ok(42));
/// });
/// ```
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
pub fn await_future<F: IntoFuture>(future: F) -> Result<F::Output, Cancelled> {
    let home = Home::current();
    let target = match (home, Coroutine::current()) {
        (_, Some(coroutine)) => WakeTarget::Coroutine(coroutine.waker()),
        (Some(home), None) => WakeTarget::Loop(home.shared.clone()),
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
        Some(home) if home.running().is_some() => home.suspend_until(WaitReason::Future, look),
        _ => loop {
            if let Some(output) = look() {
                return Ok(output);
            }
            match home {
                Some(home) => drop(home.context.poll(true)),
                None => thread::park(),
            }
        },
    }
}

/// The shared slot in which a coroutine of another thread stores its outcome.
struct SharedResult<T> {
    outcome: Option<thread::Result<T>>,
    /// Whether there is, or was, an outcome.
    filled: bool,
    /// The waker of the waiting party.
    waiter: Option<TaskWaker>,
    /// The coroutine, once it has started.
    coroutine: Option<Waker>,
    cancelled: bool,
}

/// The sending end of a slot. Dropping it stores the outcome; without one, it stores that the
/// coroutine never ran.
struct ResultSender<T> {
    slot: Arc<Mutex<SharedResult<T>>>,
    outcome: Option<thread::Result<T>>,
}

impl<T> ResultSender<T> {
    /// Called by the coroutine when it starts. It may have been cancelled before.
    fn begin(&self) {
        let me = Coroutine::current().expect("the body of a coroutine runs in one");
        let mut slot = self.slot.lock();
        slot.coroutine = Some(me.waker());
        let cancelled = slot.cancelled;
        drop(slot);
        if cancelled {
            me.cancel();
        }
    }

    /// Stores this outcome.
    fn sender(mut self, outcome: thread::Result<T>) {
        self.outcome = Some(outcome);
    }
}

impl<T> Drop for ResultSender<T> {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| Err(Box::new(Cancelled)));
        let mut slot = self.slot.lock();
        slot.coroutine = None;
        slot.outcome = Some(outcome);
        slot.filled = true;
        let waiter = slot.waiter.take();
        drop(slot);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

impl AioContext {
    /// Spawns a coroutine in this context that runs `f`, from any thread: it runs in the loop's
    /// next iteration, and the loop is notified.
    ///
    /// Dropping the handle detaches the coroutine. If the context has ended, or ends before the
    /// coroutine ran, `f` is dropped, and the handle returns [`Cancelled`].
    ///
    /// ```
    /// use coralio_runtime::LoopThread;
    ///
    /// let worker = LoopThread::start("worker").unwrap();
    /// let name = worker.context().spawn(|| std::thread::current().name().map(str::to_string));
    /// assert_eq!(name.join().unwrap().unwrap(), "worker");
    /// worker.stop().unwrap();
    /// ```
    #[track_caller]
    pub fn spawn<F, T>(&self, f: F) -> RemoteHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let slot = SharedResult { outcome: None, filled: false, waiter: None, coroutine: None, cancelled: false };
        let slot = Arc::new(Mutex::new(slot));
        let sender = ResultSender { slot: Arc::clone(&slot), outcome: None };
        let builder = Coroutine::builder();
        self.shared.arrive(Box::new(move || {
            let body = move || {
                sender.begin();
                sender.sender(catch_unwind(AssertUnwindSafe(f)));
            };
            // On failure (no memory) it drops the body, and with it `sender`, which reports the
            // failure to the handle.
            drop(builder.spawn(body));
        }));
        RemoteHandle { slot }
    }

    /// Runs `f` as a coroutine of this context, and waits for its result. Coroutines cannot
    /// migrate; this is how to run code on another thread. Called from the same context, it just
    /// calls `f`.
    ///
    /// # Errors
    ///
    /// The payload of a panic of `f`; or [`Cancelled`], if the context ended before `f` did, or the
    /// wait was cut short. In the latter case `f` is cancelled, and continues detached.
    ///
    /// # Control
    ///
    /// May yield; on a thread's own stack, as [`await_future`].
    #[track_caller]
    #[doc(alias = "aio_co_reschedule_self")]
    pub fn reschedule<F, T>(&self, f: F) -> thread::Result<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        if self.is_home() {
            return Ok(f());
        }
        self.spawn(f).join()
    }
}

/// A handle to a coroutine spawned in a context from any thread: waits for the coroutine and
/// returns its result. It is `Send`, and a `Future`.
#[must_use = "dropping the handle detaches the coroutine; call `drop` on it if that is intended"]
pub struct RemoteHandle<T> {
    slot: Arc<Mutex<SharedResult<T>>>,
}

impl<T> RemoteHandle<T> {
    /// Waits until the coroutine has ended, as [`await_future`] does.
    ///
    /// # Errors
    ///
    /// The payload of its panic; or [`Cancelled`], if its context ended before the coroutine did,
    /// or the wait was cut short. In the latter case the coroutine is cancelled, and continues
    /// detached.
    ///
    /// # Control
    ///
    /// May yield; on a thread's own stack, as [`await_future`].
    #[track_caller]
    pub fn join(mut self) -> thread::Result<T> {
        match await_future(&mut self) {
            Ok(outcome) => outcome,
            Err(cancelled) => {
                self.cancel();
                Err(Box::new(cancelled))
            }
        }
    }

    /// Cancels the coroutine, as [`Coroutine::cancel`]. Callable from any thread.
    ///
    /// # Control
    ///
    /// May enter the coroutine, on its home thread.
    #[track_caller]
    pub fn cancel(&self) {
        let mut slot = self.slot.lock();
        slot.cancelled = true;
        let coroutine = slot.coroutine.clone();
        drop(slot);
        if let Some(coroutine) = coroutine {
            coroutine.cancel();
        }
    }

    /// Returns whether [`join`](Self::join) would return immediately.
    pub fn is_finished(&self) -> bool {
        self.slot.lock().outcome.is_some()
    }
}

impl<T> Future for RemoteHandle<T> {
    type Output = thread::Result<T>;

    /// # Panics
    ///
    /// If polled again after it returned `Ready`.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<thread::Result<T>> {
        // A waker is foreign code: cloned before the slot is locked; the previous waker is dropped
        // after the lock is released.
        let waker = context.waker().clone();
        let mut slot = self.slot.lock();
        if let Some(outcome) = slot.outcome.take() {
            drop(slot);
            return Poll::Ready(outcome);
        }
        assert!(!slot.filled, "join handle polled after it returned its result");
        let before = slot.waiter.replace(waker);
        drop(slot);
        drop(before);
        Poll::Pending
    }
}

impl<T> fmt::Debug for RemoteHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteHandle").field("is_finished", &self.is_finished()).finish_non_exhaustive()
    }
}
