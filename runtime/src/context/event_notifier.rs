//! An event signalled by threads and the kernel, and watched by a loop: an object around an
//! eventfd.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use crate::context::{AioContext, FdHandler, Interest};
use crate::sys::EventFd;

/// An event, backed by an eventfd. Any thread, another process or the kernel can set the event;
/// setting it again has no effect. [`AioContext::add_event_notifier`] watches it, and
/// [`wait_readable`](crate::wait_readable) waits for it.
///
/// ```
/// use coralio::context::EventNotifier;
///
/// let event = EventNotifier::new()?;
/// assert!(!event.test_and_clear());
/// event.notify();
/// event.notify();
/// assert!(event.test_and_clear());
/// assert!(!event.test_and_clear());
/// # Ok::<_, std::io::Error>(())
/// ```
#[doc(alias = "eventfd")]
pub struct EventNotifier {
    fd: EventFd,
}

impl EventNotifier {
    /// Creates an event that is not set.
    ///
    /// # Errors
    ///
    /// The process or the system has no descriptor left.
    #[doc(alias = "event_notifier_init")]
    pub fn new() -> io::Result<EventNotifier> {
        Ok(EventNotifier { fd: EventFd::new()? })
    }

    /// Sets the event. From any thread, and from signal handlers. Always makes a system call.
    #[doc(alias = "event_notifier_set")]
    pub fn notify(&self) {
        self.fd.signal();
    }

    /// Clears the event, and returns whether it was set. Memory written before the event was set is
    /// then visible.
    #[doc(alias = "event_notifier_test_and_clear")]
    pub fn test_and_clear(&self) -> bool {
        self.fd.clear()
    }
}

impl AsFd for EventNotifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for EventNotifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventNotifier").field("fd", &self.as_fd().as_raw_fd()).finish()
    }
}

impl AioContext {
    /// Calls `handler` in the loop after `notifier` was set, clearing the event first. This watch
    /// must be the only reader of `notifier`: another one would take events away from the handler.
    ///
    /// ```
    /// use coralio::context::{AioContext, EventNotifier};
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// AioContext::run(|ctx| {
    ///     let doorbell = Arc::new(EventNotifier::new()?);
    ///     let rang = Arc::new(AtomicBool::new(false));
    ///     let heard = Arc::clone(&rang);
    ///     let _watch = ctx.add_event_notifier(Arc::clone(&doorbell), move || heard.store(true, Ordering::Relaxed))?;
    ///     let visitor = std::thread::spawn(move || doorbell.notify());
    ///     while !rang.load(Ordering::Relaxed) {
    ///         ctx.poll(true);
    ///     }
    ///     visitor.join().unwrap();
    ///     Ok::<_, std::io::Error>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`add_fd_handler`](Self::add_fd_handler).
    #[doc(alias = "aio_set_event_notifier")]
    #[track_caller]
    pub fn add_event_notifier(
        &self,
        notifier: Arc<EventNotifier>,
        mut handler: impl FnMut() + Send + 'static,
    ) -> io::Result<FdHandler> {
        let event = Arc::clone(&notifier);
        self.add_fd_handler(notifier, Interest::Read, move |_| {
            // Another thread may have cleared the event since it was reported.
            if event.test_and_clear() {
                handler();
            }
        })
    }
}
