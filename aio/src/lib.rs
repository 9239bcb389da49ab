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
//! | start and join coroutines | [`spawn`], [`spawn_now`], [`JoinHandle`]; with borrows: [`scope`] |
//! | run a context on each of several threads | [`RuntimeBuilder::threads`] |
//! | read and write files | [`File`], [`OpenOptions`], [`AlignedBuf`]; names and directories: [`fs`] |
//! | use a library for `std::io::{Read, Write, Seek}` | [`fs::FileCursor`] |
//! | make many writers' records durable with one sync | [`commit`] |
//! | wait, with a limit | [`sleep`], [`timeout`], [`yield_now`]; intervals, cancellation: [`task`] |
//! | wait for several things | [`task::select`], [`task::race`], [`task::JoinSet`] |
//! | call blocking code, or a future | [`unblock`], [`block_on`] |
//! | use it from an async program | [`task::Remote`] |
//! | share data between coroutines | [`sync`]: locks, semaphore, channels, notifications, barrier |
//! | use sockets and pipes | [`net`] |
//! | end at a signal, such as Ctrl-C | [`task::ctrl_c`], [`task::signal`] |
//! | use the event loop itself | [`context`]: bottom halves, timers, descriptors, I/O threads |
//! | switch between coroutines by hand | [`coroutine`]: enter, yield, wake |
//! | test code against crashes | [`mod@simulate`] |
//! | see what a run did | [`trace`] |
//! | read statistics, choose a backend, batch requests | [`driver`] |
//! | write a backend, or test the engine itself | [`engine`] |
//!
//! # How it works
//!
//! A [`File`] call creates a request and suspends the coroutine, unless the request is done immediately.
//! Requests accumulate while the
//! event loop runs other coroutines, and are submitted together in one system call. Completions are
//! read from the kernel's ring in memory, and wake their coroutines.
//!
//! The layers, from bottom to top; each depends only on those below it:
//!
//! - `backend`: native AIO, io_uring, a thread pool, and the simulated and scripted ones;
//! - `engine`: a request from submit to reap, with the [guards](engine::guards) against historic bugs
//!   as a type parameter;
//! - `driver`: one per context: its engine, and which requests go to threads;
//! - `file`: files on top of the driver, and `commit`: group commit on top of files;
//! - `simulate`: a user's code on the simulated backend.
//!
//! Coroutines, the event loop and synchronisation are in the crate
//! [`coralio-runtime`](coralio_runtime), whose items this crate re-exports.
//!
//! Deliberately left out: `async fn` (any function can wait), work stealing (a coroutine stays on
//! its thread), and systems other than 64-bit little-endian Linux.
//!
//! # Control flow
//!
//! To *enter* a coroutine is to run it on top of the caller until it *yields* (suspends itself) or
//! ends. A function that may do either has a section `# Control`. All other functions never switch:
//! they do not enter a coroutine, yield or block. (Called on a thread other than the context's, a
//! function may wait for the context's lock.) A coroutine that they wake runs when the running one
//! yields, or else in the loop's next iteration.
//!
//! A function that yields panics where it would have to wait outside a coroutine, unless its section
//! `# Control` says otherwise. In a destructor on an unwinding stack it cannot wait either: see
//! [`can_suspend`](task::can_suspend).
//!
//! # Soundness of borrowed buffers
//!
//! A suspended coroutine's stack does not move, so the kernel may write into a buffer on it. The
//! call neither returns nor unwinds before the kernel has released the buffer, not even if the
//! coroutine is cancelled or its context ends.
//!
//! # Features
//!
//! None is enabled by default.
//!
//! - `tracing`: a span for each coroutine, entered and left with it at each switch.
//! - `sanitizer`: tells AddressSanitizer of every stack switch; needs a compiler with `-Zsanitizer`.

// These macros panic if the output cannot be written; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod backend;
mod builder;
pub mod commit;
pub mod driver;
pub mod engine;
mod file;
mod remote;
pub mod simulate;
mod threads;

pub use builder::RuntimeBuilder;
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

/// Names, directories, whole files and options, beside [`File`] and [`OpenOptions`].
///
/// ```
/// use coralio::fs;
///
/// # fn main() -> std::io::Result<()> {
/// # let dir = std::env::temp_dir().join(format!("coralio-fs-doc-{}", std::process::id()));
/// coralio::run(|| {
///     fs::create_dir(&dir)?;
///     fs::write(dir.join("new"), "contents")?;
///     fs::rename(dir.join("new"), dir.join("file"))?;
///     fs::sync_dir(&dir)?; // the name is durable now
///     assert_eq!(fs::File::open(dir.join("file"))?.len()?, 8);
///     fs::remove_dir_all(&dir)
/// })
/// # }
/// ```
///
/// The functions are those of `std::fs`, and suspend the coroutine instead of the thread. Their
/// errors name the operation and the path; [`OsCode`](crate::task::OsCode) gives the system's code.
/// In a [simulation](mod@crate::simulate) they act on the simulated disk, where a crash may undo
/// changes of names until [`sync_dir`](crate::fs::sync_dir) has returned.
pub mod fs {
    #[doc(alias = "O_DIRECT")]
    pub use crate::file::Direct;
    #[doc(alias("RWF_DSYNC", "RWF_DONTCACHE", "RWF_ATOMIC", "pwritev2"))]
    pub use crate::file::WriteFlags;
    pub use crate::file::{
        Advice, Alignment, DetachedFile, DirEntry, FileCursor, ReadDir, TryLockError, canonicalize, copy,
        copy_file_range, create_dir, create_dir_all, hard_link, metadata, read, read_dir, read_to_string, remove_dir,
        remove_dir_all, remove_file, rename, replace_file, symlink_metadata, sync_dir, try_exists, write,
    };
    #[doc(no_inline)]
    pub use crate::{File, OpenOptions};
}

/// Scopes, sets, handles, concurrent waits, times, signals, cancellation and errors of
/// coroutines, beside [`spawn`] and [`JoinHandle`].
///
/// ```
/// use coralio::task::{self, JoinSet, TimedOut};
/// use std::time::Duration;
///
/// coralio::run(|| {
///     let mut set = JoinSet::new();
///     for n in 1..4 {
///         set.spawn(move || task::sleep(Duration::from_millis(n)).map(|()| n));
///     }
///     let first = set.join_next()?.expect("three were spawned");
///     assert_eq!(first.unwrap(), Ok(1));
///     set.shutdown()?; // cancels the others, and waits for them
///     let hour = Duration::from_secs(3600);
///     assert_eq!(task::timeout(Duration::from_millis(1), || task::sleep(hour)), Err(TimedOut));
///     std::io::Result::Ok(())
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub mod task {
    #[doc(alias("Handle", "spawn_pinned", "LocalPoolHandle"))]
    pub use crate::remote::Remote;
    #[doc(no_inline)]
    pub use crate::{JoinHandle, block_on, scope, sleep, spawn, spawn_now, timeout, unblock, yield_now};
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
    pub use crate::threads::{ContextThreads, ThreadBuilder};
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
        PollHandler, PollHandlerInfo, Readiness, TimerInfo, VirtualClock, install_panic_hook,
    };
}

/// Sockets, pipes and other descriptors that a coroutine waits for.
///
/// [`CoFd`](net::CoFd) is any of them, with blocking semantics that suspend the coroutine instead of
/// the thread. [`TcpStream`](net::TcpStream), [`TcpListener`](net::TcpListener),
/// [`UnixStream`](net::UnixStream), [`UnixListener`](net::UnixListener) and
/// [`UdpSocket`](net::UdpSocket) are a `CoFd` with the type of `std` of that name in it, and have the
/// methods of `std`. [`CoFd::new`](net::CoFd::new) makes one from the type of `std`,
/// [`CoFd::into_inner`](net::CoFd::into_inner) or `From` returns that, and
/// [`CoFd::get_ref`](net::CoFd::get_ref) lends it for options that have no method here.
///
/// ```
/// use coralio::net::{TcpListener, TcpStream};
/// use coralio::spawn;
/// use std::io::{Read, Write};
///
/// coralio::run(|| {
///     let listener = TcpListener::bind("127.0.0.1:0")?;
///     let address = listener.local_addr()?;
///     let server = spawn(move || {
///         let (mut client, _from) = listener.accept()?;
///         client.write_all(b"hello")
///     });
///     let mut answer = String::new();
///     TcpStream::connect(address)?.read_to_string(&mut answer)?; // the server runs meanwhile
///     assert_eq!(answer, "hello");
///     server.join().unwrap()
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub mod net {
    #[doc(alias = "AsyncFd")]
    #[doc(inline)]
    pub use coralio_runtime::CoFd;
    #[doc(inline)]
    pub use coralio_runtime::net::{
        Incoming, TcpListener, TcpStream, ToSocketAddrs, UdpSocket, UnixListener, UnixStream, splice,
    };
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

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
