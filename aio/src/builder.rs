//! Configuring a context with its I/O engine.

use std::io;
use std::time::Duration;

use coralio_runtime::trace::Trace;
use coralio_runtime::{AioContext, ContextBuilder, IoThread};

use crate::driver::{BackendKind, DEFAULT_QUEUE_DEPTH, Driver};
use crate::threads::ThreadBuilder;

/// Configures a context with its I/O engine, and runs it.
///
/// ```
/// let seven = coralio::RuntimeBuilder::new().queue_depth(32).stack_size(256 * 1024).run(|| 7).unwrap();
/// assert_eq!(seven, 7);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RuntimeBuilder {
    backend: BackendKind,
    depth: u32,
    slow_submit_threshold: Option<Duration>,
    pub(crate) context: ContextBuilder,
}

impl Default for RuntimeBuilder {
    fn default() -> RuntimeBuilder {
        RuntimeBuilder::new()
    }
}

impl RuntimeBuilder {
    /// Creates a builder with [`BackendKind::Auto`], queue depth [`DEFAULT_QUEUE_DEPTH`] and stack size
    /// [`DEFAULT_STACK_SIZE`](crate::task::DEFAULT_STACK_SIZE).
    pub fn new() -> RuntimeBuilder {
        RuntimeBuilder {
            backend: BackendKind::Auto,
            depth: DEFAULT_QUEUE_DEPTH,
            slow_submit_threshold: None,
            context: AioContext::builder(),
        }
    }

    /// Sets the backend to use.
    pub fn backend(mut self, choice: BackendKind) -> RuntimeBuilder {
        self.backend = choice;
        self
    }

    /// Sets the maximum number of requests in flight; further requests wait.
    ///
    /// Keep it below the size of the device's queue (`/sys/block/*/queue/nr_requests`). A submit
    /// that exceeds that queue blocks: for 3 to 11 milliseconds with 512 requests in flight on a
    /// queue of 256, with native AIO and io_uring alike. [`BackendKind::Auto`] does not help,
    /// since the kernel does not report this case as blocking. Large requests count several times
    /// because the kernel splits them (`/sys/block/*/queue/max_sectors_kb`).
    pub fn queue_depth(mut self, depth: u32) -> RuntimeBuilder {
        self.depth = depth;
        self
    }

    /// Sets the default stack size of coroutines in bytes, including the guard page. At least
    /// [`MIN_STACK_SIZE`](crate::task::MIN_STACK_SIZE): a smaller size is raised to it.
    pub fn stack_size(mut self, bytes: usize) -> RuntimeBuilder {
        self.context = self.context.stack_size(bytes);
        self
    }

    /// Sets how long the loop may busy-poll for completions before it sleeps: latency in exchange
    /// for CPU time. See [`ContextBuilder::busy_poll_max`].
    pub fn busy_poll_max(mut self, limit: Duration) -> RuntimeBuilder {
        self.context = self.context.busy_poll_max(limit);
        self
    }

    /// Counts submits that block the loop for longer than `limit`: [`Stats::slow_submits`](crate::driver::Stats::slow_submits).
    /// Each submit then reads the clock twice; without a limit, submits do not read it.
    ///
    /// Under [`BackendKind::Auto`], requests that would block go to a thread. A slow submit that
    /// is counted nevertheless indicates a queue too deep for the device, or a thread that was not
    /// scheduled.
    ///
    /// ```
    /// use coralio::driver::{selected_backend, stats};
    /// use coralio::{File, RuntimeBuilder};
    /// use std::time::Duration;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// RuntimeBuilder::new().slow_submit_threshold(Duration::from_millis(1)).run(|| {
    ///     File::open("Cargo.toml")?.read_at(&mut [0; 4096], 0)?;
    ///     println!("{} slow submits", stats().slow_submits);
    ///     for (backend, why) in selected_backend().iter().flat_map(|selected| selected.rejected()) {
    ///         println!("not {backend}: {why}"); // with the remedy
    ///     }
    ///     Ok(())
    /// })?
    /// # }
    /// ```
    pub fn slow_submit_threshold(mut self, limit: Duration) -> RuntimeBuilder {
        self.slow_submit_threshold = Some(limit);
        self
    }

    /// Records events in an event log, see [`ContextBuilder::trace`].
    pub fn trace(mut self, trace: &Trace) -> RuntimeBuilder {
        self.context = self.context.trace(trace);
        self
    }

    /// Sets the other options of the context. Replaces those set before through this builder.
    pub fn context(mut self, builder: ContextBuilder) -> RuntimeBuilder {
        self.context = builder;
        self
    }

    /// Restricts the context's thread to these CPUs while the context runs, see
    /// [`ContextBuilder::cpus`].
    pub fn cpus(mut self, cpus: impl IntoIterator<Item = usize>) -> RuntimeBuilder {
        self.context = self.context.cpus(cpus);
        self
    }

    /// Starts a thread named `name` that runs the loop of such a context, with its I/O engine, until
    /// stopped.
    ///
    /// ```
    /// use coralio::{File, RuntimeBuilder};
    ///
    /// let reader = RuntimeBuilder::new().queue_depth(16).start_thread("reader")?;
    /// let len = reader.context().spawn(|| File::open("Cargo.toml")?.len());
    /// assert!(len.join().unwrap()? > 0);
    /// reader.stop().unwrap();
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`run`](crate::run)(Self::run), or the thread cannot be created.
    ///
    /// # Control
    ///
    /// Blocks the thread until the loop runs.
    #[doc(alias = "iothread")]
    pub fn start_thread(self, name: &str) -> io::Result<IoThread> {
        let (attach, context) = self.into_parts();
        context.start_thread_with(name, |_context| attach())
    }

    /// Returns a builder for `count` such contexts, each on a thread of its own.
    ///
    /// Each thread runs the same closure, which borrows what the threads share. To distribute work,
    /// let them take it from a shared list:
    ///
    /// ```
    /// use coralio::RuntimeBuilder;
    /// use std::sync::atomic::{AtomicUsize, Ordering};
    ///
    /// let (paths, next) = (["Cargo.toml", "README.md", "src/lib.rs"], AtomicUsize::new(0));
    /// let bytes = RuntimeBuilder::new().threads(2).run(|_| {
    ///     let mut bytes = 0;
    ///     while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
    ///         bytes += coralio::fs::read(path)?.len();
    ///     }
    ///     std::io::Result::Ok(bytes)
    /// })?;
    /// assert!(bytes.into_iter().sum::<std::io::Result<usize>>()? > 1000);
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// A [channel](crate::sync::channel) serves several threads too. A `Sender` that the closure
    /// captures lives as long as the run, so the receivers never see the channel closed: send from the
    /// closure's thread 0, with a sender taken out of a `Mutex<Option<_>>`, or send a last message to
    /// each receiver.
    pub fn threads(self, count: usize) -> ThreadBuilder {
        ThreadBuilder::new(self, count)
    }

    /// Runs `f` as [`run`](crate::run) does.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: invalid queue depth or CPUs. Otherwise the system's error, if the system
    /// lacks the resources for a context or an engine; the error of an engine includes the remedy.
    ///
    /// # Panics
    ///
    /// Propagates `f`'s panic. Panics if this thread already runs a context.
    #[track_caller]
    pub fn run<T>(self, f: impl FnOnce() -> T) -> io::Result<T> {
        let (attach, context) = self.into_parts();
        // On the thread's own stack, so that the coroutines' may be small.
        context.run_coroutine_with(|_context| attach(), |_context| f())
    }

    /// Returns what attaches the I/O engine, inside the context; and the context's builder.
    fn into_parts(self) -> (impl FnOnce() -> io::Result<()>, ContextBuilder) {
        let RuntimeBuilder { backend, depth, slow_submit_threshold, context } = self;
        let attach = move || {
            let driver = Driver::attach(backend, depth)?;
            // The fallback to threads never blocks the loop.
            slow_submit_threshold.into_iter().for_each(|limit| driver.engine.set_slow_submit_threshold(limit));
            Ok(())
        };
        (attach, context)
    }
}
