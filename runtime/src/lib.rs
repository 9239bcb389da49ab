//! Stackful coroutines and an event loop, modelled on QEMU's block layer.
//!
//! # Control flow
//!
//! ```text
//!   thread's own stack                     one stack per coroutine
//!   ------------------                     -----------------------
//!   AioContext::run(|ctx| ..)
//!     ctx.poll(true)  ---- enters --->     'A'  suspend()  ---- back to the latest enterer
//!                                          'A'  other.enter()  ----> 'B'  on top of 'A'
//!                                          'A'  other.wake()    'B' runs when 'A' yields or ends
//! ```
//!
//! - *Enter* runs a coroutine immediately, on the caller's thread, until it yields or ends. Enters
//!   nest. A panic of the coroutine propagates to the enterer, or else goes to its join handle.
//! - A coroutine is *entered* while it is on the stack: running, or below coroutines that it
//!   entered. Entering it again is recursive entry, an error that names the chain.
//! - *Yield* ([`suspend`]) returns to the latest enterer.
//! - *Wake* makes a suspended coroutine run again: immediately, if no coroutine is running;
//!   otherwise when the running one yields; from another thread, in the next iteration of the loop,
//!   which is notified.
//!
//! The loop ([`AioContext::poll`]) runs bottom halves, fd handlers, spawned coroutines and an I/O
//! engine's completions. A coroutine may call any plain synchronous code: waiting is an ordinary
//! blocking call.
//!
//! Functions that may switch coroutines have a documentation section `# Control`. Functions
//! without this section never switch: they neither enter, nor yield, nor block. A coroutine that they
//! wake runs when the running one yields, or else in its loop's next iteration.
//!
//! A function that yields panics where it would have to wait outside a coroutine, unless its section
//! `# Control` says otherwise. In a destructor on an unwinding stack it cannot wait either: see
//! [`can_suspend`].
//!
//! This crate knows nothing of I/O requests; `coralio` adds them.
//!
//! # Layers
//!
//! A layer knows those below it, and none above.
//!
//! ```text
//!   io_thread      a thread that runs a context's loop until stopped
//!   builder        configures a context and connects the parts that do not know each other
//!   diagnostics    describes contexts and coroutines: dumps, deadlocks, stalls, stack overflows
//!   net            sockets and pipes that suspend the coroutine instead of the thread
//!   sync           locks, queues and channels between coroutines
//!   task           what a coroutine's author calls: create, spawn, join, sleep, time out, cancel
//!   context        one iteration of the loop, the sources of its events, and how it sleeps
//!   scheduler      which coroutines are entered, which run next, and how other threads wake them
//!   coroutine      one coroutine: control block, state word, stack, and what it waits for
//!   trace          the event log, written by all layers above
//!   sys            system calls as safe values, clocks, messages on standard error
//! ```
//!
//! # Invariants
//!
//! - A coroutine runs on its home thread only. Other threads hold a block and a generation, with
//!   which they can wake or cancel it; a stale generation does nothing.
//! - The stack of an entered coroutine is taken out of its control block, so it cannot be entered a
//!   second time.
//! - Every suspension goes through one function, every resumption through another. While its stack
//!   unwinds, a coroutine is not suspended.
//! - A context ends all its coroutines before it ends. A child of a fork ends none.
//! - No lock and no borrow is held while foreign code runs, except the context's own lock. Values
//!   of the user are dropped outside the lock of the table that held them.
//! - While the loop sleeps, its thread runs no context until it has the context's lock again; so
//!   another thread that holds the lock may read the coroutines.
//! - While a thread is stopped for a report, the reporter allocates nothing and takes no lock.
//!
//! # Thread state held across a suspension
//!
//! The coroutines of a context share one thread, and with it the thread's local variables. While a
//! coroutine is suspended, others run on the thread: they see the values that it left in such a
//! variable, and may change them. Caches, random number generators and variables that are set and
//! restored between two suspensions are not affected. *Scoped* state is: state that is set on entry
//! and restored on exit, last in, first out. Coroutines leave their scopes in another order than
//! they entered them. Neither the compiler nor this crate can detect that, so leave such a scope
//! before any call that may yield (any function with a section *Control*):
//!
//! - `scoped_tls`: `KEY.set(&value, || suspend())` may finally restore the value that another
//!   coroutine had set: a reference to an object that may be gone. That is undefined behaviour,
//!   although the code is safe. The same is true of any library that keeps borrowed values in
//!   thread-local scopes.
//! - Runtime guards, such as tokio's `Handle::enter`: tokio panics if they are not dropped in
//!   reverse order. Enter the runtime once, around the call that runs the context: see
//!   [`block_on`].
//! - `tracing`: a span that is entered across a suspension is current for all coroutines that run
//!   meanwhile, and their events are recorded in it. Enter the span between suspensions
//!   (`span.in_scope(..)`), or pass it to events by `parent:`. The same applies to `set_default` of
//!   a subscriber. With this crate's feature `tracing`, each coroutine has a span of its own, named
//!   `coroutine`, which is entered and left with it at each switch: the coroutine's events are in
//!   that span, even after other coroutines ran. The parent of the span is the one that was current
//!   where the coroutine was created, so a coroutine spawned within a request's span belongs to the
//!   request.
//! - [`std::thread::panicking`] and the guards of [`std::sync::Mutex`] belong to the thread as
//!   well. Use [`CoMutex`] for locks that are held across a suspension.
//!
//! # Profilers
//!
//! A profiler that unwinds the stack in a signal handler of the thread (glibc's `backtrace` or
//! libunwind on `SIGPROF`, as in gperftools and pprof-rs) may crash if the signal arrives during
//! the few instructions that switch stacks. The switch is inline assembly in functions whose unwind
//! tables the compiler writes; the tables do not describe the pushes and the change of the stack
//! pointer within it, and no directive could for every frame layout that the compiler may choose.
//! Profilers that copy the stack from outside the process (`perf record`, with frame pointers or
//! with DWARF) are not affected: at worst such a sample has a truncated call chain.
//!
//! # Features
//!
//! None is enabled by default.
//!
//! - `tracing`: a span for each coroutine, entered and left with it at each switch.
//! - `sanitizer`: tells AddressSanitizer of every stack switch; needs a compiler with `-Zsanitizer`.

// These macros panic if their output cannot be written; messages go through `sys::report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

/// The primitives of the lock-free parts. The model checker's tests include the same source files
/// with loom's types in this module.
mod atomic {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

    pub(crate) use crossbeam_utils::Backoff;
    pub(crate) use parking_lot::Mutex;
}
mod builder;
mod context;
mod coroutine;
mod diagnostics;
mod io_thread;
pub mod net;
mod scheduler;
mod sync;
mod sys;
mod task;
pub mod trace;

pub use builder::ContextBuilder;
pub use context::AioContext;
pub use context::bottom_half::{BottomHalf, BottomHalfInfo};
pub use context::event_notifier::EventNotifier;
pub use context::fd_handler::{FdHandler, FdHandlerInfo, Interest, Readiness};
pub use context::lock::{ContextGuard, HomeLockGuard};
pub use context::poll_handler::{PollHandler, PollHandlerInfo};
pub use context::registration::ContextEnded;
pub use context::source::{EventSource, Flush, HomeRef, HomeToken, LoopToken, SourceState};
pub use context::timer::{Timer, TimerInfo};
pub use coroutine::error::{Cancelled, EnterError, ScheduleError};
pub use coroutine::id::CoroutineId;
pub use coroutine::stack::{DEFAULT_STACK_SIZE, MIN_STACK_SIZE};
pub use diagnostics::dump::Dump;
pub use diagnostics::panic_hook::install_panic_hook;
pub use io_thread::IoThread;
pub use net::{CoFd, Signal, ctrl_c, signal, wait_readable, wait_writable};
pub use sync::{
    Barrier, BarrierWaitResult, CoMutex, CoMutexGuard, CoQueue, CoRwLock, CoRwReadGuard, CoRwWriteGuard, Notify,
    OnceCell, OwnedCoMutexGuard, OwnedPermit, Permit, Receiver, RecvError, Semaphore, SendError, Sender, SharedMutex,
    TryRecvError, TrySendError, channel, oneshot, watch,
};
pub use sys::clock::VirtualClock;
#[doc(hidden)]
pub use sys::cpus::{allowed_cpus, unrestrict_cpus};
pub use sys::os_error::OsCode;
#[doc(hidden)]
pub use sys::os_error::explained;
#[doc(hidden)]
pub use sys::report::report;
pub use task::{
    CancelOnDrop, Coroutine, CoroutineBuilder, CoroutineLocal, Interval, JoinHandle, JoinSet, MissedTickBehavior, Race,
    RemoteJoinHandle, Scope, ScopedJoinHandle, Select, TimedOut, Waker, block_on, can_suspend, check_cancelled,
    interval, interval_at, is_cancelled, race, scope, select, shield, sleep, sleep_until, spawn, spawn_now, suspend,
    timeout, timeout_at, yield_now,
};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
