//! I/O threads: a thread that is home to a context and only runs its loop (rule X10).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::builder::ContextBuilder;
use crate::context::AioContext;

/// A thread that runs a context's loop until stopped.
///
/// ```
/// use coralio::sleep;
/// use coralio::context::IoThread;
/// use std::time::Duration;
///
/// let threads = ["left", "right"].map(|name| IoThread::start(name).unwrap());
/// let sums = threads.each_ref().map(|thread| thread.context().spawn(|| (1..=10).sum::<i32>()));
/// assert_eq!(sums.map(|sum| sum.join().unwrap()), [55, 55]);
/// threads.into_iter().for_each(|thread| thread.stop().unwrap());
/// ```
#[doc(alias = "iothread")]
#[must_use = "dropping it stops the loop, and waits for the thread"]
pub struct IoThread {
    context: AioContext,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl IoThread {
    /// Starts a thread named `name`, with a default context.
    ///
    /// # Errors
    ///
    /// The thread or the loop's descriptors cannot be created. `InvalidInput`: `name` contains a NUL.
    ///
    /// # Control
    ///
    /// Blocks the thread until the loop runs.
    pub fn start(name: &str) -> io::Result<IoThread> {
        AioContext::builder().start_thread(name)
    }

    /// Returns the thread's context, to spawn coroutines, schedule bottom halves, or wake it.
    pub fn context(&self) -> &AioContext {
        &self.context
    }

    /// Stops the loop, and waits for the thread. The current iteration is finished; then the
    /// remaining coroutines are unwound in order of creation, and I/O in flight is waited for.
    ///
    /// # Errors
    ///
    /// Returns the panic payload, if code in the loop panicked that has no handle to report it to.
    ///
    /// # Panics
    ///
    /// Panics on the loop's own thread, which would wait for itself.
    ///
    /// # Control
    ///
    /// Blocks the thread.
    pub fn stop(mut self) -> thread::Result<()> {
        assert!(!self.context.is_home(), "an I/O thread cannot join itself; stop it from another thread");
        self.end()
    }

    fn end(&mut self) -> thread::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        // Relaxed: `notify` orders it.
        self.stop.store(true, Ordering::Relaxed);
        self.context.shared.scheduler.notify();
        thread.join()
    }
}

impl Drop for IoThread {
    /// Stops the thread and waits for it; on the loop's own thread, only requests the stop. A panic
    /// in the loop was reported when it happened.
    fn drop(&mut self) {
        if self.context.is_home() {
            self.stop.store(true, Ordering::Relaxed);
            self.context.shared.scheduler.notify();
        } else {
            let _reported = self.end();
        }
    }
}

impl fmt::Debug for IoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.thread.as_ref().and_then(|thread| thread.thread().name());
        f.debug_struct("IoThread").field("name", &name).finish_non_exhaustive()
    }
}

impl ContextBuilder {
    /// Starts a thread named `name` that runs the loop of such a context until stopped.
    ///
    /// # Errors
    ///
    /// The thread or the loop's descriptors cannot be created. `InvalidInput`: `name` contains a NUL.
    ///
    /// # Control
    ///
    /// Blocks the thread until the loop runs.
    pub fn start_thread(self, name: &str) -> io::Result<IoThread> {
        self.start_thread_with(name, |_context| Ok(()))
    }

    /// Starts a thread as [`start_thread`](Self::start_thread) does; first the thread calls `prepare`
    /// inside its context, for example to attach an I/O engine.
    ///
    /// ```
    /// use coralio::context::{AioContext, install_panic_hook};
    /// use coralio::task::{DEFAULT_STACK_SIZE, MIN_STACK_SIZE};
    ///
    /// let builder = AioContext::builder().stack_size(DEFAULT_STACK_SIZE.max(4 * MIN_STACK_SIZE));
    /// let worker = builder.start_thread_with("worker", |context| {
    ///     assert!(context.is_home()); // runs on the new thread
    ///     install_panic_hook();
    ///     Ok(())
    /// });
    /// worker.unwrap().stop().unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// The error of `prepare`, which ends the thread. Otherwise as `start_thread`.
    ///
    /// # Control
    ///
    /// Blocks the thread until the loop runs.
    pub fn start_thread_with(
        self,
        name: &str,
        prepare: impl FnOnce(&AioContext) -> io::Result<()> + Send + 'static,
    ) -> io::Result<IoThread> {
        if name.contains('\0') {
            let why = format!("invalid name {name:?} for a thread: must contain no NUL");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (started, start) = mpsc::sync_channel(1);
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name(name.to_string()).spawn(move || {
            let failed = started.clone();
            let ran = self.run(|context| {
                prepare(context)?;
                let _ = started.send(Ok(context.clone()));
                // Relaxed: a thread that sets it notifies afterwards.
                context.poll_until(|| stopped.load(Ordering::Relaxed));
                Ok(())
            });
            if let Err(error) = ran.and_then(|ended| ended) {
                let _ = failed.send(Err(error));
            }
        })?;
        let context = start.recv().unwrap_or_else(|_| Err(io::Error::other("the I/O thread ended during startup")))?;
        Ok(IoThread { context, stop, thread: Some(thread) })
    }
}
