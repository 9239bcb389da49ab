//! Spawned coroutines, and their join handles.
//!
//! A spawned coroutine's result lies at the top of its own stack until the handle fetches it:
//! spawning allocates nothing, and the stack is not reused before its result is fetched.

#![allow(unsafe_code)]

use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;

use crate::context::LocalContext;
use crate::coroutine::{Cancelled, CoroutineId, Joiner, State, WaitReason};
use crate::scheduler::Scheduler;
use crate::sys::{opaque_debug, refuse_in_child};
use crate::task::{Coroutine, CoroutineBuilder, expect_spawned};

/// Spawns a coroutine that runs `f` in the loop's next iteration, on this thread. `f` need not be
/// `Send`.
///
/// Dropping the handle detaches the coroutine.
///
/// Coroutines of a context share their thread's local variables: see [thread state held across a
/// suspension](crate#thread-state-held-across-a-suspension).
///
/// ```
/// use coralio::spawn;
///
/// coralio::run(|| {
///     let words = spawn(|| "from a coroutine".to_string());
///     assert_eq!(words.join().unwrap(), "from a coroutine");
/// });
/// ```
///
/// # Panics
///
/// Outside a context; if there is no memory for a stack; if the context is ending.
#[track_caller]
pub fn spawn<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + 'static,
    T: 'static,
{
    expect_spawned(Coroutine::builder().spawn(f))
}

/// Spawns a coroutine like [`spawn`], and enters it immediately: it has run to its first yield, or
/// to its end, when this returns. Its first I/O requests are therefore queued one iteration
/// earlier.
///
/// ```
/// use coralio::spawn_now;
///
/// coralio::run(|| {
///     let sum = spawn_now(|| 2 + 2);
///     assert!(sum.is_finished());
///     assert_eq!(sum.join().unwrap(), 4);
/// });
/// ```
///
/// # Panics
///
/// As [`spawn`].
///
/// # Control
///
/// Enters the coroutine, then the coroutines that it woke.
#[track_caller]
pub fn spawn_now<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + 'static,
    T: 'static,
{
    expect_spawned(Coroutine::builder().spawn_now(f))
}

impl CoroutineBuilder {
    /// Spawns and enters a coroutine as [`spawn_now`] does, with this name and stack size.
    ///
    /// # Errors
    ///
    /// As [`spawn`](Self::spawn).
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// Enters the coroutine, then the coroutines that it woke.
    #[track_caller]
    pub fn spawn_now<F, T>(self, f: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + 'static,
        T: 'static,
    {
        let home = LocalContext::expect("spawn_now");
        let _heartbeat = home.heartbeat();
        let scheduler = &home.scheduler;
        // SAFETY: `f` and its result are 'static.
        let id = unsafe { scheduler.create(self.attributes, false, f) }?;
        scheduler.try_enter(id).expect("a new coroutine is known only here");
        Ok(JoinHandle { id, _result: PhantomData })
    }

    /// Spawns a coroutine as [`spawn`] does, with this name and stack size.
    ///
    /// # Errors
    ///
    /// No memory for a stack, or the context is ending.
    ///
    /// # Panics
    ///
    /// Outside a context.
    #[track_caller]
    pub fn spawn<F, T>(self, f: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + 'static,
        T: 'static,
    {
        // SAFETY: `f` and its result are 'static.
        unsafe { self.spawn_borrowing(f) }
    }

    /// Spawns as [`spawn`](CoroutineBuilder::spawn), from a closure that borrows.
    ///
    /// # Safety
    ///
    /// Everything the closure borrows lives until the coroutine has ended, at the latest when the
    /// context has.
    #[inline]
    #[track_caller]
    pub(crate) unsafe fn spawn_borrowing<F, T>(self, f: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T,
    {
        let scheduler = Scheduler::expect("spawn");
        let created_at = self.attributes.created_at;
        // SAFETY: the caller's promise.
        let id = unsafe { scheduler.create(self.attributes, false, f) }?;
        scheduler.make_ready(id.block, created_at);
        Ok(JoinHandle { id, _result: PhantomData })
    }
}

/// A handle to a spawned coroutine: waits for it and returns its result. It cannot leave its
/// thread.
#[must_use = "dropping the handle detaches the coroutine; call `drop` on it if that is intended"]
pub struct JoinHandle<T> {
    pub(crate) id: CoroutineId,
    _result: PhantomData<(*const (), T)>,
}

impl<T> JoinHandle<T> {
    /// Waits until the coroutine has ended. A coroutine is suspended meanwhile; on the thread's own
    /// stack, the loop runs meanwhile.
    ///
    /// # Errors
    ///
    /// The payload of its panic, as in `std::thread`; or [`Cancelled`], if its context ended before
    /// the coroutine did, or if this wait was cut short because the joining coroutine was cancelled
    /// or an enclosing timeout expired. In the latter case the joined coroutine is cancelled too,
    /// and continues detached.
    ///
    /// # Panics
    ///
    /// If a coroutine joins itself.
    ///
    /// # Control
    ///
    /// May yield; on the thread's own stack, may enter.
    #[inline]
    #[track_caller]
    pub fn join(self) -> thread::Result<T> {
        loop {
            let Some(scheduler) = Scheduler::current().filter(|_| self.id.is_live()) else {
                refuse_in_child("joining a coroutine");
                return Err(Box::new(Cancelled));
            };
            let local = scheduler.local(self.id.block);
            if local.state.get() == State::Finished {
                let block = self.id.block;
                std::mem::forget(self);
                return scheduler.fetch(block);
            }
            match scheduler.running() {
                Some(running) => {
                    assert!(
                        running.id() != self.id,
                        "a coroutine joins itself: it would wait for ever; join it from another coroutine"
                    );
                    if scheduler.is_cancelled(running) {
                        let cancelled = scheduler.cut_short(running);
                        self.cancel();
                        return Err(Box::new(cancelled));
                    }
                    local.joiner.set(Some(Joiner::Coroutine(running.id())));
                    if let Err(cancelled) = scheduler.try_suspend_for(WaitReason::Join(self.id.block)) {
                        // A destructor: the coroutine must not be entered on top of it.
                        self.coroutine().cancel_later();
                        return Err(Box::new(cancelled));
                    }
                }
                // A destructor at the very end: the coroutine will not run any more.
                None if scheduler.is_ending() => return Err(Box::new(Cancelled)),
                None => LocalContext::expect("joining a coroutine").context.poll_until(|| self.is_finished()),
            }
        }
    }

    /// Cancels the coroutine, as [`Coroutine::cancel`] does.
    ///
    /// # Control
    ///
    /// May enter the coroutine.
    #[track_caller]
    pub fn cancel(&self) {
        self.coroutine().cancel();
    }

    /// Returns the coroutine that the handle waits for.
    pub fn coroutine(&self) -> Coroutine {
        Coroutine::of(self.id)
    }

    /// Returns whether [`join`](Self::join) would return immediately.
    pub fn is_finished(&self) -> bool {
        match Scheduler::current().filter(|_| self.id.is_live()) {
            Some(scheduler) => scheduler.local(self.id.block).state.get() == State::Finished,
            None => true,
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = thread::Result<T>;

    /// Polls for the result of [`join`](JoinHandle::join), for callers that poll futures on this
    /// thread; see [`block_on`](crate::block_on).
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<thread::Result<T>> {
        let Some(scheduler) = Scheduler::current().filter(|_| self.id.is_live()) else {
            return Poll::Ready(Err(Box::new(Cancelled)));
        };
        let local = scheduler.local(self.id.block);
        // Foreign code, which may run the loop.
        let waker = context.waker().clone();
        if local.state.get() == State::Finished {
            return Poll::Ready(scheduler.fetch(self.id.block));
        }
        // The coroutine will not run any more.
        if scheduler.is_ending() {
            return Poll::Ready(Err(Box::new(Cancelled)));
        }
        local.joiner.set(Some(Joiner::Task(waker)));
        Poll::Pending
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(scheduler) = Scheduler::current().filter(|_| self.id.is_live()) {
            scheduler.detach(self.id.block);
        }
    }
}

opaque_debug!(JoinHandle<T>);
