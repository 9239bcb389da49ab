//! The public side of poll handlers.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{IsReady, Poller};
use crate::context::registration::{Callback, Handle};
use crate::context::{AioContext, ContextEnded};

impl AioContext {
    /// Calls `handler` in each iteration in which `is_ready` returns true. `is_ready` checks
    /// memory, without a system call: a ring that another thread fills, or a device's doorbell.
    /// Before it sleeps, the loop busy-polls for a while if the configuration allows it: see
    /// [`ContextBuilder::busy_poll_max`](crate::ContextBuilder::busy_poll_max).
    ///
    /// A thread that makes the source ready must call [`notify`](Self::notify) afterwards, which
    /// costs a system call only if the loop sleeps.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use std::thread;
    /// use std::time::Duration;
    ///
    /// AioContext::run(|ctx| {
    ///     let doorbell = Arc::new(AtomicU32::new(0));
    ///     let (seen, rung) = (Arc::clone(&doorbell), Arc::clone(&doorbell));
    ///     ctx.set_busy_poll_max(Duration::from_micros(50));
    ///     let handler = ctx.add_poll_handler(move || seen.load(Ordering::Acquire) == 1, move || rung.store(2, Ordering::Release))?;
    ///     assert_eq!(handler.window(), ctx.poll_handlers()[0].window); // how long the loop looks before it sleeps
    ///     let device = thread::spawn({
    ///         let (doorbell, ctx) = (Arc::clone(&doorbell), ctx.clone());
    ///         move || {
    ///             doorbell.store(1, Ordering::Release);
    ///             ctx.notify();
    ///         }
    ///     });
    ///     while doorbell.load(Ordering::Acquire) != 2 {
    ///         ctx.poll(true);
    ///     }
    ///     device.join().unwrap();
    ///     Ok::<_, coralio::context::ContextEnded>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if the context has ended. Both closures are dropped.
    #[doc(alias = "io_poll")]
    #[track_caller]
    pub fn add_poll_handler(
        &self,
        is_ready: impl Fn() -> bool + Send + Sync + 'static,
        mut handler: impl FnMut() + Send + 'static,
    ) -> Result<PollHandler, ContextEnded> {
        self.insert_poll_handler(Arc::new(is_ready), Box::new(move |(), _, _| handler()))
    }

    /// As [`add_poll_handler`](Self::add_poll_handler), for a handler that
    /// [deletes](PollHandler::delete) itself: the handler receives its own handle.
    ///
    /// ```
    /// use coralio::context::AioContext;
    ///
    /// AioContext::run(|ctx| {
    ///     let _once = ctx.add_poll_handler_with(|| true, |own| own.delete()).unwrap();
    ///     assert!(ctx.poll(false));
    ///     assert!(ctx.poll_handlers().is_empty());
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// As [`add_poll_handler`](Self::add_poll_handler).
    #[track_caller]
    pub fn add_poll_handler_with(
        &self,
        is_ready: impl Fn() -> bool + Send + Sync + 'static,
        mut handler: impl FnMut(&PollHandler) + Send + 'static,
    ) -> Result<PollHandler, ContextEnded> {
        let handler = move |(), shared: &_, key| handler(&PollHandler(Handle::within(shared, key)));
        self.insert_poll_handler(Arc::new(is_ready), Box::new(handler))
    }

    #[track_caller]
    fn insert_poll_handler(&self, is_ready: IsReady, handler: Callback<()>) -> Result<PollHandler, ContextEnded> {
        let handler = Handle::new(&self.shared, Poller { is_ready, window: Arc::default() }, Some(handler))?;
        self.shared.scheduler.wake_loop();
        Ok(PollHandler(handler))
    }

    /// Returns the poll handlers of this context. From any thread, even while the loop hangs.
    pub fn poll_handlers(&self) -> Vec<PollHandlerInfo> {
        self.shared.pollers.list(|entry| PollHandlerInfo {
            created_at: entry.created_at,
            window: Duration::from_nanos(entry.kind.window.ns()),
            is_running: entry.is_running,
        })
    }

    /// Sets how long the loop may busy-poll before it sleeps; zero disables busy-polling.
    #[doc(alias = "poll-max-ns")]
    pub fn set_busy_poll_max(&self, limit: Duration) {
        let ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self.shared.busy_poll_max.store(ns, Ordering::Relaxed);
    }
}

/// The state of a poll handler, returned by [`AioContext::poll_handlers`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PollHandlerInfo {
    /// Where the poll handler was added.
    pub created_at: &'static Location<'static>,
    /// How long the loop busy-polls this source before it sleeps ([`PollHandler::window`]).
    pub window: Duration,
    /// The handler is running.
    pub is_running: bool,
}

/// A source that the loop checks in memory. Dropping the handle, even within the handler, removes
/// the source. After the context has ended, a handle does nothing.
#[must_use = "dropping it removes the handler"]
pub struct PollHandler(pub(super) Handle<Poller>);

impl PollHandler {
    /// Returns how long the loop currently busy-polls this source before it sleeps.
    pub fn window(&self) -> Duration {
        let mut state = self.0.table().lock();
        Duration::from_nanos(state.get(self.0.key).map_or(0, |(entry, _)| entry.kind.window.ns()))
    }

    /// Deletes the poll handler, as dropping its handle does. A running handler finishes first.
    pub fn delete(&self) {
        self.0.delete();
    }
}

impl fmt::Debug for PollHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollHandler").field("window", &self.window()).finish_non_exhaustive()
    }
}
