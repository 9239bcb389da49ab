//! Coroutines spawned from other threads, and their join handles.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker as TaskWaker};
use std::thread;

use parking_lot::Mutex;

use crate::context::AioContext;
use crate::coroutine::Cancelled;
use crate::sys::__rust_begin_short_backtrace;
use crate::task::{Coroutine, CoroutineBuilder, Waker, block_on};

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
    fn send(mut self, outcome: thread::Result<T>) {
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
    /// use coralio::context::IoThread;
    ///
    /// let worker = IoThread::start("worker").unwrap();
    /// let name = worker.context().spawn(|| std::thread::current().name().map(str::to_string));
    /// assert_eq!(name.join().unwrap().unwrap(), "worker");
    /// worker.stop().unwrap();
    /// ```
    #[track_caller]
    pub fn spawn<F, T>(&self, f: F) -> RemoteJoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Coroutine::builder().spawn_on(self, f)
    }

    /// Runs `f` as a coroutine of this context, and waits for its result. Coroutines cannot
    /// migrate; this is how to run code on another thread. Called from the same context, it just
    /// calls `f`.
    ///
    /// ```
    /// use coralio::context::{AioContext, IoThread};
    /// use std::thread;
    ///
    /// let worker = IoThread::start("worker").unwrap();
    /// AioContext::run(|ctx| {
    ///     let context = worker.context().clone();
    ///     assert!(ctx.is_home() && !context.is_home() && !context.is_same(ctx));
    ///     let name = context.run_on(|| thread::current().name().map(str::to_string)).unwrap();
    ///     assert_eq!(name.as_deref(), Some("worker"));
    /// });
    /// worker.stop().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The payload of a panic of `f`; or [`Cancelled`], if the context ended before `f` did, or the
    /// wait was cut short. In the latter case `f` is cancelled, and continues detached.
    ///
    /// # Control
    ///
    /// May yield; on a thread's own stack, as [`block_on`].
    #[track_caller]
    #[doc(alias = "aio_co_reschedule_self")]
    pub fn run_on<F, T>(&self, f: F) -> thread::Result<T>
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

impl CoroutineBuilder {
    /// Spawns a coroutine in `context` as [`AioContext::spawn`] does, from any thread, with this name
    /// and stack size.
    ///
    /// ```
    /// use coralio::context::IoThread;
    /// use coralio::coroutine::Coroutine;
    ///
    /// let worker = IoThread::start("worker").unwrap();
    /// let task = Coroutine::builder().name("parse").stack_size(1 << 20).spawn_on(worker.context(), || 6 * 7);
    /// assert_eq!(task.join().unwrap(), 42);
    /// worker.stop().unwrap();
    /// ```
    #[track_caller]
    pub fn spawn_on<F, T>(self, context: &AioContext, f: F) -> RemoteJoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let slot = SharedResult { outcome: None, filled: false, waiter: None, coroutine: None, cancelled: false };
        let slot = Arc::new(Mutex::new(slot));
        let sender = ResultSender { slot: Arc::clone(&slot), outcome: None };
        context.shared.scheduler.run_at_home(Box::new(move || {
            let body = move || {
                sender.begin();
                sender.send(catch_unwind(AssertUnwindSafe(|| __rust_begin_short_backtrace(f))));
            };
            // On failure (no memory) it drops the body, and with it `sender`, which reports the
            // failure to the handle.
            drop(self.spawn(body));
        }));
        RemoteJoinHandle { slot }
    }
}

/// A handle to a coroutine spawned in a context from any thread: waits for the coroutine and
/// returns its result. It is `Send`, and a `Future`.
///
/// A [`timeout`](crate::timeout) around [`join`](Self::join) cancels the coroutine when it expires.
/// The handle as a future does not, and can be used again:
///
/// ```
/// use coralio::{block_on, sleep, spawn, timeout};
/// use coralio::context::{AioContext, IoThread};
/// use coralio::task::TimedOut;
/// use std::time::Duration;
///
/// const MS: Duration = Duration::from_millis(1);
/// let worker = IoThread::start("worker").unwrap();
/// let mut handle = worker.context().spawn(|| sleep(1000 * MS));
/// AioContext::run(|_ctx| {
///     let waiting = spawn(move || {
///         let first = timeout(MS, || block_on(&mut handle));
///         assert!(matches!(first, Err(TimedOut)) && !handle.is_finished());
///         let second = timeout(MS, || handle.join()); // cancels the sleep
///         assert!(matches!(second, Err(TimedOut)));
///     });
///     waiting.join().unwrap();
/// });
/// worker.stop().unwrap();
/// ```
#[must_use = "dropping the handle detaches the coroutine; call `drop` on it if that is intended"]
pub struct RemoteJoinHandle<T> {
    slot: Arc<Mutex<SharedResult<T>>>,
}

impl<T> RemoteJoinHandle<T> {
    /// Waits until the coroutine has ended, as [`block_on`] does.
    ///
    /// # Errors
    ///
    /// The payload of its panic; or [`Cancelled`], if its context ended before the coroutine did,
    /// or the wait was cut short. In the latter case the coroutine is cancelled, and continues
    /// detached.
    ///
    /// # Control
    ///
    /// May yield; on a thread's own stack, as [`block_on`].
    #[track_caller]
    pub fn join(mut self) -> thread::Result<T> {
        match block_on(&mut self) {
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
        if let Some(coroutine) = self.set_cancelled() {
            coroutine.cancel();
        }
    }

    /// Cancels the coroutine like [`cancel`](Self::cancel), but never enters it: for destructors.
    #[track_caller]
    pub(super) fn cancel_later(&self) {
        if let Some(coroutine) = self.set_cancelled() {
            coroutine.cancel_later();
        }
    }

    /// Lets the coroutine start as cancelled. Returns its waker if it has started already.
    fn set_cancelled(&self) -> Option<Waker> {
        let mut slot = self.slot.lock();
        slot.cancelled = true;
        slot.coroutine.clone()
    }

    /// Returns whether [`join`](Self::join) would return immediately.
    pub fn is_finished(&self) -> bool {
        self.slot.lock().outcome.is_some()
    }
}

impl<T> Future for RemoteJoinHandle<T> {
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

impl<T> fmt::Debug for RemoteJoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteJoinHandle").field("is_finished", &self.is_finished()).finish_non_exhaustive()
    }
}
