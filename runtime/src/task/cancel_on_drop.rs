//! Join handles that cancel their coroutine when they are dropped (rule S8).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;

use crate::task::{JoinHandle, RemoteJoinHandle};

/// A join handle of either kind.
pub trait Handle: sealed::Sealed {}

mod sealed {
    pub trait Sealed {
        /// Cancels the coroutine, without entering it.
        fn cancel_later(&self);
    }
}

impl<T> Handle for JoinHandle<T> {}
impl<T> Handle for RemoteJoinHandle<T> {}

impl<T> sealed::Sealed for JoinHandle<T> {
    #[track_caller]
    fn cancel_later(&self) {
        self.coroutine().cancel_later();
    }
}

impl<T> sealed::Sealed for RemoteJoinHandle<T> {
    #[track_caller]
    fn cancel_later(&self) {
        RemoteJoinHandle::cancel_later(self);
    }
}

/// A [`JoinHandle`] or [`RemoteJoinHandle`] that cancels the coroutine when it is dropped: created
/// by their methods `cancel_on_drop`.
///
/// The drop cancels as [`Coroutine::cancel`](crate::Coroutine::cancel) does, but neither enters the
/// coroutine nor waits for it: the coroutine continues detached, with waits that end early, until it
/// returns. Use a [`scope`](crate::scope()) where its end must be waited for.
///
/// ```
/// use coralio::{sleep, spawn};
/// use coralio::sync::channel;
/// use coralio::task::Cancelled;
/// use std::time::Duration;
///
/// coralio::run(|| {
///     let (sender, receiver) = channel::bounded(1);
///     let heartbeat = spawn(move || sender.try_send(sleep(Duration::from_secs(3600)))).cancel_on_drop();
///     sleep(Duration::from_millis(1)).unwrap(); // the coroutine waits
///     drop(heartbeat);
///     let slept = spawn(move || receiver.recv()).join().unwrap();
///     assert_eq!(slept, Ok(Err(Cancelled)));
/// });
/// ```
#[must_use = "dropping the handle cancels the coroutine"]
pub struct CancelOnDrop<H: Handle>(Option<H>);

impl<T> JoinHandle<T> {
    /// Turns the handle into one that cancels the coroutine when it is dropped.
    #[doc(alias("abort_on_drop", "AbortOnDropHandle"))]
    pub fn cancel_on_drop(self) -> CancelOnDrop<JoinHandle<T>> {
        CancelOnDrop(Some(self))
    }
}

impl<T> RemoteJoinHandle<T> {
    /// Turns the handle into one that cancels the coroutine when it is dropped.
    #[doc(alias("abort_on_drop", "AbortOnDropHandle"))]
    pub fn cancel_on_drop(self) -> CancelOnDrop<RemoteJoinHandle<T>> {
        CancelOnDrop(Some(self))
    }
}

impl<H: Handle> CancelOnDrop<H> {
    /// Returns the plain handle; dropping that one detaches the coroutine.
    pub fn into_inner(mut self) -> H {
        self.0.take().unwrap_or_else(|| unreachable!("taken only here, where `self` ends"))
    }
}

impl<T> CancelOnDrop<JoinHandle<T>> {
    /// Waits for the coroutine, as [`JoinHandle::join`].
    ///
    /// # Errors
    ///
    /// As [`JoinHandle::join`].
    ///
    /// # Control
    ///
    /// May yield; on the thread's own stack, may enter.
    #[track_caller]
    pub fn join(self) -> thread::Result<T> {
        self.into_inner().join()
    }
}

impl<T> CancelOnDrop<RemoteJoinHandle<T>> {
    /// Waits for the coroutine, as [`RemoteJoinHandle::join`].
    ///
    /// # Errors
    ///
    /// As [`RemoteJoinHandle::join`].
    ///
    /// # Control
    ///
    /// May yield; on a thread's own stack, as [`block_on`](crate::block_on).
    #[track_caller]
    pub fn join(self) -> thread::Result<T> {
        self.into_inner().join()
    }
}

/// The future of the plain handle; dropping it cancels the coroutine, as dropping an `async fn`'s
/// future does.
impl<H: Handle + Future + Unpin> Future for CancelOnDrop<H> {
    type Output = H::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<H::Output> {
        let handle = self.0.as_mut().unwrap_or_else(|| unreachable!("taken only by `into_inner`, which ends it"));
        Pin::new(handle).poll(context)
    }
}

impl<H: Handle> Drop for CancelOnDrop<H> {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.cancel_later();
        }
    }
}

impl<H: Handle> fmt::Debug for CancelOnDrop<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelOnDrop").finish_non_exhaustive()
    }
}
