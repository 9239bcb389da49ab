//! Storage I/O for coroutines: plain `read_at` and `write_at` with borrowed buffers, on Linux
//! native AIO.
//!
//! ```
//! use coralio::{File, spawn};
//! use std::rc::Rc;
//!
//! # fn main() -> std::io::Result<()> {
//! # let path = std::env::temp_dir().join(format!("coralio-lib-doc-{}", std::process::id()));
//! # std::fs::write(&path, vec![7; 16384])?;
//! let sum = coralio::run(|| {
//!     let file = Rc::new(File::open(&path)?);
//!     let readers: Vec<_> = (0..4)
//!         .map(|i| {
//!             let file = Rc::clone(&file);
//!             spawn(move || {
//!                 let mut buf = [0; 4096];
//!                 file.read_exact_at(&mut buf, i * 4096)?; // the other three run meanwhile
//!                 Ok(buf.iter().map(|&byte| u64::from(byte)).sum::<u64>())
//!             })
//!         })
//!         .collect();
//!     readers.into_iter().map(|reader| reader.join().unwrap()).sum::<std::io::Result<u64>>()
//! })?;
//! assert_eq!(sum, 7 * 16384);
//! # std::fs::remove_file(&path)
//! # }
//! ```
//!
//! # How it works
//!
//! A [`File`] call creates a request and suspends the coroutine. Requests accumulate while the
//! event loop runs other coroutines, and are submitted together in one system call. Completions are
//! read from the kernel's ring in memory, and wake their coroutines.
//!
//! # Soundness of borrowed buffers
//!
//! A suspended coroutine's stack does not move, so the kernel may write into a buffer on it. The
//! call neither returns nor unwinds before the kernel has released the buffer, not even if the
//! coroutine is cancelled or its context ends.
//!
//! # Control flow
//!
//! Functions without a `# Control` section never switch: they do not enter a coroutine, yield or
//! block. (Called on a thread other than the context's, a function may wait for the context's
//! lock.)

// These macros panic if the output cannot be written; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

pub mod backend;
mod driver;
mod engine;
mod file;
pub mod simulate;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use coralio_runtime::*;
pub use driver::choice::{BackendKind, SelectedBackend};
pub use driver::unblock::unblock;
pub use driver::{AttachError, DetachedEngine, detach};
pub use engine::plug::Plug;
pub use engine::{Engine, Stats, guards};
pub use file::{
    AlignedBuf, Alignment, DetachedFile, Direct, File, FileCursor, OpenOptions, remove_file, rename, sync_dir,
};
pub use simulate::simulate;

use driver::Driver;

/// Default queue depth: the maximum number of requests in flight.
///
/// Smaller than common device queues (`/sys/block/*/queue/nr_requests`): 128 for a loop device, 256
/// for virtio, 1023 for NVMe. A submit blocks while the device's queue is full. The margin leaves
/// room for other users of a shared device; batches of 16 already cost as little per request as
/// larger ones do.
pub const DEFAULT_DEPTH: u32 = 64;

/// Runs `f` as the first coroutine of a new context on this thread, and the event loop until `f`
/// returns.
///
/// Coroutines still alive at that point are unwound; join those that must finish.
///
/// # Panics
///
/// Propagates `f`'s panic. Panics if this thread already runs a context, or if the system lacks the
/// resources for one; use [`RuntimeBuilder`] to get the latter as an error.
#[track_caller]
pub fn run<T>(f: impl FnOnce() -> T) -> T {
    match RuntimeBuilder::new().run(f) {
        Ok(value) => value,
        Err(error) => panic!("cannot run a context: {error}"),
    }
}

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
    context: ContextBuilder,
}

impl Default for RuntimeBuilder {
    fn default() -> RuntimeBuilder {
        RuntimeBuilder::new()
    }
}

impl RuntimeBuilder {
    /// Creates a builder with [`BackendKind::Auto`], queue depth [`DEFAULT_DEPTH`] and stack size
    /// [`DEFAULT_STACK_SIZE`].
    pub fn new() -> RuntimeBuilder {
        RuntimeBuilder {
            backend: BackendKind::Auto,
            depth: DEFAULT_DEPTH,
            slow_submit_threshold: None,
            context: AioContext::builder(),
        }
    }

    /// Sets the kernel interface to use.
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

    /// Sets the default stack size of coroutines in bytes, including the guard page.
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

    /// Counts submits that block the loop for longer than `limit`: [`Stats::slow_submits`]. Each
    /// submit then reads the clock twice; without a limit, submits do not read it.
    ///
    /// Under [`BackendKind::Auto`], requests that would block go to a thread. A slow submit that
    /// is counted nevertheless indicates a queue too deep for the device, or a thread that was not
    /// scheduled.
    pub fn slow_submit_threshold(mut self, limit: Duration) -> RuntimeBuilder {
        self.slow_submit_threshold = Some(limit);
        self
    }

    /// Records events in an event log, see [`ContextBuilder::trace`].
    pub fn trace(mut self, trace: &trace::Trace) -> RuntimeBuilder {
        self.context = self.context.trace(trace);
        self
    }

    /// Sets the other options of the context. Replaces those set before through this builder.
    pub fn context(mut self, builder: ContextBuilder) -> RuntimeBuilder {
        self.context = builder;
        self
    }

    /// Runs `f` as [`run`] does.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: invalid queue depth. Otherwise the system's error if it lacks the resources
    /// for a context or an engine, with the remedy.
    ///
    /// # Panics
    ///
    /// Propagates `f`'s panic. Panics if this thread already runs a context.
    #[track_caller]
    pub fn run<T>(self, f: impl FnOnce() -> T) -> io::Result<T> {
        let RuntimeBuilder { backend, depth, slow_submit_threshold, context } = self;
        context.run_coroutine(|_context| {
            let driver = Driver::attach(backend, depth)?;
            // The fallback to threads never blocks the loop.
            slow_submit_threshold.into_iter().for_each(|limit| driver.engine.set_slow_submit_threshold(limit));
            Ok(f())
        })?
    }
}

/// Returns the statistics of this context's engine. All zero before its first file.
pub fn stats() -> Stats {
    Driver::current().map(|driver| driver.stats()).unwrap_or_default()
}

/// Returns the kernel interface that this context uses, and why; `None` before its first file, and
/// outside a context.
///
/// ```
/// use coralio::{RuntimeBuilder, selected_backend};
///
/// // "native AIO, with threads for requests that would block it", or "io_uring: native AIO was refused: ..."
/// RuntimeBuilder::new().run(|| println!("{}", selected_backend().unwrap()))?;
/// # std::io::Result::Ok(())
/// ```
pub fn selected_backend() -> Option<SelectedBackend> {
    Driver::current()?.chosen.clone()
}

/// Delays this context's requests until the plug is dropped, so that they share one system call.
///
/// # Errors
///
/// The error of creating the engine, if the context has none yet.
///
/// # Panics
///
/// Outside a context.
pub fn plug() -> io::Result<Plug> {
    Ok(Arc::clone(&Driver::of_this_context()?.engine).plug())
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
