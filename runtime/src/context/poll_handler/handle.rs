//! The public side of poll handlers.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Entry, Handler, IsReady};
use crate::context::{AioContext, ContextEnded, Key, SharedContext};

impl AioContext {
    /// Calls `handler` in each iteration in which `is_ready` returns true. `is_ready` checks
    /// memory, without a system call: a ring that another thread fills, or a device's doorbell.
    /// Before it sleeps, the loop busy-polls for a while if the configuration allows it: see
    /// [`ContextBuilder::busy_poll_max`](crate::ContextBuilder::busy_poll_max).
    ///
    /// A thread that makes the source ready must call [`notify`](Self::notify) afterwards, which
    /// costs a system call only if the loop sleeps.
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
        self.insert_poll_handler(Arc::new(is_ready), Box::new(move |_, _| handler()))
    }

    /// As [`add_poll_handler`](Self::add_poll_handler), for a handler that
    /// [deletes](PollHandler::delete) itself: the handler receives its own handle.
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
        let handler: Handler = Box::new(move |shared, key| {
            handler(&PollHandler { shared: Arc::clone(shared), key, owns: false });
        });
        self.insert_poll_handler(Arc::new(is_ready), handler)
    }

    #[track_caller]
    fn insert_poll_handler(&self, is_ready: IsReady, handler: Handler) -> Result<PollHandler, ContextEnded> {
        let created_at = Location::caller();
        let entry = Entry { is_ready, window: Arc::default(), handler: Some(handler), removed: false, created_at };
        let pollers = &self.shared.pollers;
        let mut entries = pollers.entries.lock();
        let inserted = entries.insert(entry);
        if inserted.is_ok() {
            pollers.count.store(entries.len(), Ordering::Relaxed);
        }
        drop(entries);
        let Ok(key) = inserted else { return Err(ContextEnded { operation: "add a poll handler" }) };
        self.shared.scheduler.wake_loop();
        Ok(PollHandler { shared: Arc::clone(&self.shared), key, owns: true })
    }

    /// Returns the poll handlers of this context. From any thread, even while the loop hangs.
    pub fn poll_handlers(&self) -> Vec<PollHandlerInfo> {
        let info = |(_, entry): (Key, &Entry)| PollHandlerInfo {
            created_at: entry.created_at,
            window: Duration::from_nanos(entry.window.ns()),
            is_running: entry.handler.is_none(),
        };
        self.shared.pollers.entries.lock().iter().map(info).collect()
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
pub struct PollHandler {
    shared: Arc<SharedContext>,
    pub(super) key: Key,
    /// False for the handle passed to the handler; dropping that one deletes nothing.
    owns: bool,
}

impl PollHandler {
    /// Returns how long the loop currently busy-polls this source before it sleeps.
    pub fn window(&self) -> Duration {
        let entries = self.shared.pollers.entries.lock();
        Duration::from_nanos(entries.get(self.key).map_or(0, |entry| entry.window.ns()))
    }

    /// Deletes the poll handler, as dropping its handle does. A running handler finishes first.
    pub fn delete(&self) {
        let pollers = &self.shared.pollers;
        let mut entries = pollers.entries.lock();
        let Some(entry) = entries.get_mut(self.key) else { return };
        if entry.handler.is_none() {
            entry.removed = true;
            return;
        }
        let entry = entries.remove(self.key);
        pollers.count.store(entries.len(), Ordering::Relaxed);
        drop(entries);
        drop(entry);
    }
}

impl Drop for PollHandler {
    fn drop(&mut self) {
        if self.owns {
            self.delete();
        }
    }
}

impl fmt::Debug for PollHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollHandler").field("window", &self.window()).finish_non_exhaustive()
    }
}
