//! Loop threads: a thread that is home to a context and does nothing but run its loop (rule X10).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use super::{AioContext, ContextBuilder};

/// A thread that runs a context's loop until it is told to stop.
///
/// ```
/// use coralio_runtime::{LoopThread, sleep};
/// use std::time::Duration;
///
/// let threads = ["left", "right"].map(|name| LoopThread::start(name).unwrap());
/// let sums = threads.each_ref().map(|thread| thread.context().spawn(|| (1..=10).sum::<i32>()));
/// assert_eq!(sums.map(|sum| sum.join().unwrap()), [55, 55]);
/// threads.into_iter().for_each(|thread| thread.stop().unwrap());
/// ```
#[doc(alias = "iothread")]
#[must_use = "dropping it stops the loop, and waits for the thread"]
pub struct LoopThread {
    context: AioContext,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl LoopThread {
    /// Starts a thread of this name, with a context of the usual kind.
    ///
    /// # Errors
    ///
    /// No thread is to be had, or no descriptor for its loop.
    ///
    /// # Control
    ///
    /// Never switches; blocks the thread until the loop runs.
    pub fn start(name: &str) -> io::Result<LoopThread> {
        AioContext::builder().start_thread(name)
    }

    /// Its context: for `spawn`, for bottom halves, and to be woken.
    pub fn context(&self) -> &AioContext {
        &self.context
    }

    /// Tells the loop to stop, and waits for the thread. The round that runs is finished; then coroutines that are left
    /// are unwound, in the order in which they were made, and I/O in flight is waited for.
    ///
    /// # Errors
    ///
    /// The payload, if something panicked in the loop that has no handle to tell.
    ///
    /// # Panics
    ///
    /// On the loop's own thread, which would wait for itself.
    ///
    /// # Control
    ///
    /// Never switches; blocks the thread.
    pub fn stop(mut self) -> thread::Result<()> {
        assert!(!self.context.is_home(), "a loop thread cannot wait for its own end; stop it from another thread");
        self.end()
    }

    fn end(&mut self) -> thread::Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        // Relaxed: `notify` carries it over.
        self.stop.store(true, Ordering::Relaxed);
        self.context.shared.notify();
        thread.join()
    }
}

impl Drop for LoopThread {
    /// Stops it. Dropped on its own thread, it is told to stop, and nobody waits for it. A panic in the loop was reported
    /// when it happened.
    fn drop(&mut self) {
        if self.context.is_home() {
            self.stop.store(true, Ordering::Relaxed);
            self.context.shared.notify();
        } else {
            let _reported = self.end();
        }
    }
}

impl fmt::Debug for LoopThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.thread.as_ref().and_then(|thread| thread.thread().name());
        f.debug_struct("LoopThread").field("name", &name).finish_non_exhaustive()
    }
}

impl ContextBuilder {
    /// Starts a thread of this name that runs the loop of such a context until it is told to stop.
    ///
    /// # Errors
    ///
    /// No thread is to be had, or no descriptor for its loop.
    ///
    /// # Control
    ///
    /// Never switches; blocks the thread until the loop runs.
    pub fn start_thread(self, name: &str) -> io::Result<LoopThread> {
        let stop = Arc::new(AtomicBool::new(false));
        let (started, start) = mpsc::sync_channel(1);
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new().name(name.to_string()).spawn(move || {
            let failed = started.clone();
            let ran = self.run(|context| {
                let _ = started.send(Ok(context.clone()));
                // Relaxed: a thread that sets it notifies afterwards.
                while !told.load(Ordering::Relaxed) {
                    context.poll(true);
                }
            });
            if let Err(error) = ran {
                let _ = failed.send(Err(error));
            }
        })?;
        let context = start.recv().unwrap_or_else(|_| Err(io::Error::other("the loop thread ended at once")))?;
        Ok(LoopThread { context, stop, thread: Some(thread) })
    }
}
