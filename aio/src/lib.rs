//! Storage I/O for coroutines: plain `read_at` and `write_at` with borrowed buffers, on Linux
//! native AIO, io_uring or threads.
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
//! # What you need, and where it is
//!
//! | to | use |
//! |---|---|
//! | run a program | [`run`], or [`RuntimeBuilder`] for the backend, queue depth, stack size |
//! | start and await coroutines | [`spawn`], [`spawn_now`], [`JoinHandle`]; with borrows: [`scope`] |
//! | read and write files | [`File`], [`OpenOptions`], [`AlignedBuf`]; names and directories: [`fs`] |
//! | wait, with a limit | [`sleep`], [`timeout`], [`yield_now`]; intervals, cancellation: [`task`] |
//! | wait for several things | [`task::select`], [`task::race`], [`task::JoinSet`] |
//! | call blocking code, or a future | [`unblock`], [`block_on`] |
//! | share data between coroutines | [`sync`]: locks, semaphore, channels, notifications, barrier |
//! | use sockets and pipes | [`net`] |
//! | use the event loop itself | [`context`]: bottom halves, timers, descriptors, I/O threads |
//! | switch between coroutines by hand | [`coroutine`]: enter, yield, wake |
//! | test code against crashes | [`mod@simulate`] |
//! | see what a run did | [`trace`] |
//! | read statistics, choose a backend, batch requests | [`driver`] |
//! | write a backend, or test the engine itself | [`engine`] |
//!
//! # How it works
//!
//! A [`File`] call creates a request and suspends the coroutine. Requests accumulate while the
//! event loop runs other coroutines, and are submitted together in one system call. Completions are
//! read from the kernel's ring in memory, and wake their coroutines.
//!
//! The layers, from bottom to top; each depends only on those below it:
//!
//! - `backend`: native AIO, io_uring, a thread pool, and the simulated and scripted ones;
//! - `engine`: a request from submit to reap, with the guards against the historic bugs as a type
//!   parameter;
//! - `driver`: one per context: which engine serves a file, and which requests go to threads;
//! - `file`: files on top of the driver;
//! - `simulate`: a user's code on the simulated backend.
//!
//! Coroutines, the event loop and synchronisation are in the crate
//! [`coralio-runtime`](coralio_runtime), whose items this crate re-exports.
//!
//! Deliberately left out: `async fn` (any function can wait), work stealing (a coroutine stays on
//! its thread), and other systems than 64-bit little-endian Linux.
//!
//! # Control flow
//!
//! To *enter* a coroutine is to run it on top of the caller until it *yields* (suspends itself) or
//! ends. A function that may do either has a section `# Control`. All other functions never switch:
//! they do not enter a coroutine, yield or block. (Called on a thread other than the context's, a
//! function may wait for the context's lock.)
//!
//! # Soundness of borrowed buffers
//!
//! A suspended coroutine's stack does not move, so the kernel may write into a buffer on it. The
//! call neither returns nor unwinds before the kernel has released the buffer, not even if the
//! coroutine is cancelled or its context ends.

// These macros panic if the output cannot be written; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod backend;
pub mod driver;
pub mod engine;
mod file;
pub mod simulate;

use std::io;
use std::time::Duration;

#[doc(alias = "await")]
#[doc(inline)]
pub use coralio_runtime::block_on;
#[doc(alias("qemu_coroutine_yield", "co_yield"))]
#[doc(inline)]
pub use coralio_runtime::yield_now;
#[doc(inline)]
pub use coralio_runtime::{JoinHandle, scope, sleep, spawn, spawn_now, timeout, trace};
#[doc(alias = "spawn_blocking")]
#[doc(inline)]
pub use driver::unblock::unblock;
pub use file::{AlignedBuf, File, OpenOptions};
#[doc(inline)]
pub use simulate::simulate;

#[doc(hidden)]
pub use coralio_runtime::report;

use coralio_runtime::{AioContext, ContextBuilder};
use driver::{BackendKind, DEFAULT_QUEUE_DEPTH, Driver};

/// Names, directories and options of files, beside [`File`] and [`OpenOptions`].
pub mod fs {
    #[doc(alias = "O_DIRECT")]
    pub use crate::file::Direct;
    pub use crate::file::{Alignment, DetachedFile, FileCursor, remove_file, rename, sync_dir};
}

/// Scopes, sets, handles, concurrent waits, times, signals, cancellation and errors of
/// coroutines, beside [`spawn`] and [`JoinHandle`].
pub mod task {
    #[doc(alias = "AbortOnDropHandle")]
    #[doc(inline)]
    pub use coralio_runtime::CancelOnDrop;
    #[doc(alias("task_local", "LocalKey"))]
    #[doc(inline)]
    pub use coralio_runtime::CoroutineLocal;
    #[doc(alias("TaskGroup", "WaitGroup", "FuturesUnordered"))]
    #[doc(inline)]
    pub use coralio_runtime::JoinSet;
    #[doc(alias("select", "select_all", "select_ok"))]
    #[doc(inline)]
    pub use coralio_runtime::race;
    #[doc(alias("race", "join"))]
    #[doc(inline)]
    pub use coralio_runtime::select;
    #[doc(inline)]
    pub use coralio_runtime::{
        Cancelled, CoroutineBuilder, DEFAULT_STACK_SIZE, Interval, MIN_STACK_SIZE, MissedTickBehavior, OsCode, Race,
        RemoteJoinHandle, Scope, ScopedJoinHandle, Select, TimedOut, can_suspend, check_cancelled, interval,
        interval_at, is_cancelled, shield, sleep_until, timeout_at,
    };
    #[doc(alias("SIGINT", "SIGTERM", "SignalKind"))]
    #[doc(inline)]
    pub use coralio_runtime::{Signal, ctrl_c, signal};
}

/// Coroutines below [`spawn`]: create, enter, suspend and wake them by hand.
pub mod coroutine {
    #[doc(alias = "qemu_coroutine_yield")]
    #[doc(inline)]
    pub use coralio_runtime::suspend;
    #[doc(inline)]
    pub use coralio_runtime::{Coroutine, CoroutineId, EnterError, ScheduleError, Waker};
}

/// The event loop and what it can wait for.
pub mod context {
    #[doc(alias = "Runtime")]
    #[doc(inline)]
    pub use coralio_runtime::AioContext;
    #[doc(alias("QEMUBH", "qemu_bh_new"))]
    #[doc(inline)]
    pub use coralio_runtime::BottomHalf;
    #[doc(alias = "aio_set_fd_handler")]
    #[doc(inline)]
    pub use coralio_runtime::FdHandler;
    #[doc(alias = "iothread")]
    #[doc(inline)]
    pub use coralio_runtime::IoThread;
    #[doc(alias = "QEMUTimer")]
    #[doc(inline)]
    pub use coralio_runtime::Timer;
    #[doc(inline)]
    pub use coralio_runtime::{
        BottomHalfInfo, ContextBuilder, ContextEnded, ContextGuard, Dump, EventNotifier, FdHandlerInfo, Interest,
        PollHandler, PollHandlerInfo, Readiness, TimerInfo, VirtualClock,
    };
}

/// Sockets, pipes and other descriptors that a coroutine waits for.
pub mod net {
    #[doc(alias = "AsyncFd")]
    #[doc(inline)]
    pub use coralio_runtime::CoFd;
    #[doc(inline)]
    pub use coralio_runtime::{wait_readable, wait_writable};
}

/// Synchronisation between coroutines, of one context or of several. Waiting suspends the
/// coroutine, never the thread.
pub mod sync {
    #[doc(alias("Condvar", "WaitGroup"))]
    #[doc(inline)]
    pub use coralio_runtime::CoQueue;
    #[doc(alias("Condvar", "Event"))]
    #[doc(inline)]
    pub use coralio_runtime::Notify;
    #[doc(alias("OnceLock", "LazyCell"))]
    #[doc(inline)]
    pub use coralio_runtime::OnceCell;
    #[doc(alias = "mpsc")]
    #[doc(inline)]
    pub use coralio_runtime::channel;
    #[doc(inline)]
    pub use coralio_runtime::{
        Barrier, BarrierWaitResult, CoRwLock, CoRwReadGuard, CoRwWriteGuard, OwnedCoMutexGuard, OwnedPermit, Permit,
        Semaphore, SharedMutex, oneshot, watch,
    };
    #[doc(alias = "Mutex")]
    #[doc(inline)]
    pub use coralio_runtime::{CoMutex, CoMutexGuard};
}

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
    /// Creates a builder with [`BackendKind::Auto`], queue depth [`DEFAULT_QUEUE_DEPTH`] and stack size
    /// [`DEFAULT_STACK_SIZE`](task::DEFAULT_STACK_SIZE).
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

    /// Counts submits that block the loop for longer than `limit`: [`Stats::slow_submits`](driver::Stats::slow_submits). Each
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

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
