//! Storage I/O for coroutines: plain `read_at` and `write_at` with borrowed buffers, on Linux
//! native AIO.
//!
//! ```
//! use coralio_aio::{File, spawn};
//! use std::rc::Rc;
//!
//! # fn main() -> std::io::Result<()> {
//! # let path = std::env::temp_dir().join(format!("coralio-lib-doc-{}", std::process::id()));
//! # std::fs::write(&path, vec![7; 16384])?;
//! let sum = coralio_aio::run(|| {
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
//! # Who does what
//!
//! A [`File`]'s call makes a request and suspends the coroutine. Requests gather while the event
//! loop runs other coroutines, and go to the kernel together, in one system call. What is done is
//! read off the kernel's ring in memory, and its coroutine woken. [`Engine`] has the picture.
//!
//! # Sound with borrowed buffers
//!
//! A coroutine's stack stays where it is while it is suspended, so the kernel may write into a
//! buffer on it. The call does not return and does not unwind before the kernel has given the
//! buffer back: not when the coroutine is cancelled, nor when its context ends.

// These macros panic where nobody can read what they print; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod any;
mod auto;
mod blocking;
mod buffer;
mod detach;
mod engine;
mod error;
mod file;
pub mod kernel;
mod perform;
mod place;
pub mod policy;
mod pool;
mod queue;
mod reap;
mod request;
pub mod simulate;
mod slow;
mod tell;

use std::io;
use std::time::Duration;

pub use any::KernelChoice;
pub use auto::Chosen;
pub use blocking::unblock;
pub use buffer::AlignedBuf;
pub use coralio_runtime::*;
pub use detach::{Detached, DetachedEngine, Refused, detach};
pub use engine::{Engine, Stats};
pub use file::{Alignment, DetachedFile, Direct, File, OpenOptions, Stream, remove_file, rename, sync_directory};
pub use queue::Plug;
pub use simulate::simulate;

use any::AnyEngine;

/// Queue depth where none was asked for: requests that the kernel has at once.
///
/// Less than the queue of what is common: 128 of a loop device, 256 of virtio, 1023 of NVMe
/// (`/sys/block/*/queue/nr_requests`). When a device's queue is full, whoever submits waits for it.
/// And so shared ones have room for others; batches of 16 already cost as little per request as
/// larger ones do.
pub const DEFAULT_DEPTH: u32 = 64;

/// Runs `f` as the first coroutine of a new context on this thread, and the event loop until it
/// ends.
///
/// Coroutines that are left then are unwound; join those whose end matters.
///
/// # Panics
///
/// With `f`'s panic. If this thread runs a context already; if the system has no resources for one:
/// use [`Runner`] to get that as an error.
#[track_caller]
pub fn run<T>(f: impl FnOnce() -> T) -> T {
    match Runner::new().run(f) {
        Ok(value) => value,
        Err(error) => panic!("cannot run a context: {error}"),
    }
}

/// Sets up a context with its I/O engine, and runs it.
///
/// ```
/// let seven = coralio_aio::Runner::new().depth(32).stack_size(256 * 1024).run(|| 7).unwrap();
/// assert_eq!(seven, 7);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Runner {
    kernel: KernelChoice,
    depth: u32,
    submit_limit: Option<Duration>,
    context: ContextBuilder,
}

impl Default for Runner {
    fn default() -> Runner {
        Runner::new()
    }
}

impl Runner {
    /// [`KernelChoice::Auto`], queue depth [`DEFAULT_DEPTH`], stack size [`DEFAULT_STACK_SIZE`].
    pub fn new() -> Runner {
        Runner { kernel: KernelChoice::Auto, depth: DEFAULT_DEPTH, submit_limit: None, context: AioContext::builder() }
    }

    /// Which of the kernel's interfaces to use.
    pub fn kernel(mut self, choice: KernelChoice) -> Runner {
        self.kernel = choice;
        self
    }

    /// The most requests that the kernel has at once; more wait their turn.
    ///
    /// Keep it below the device's queue (`/sys/block/*/queue/nr_requests`), beyond which a submit
    /// blocks: for 3 to 11 milliseconds with 512 in flight on a queue of 256, on native AIO and
    /// io_uring alike, and under [`KernelChoice::Auto`] too, since the kernel does not refuse for
    /// that. Large requests count several times: the kernel splits them
    /// (`/sys/block/*/queue/max_sectors_kb`).
    pub fn depth(mut self, depth: u32) -> Runner {
        self.depth = depth;
        self
    }

    /// Stack size of coroutines in bytes, guard page included, where none is asked for.
    pub fn stack_size(mut self, bytes: usize) -> Runner {
        self.context = self.context.stack_size(bytes);
        self
    }

    /// For how long the loop may keep looking for completions before it sleeps, as
    /// [`ContextBuilder::poll_limit`]: latency for CPU time.
    pub fn poll_limit(mut self, limit: Duration) -> Runner {
        self.context = self.context.poll_limit(limit);
        self
    }

    /// Counts submits that block the loop for longer than `limit`: [`Stats::blocked_submits`]. Each
    /// submit reads the clock twice then; without a limit, none does.
    ///
    /// Under [`KernelChoice::Auto`] what would block goes to a thread. What is counted all the same
    /// tells of a queue that is too deep for the device, or of a thread that did not have a
    /// processor.
    pub fn submit_limit(mut self, limit: Duration) -> Runner {
        self.submit_limit = Some(limit);
        self
    }

    /// Has what happens told to an event log, as [`ContextBuilder::trace`].
    pub fn trace(mut self, trace: &trace::Trace) -> Runner {
        self.context = self.context.trace(trace);
        self
    }

    /// For what else a context can be set up with.
    pub fn context(mut self, builder: ContextBuilder) -> Runner {
        self.context = builder;
        self
    }

    /// As [`run`].
    ///
    /// # Errors
    ///
    /// `InvalidInput`: a depth that cannot be. What the kernel says if it has no resources for an
    /// engine, with the remedy.
    ///
    /// # Panics
    ///
    /// With `f`'s panic. If this thread runs a context already.
    #[track_caller]
    pub fn run<T>(self, f: impl FnOnce() -> T) -> io::Result<T> {
        let Runner { kernel, depth, submit_limit, context } = self;
        context.run_coroutine(|_context| {
            let engine = AnyEngine::attach(kernel, depth)?;
            submit_limit.into_iter().for_each(|limit| engine.set_submit_limit(limit));
            Ok(f())
        })?
    }
}

/// What this context's engine has done so far. All zero before its first file.
pub fn stats() -> Stats {
    match AioContext::current().and_then(|context| context.source()) {
        Some(_) => AnyEngine::of_this_context().map(|engine| engine.stats()).unwrap_or_default(),
        None => Stats::default(),
    }
}

/// By what this context's I/O goes to the kernel, and why; `None` before its first file, and
/// outside a context.
///
/// ```
/// use coralio_aio::{Runner, chosen_kernel};
///
/// // "native AIO, and threads for what would block it", or "io_uring: native AIO was refused: ..."
/// Runner::new().run(|| println!("{}", chosen_kernel().unwrap()))?;
/// # std::io::Result::Ok(())
/// ```
pub fn chosen_kernel() -> Option<Chosen> {
    AioContext::current()?.source()?;
    AnyEngine::of_this_context().ok()?.chosen()
}

/// Lets this context's requests gather until the plug is dropped, so that they share one system
/// call.
///
/// # Errors
///
/// What making the engine says, if the context has none yet.
///
/// # Panics
///
/// Outside a context.
pub fn plug() -> io::Result<Plug> {
    Ok(AnyEngine::of_this_context()?.plug())
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
