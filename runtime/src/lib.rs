//! Stackful coroutines and an event loop, in the manner of QEMU's block layer.
//!
//! # Who runs whom
//!
//! ```text
//!   thread's own stack                     one stack per coroutine
//!   ------------------                     -----------------------
//!   AioContext::run(|ctx| ..)
//!     ctx.poll(true)  ---- enters --->     'A'  suspend()  ---- back to whoever entered it last
//!                                          'A'  other.enter()  ----> 'B'  on top of 'A'
//!                                          'A'  other.wake()    'B' runs when 'A' yields or ends
//! ```
//!
//! - *Enter* runs a coroutine at once, on the caller's thread, until it yields or ends. Enters nest.
//! - A coroutine is *entered* while it is on the stack: running, or beneath others that it entered. Entering it again is
//!   recursive entry, an error that names the chain.
//! - *Yield* ([`suspend`]) goes back to whoever entered it last.
//! - *Wake* makes a suspended coroutine run again: at once, if no coroutine is running; else when the running one yields;
//!   from another thread, in the next round of the loop, which is notified.
//!
//! The loop ([`AioContext::poll`]) runs bottom halves, watches, spawned coroutines and an I/O engine's completions.
//! Everything that a coroutine calls may be plain, synchronous code: to it, waiting is a function that takes long.
//!
//! This crate knows nothing of I/O requests; `coralio-aio` brings them.
//!
//! # Thread state held across a suspension
//!
//! The coroutines of a context share one thread, and with it the thread's local variables. While a coroutine is suspended,
//! others run there: they see what it has left in such a variable, and may change it. Caches, random number generators and
//! variables that are set and restored between two suspensions are not affected. State in *scopes* is: what is set on entry and
//! restored on exit, last in, first out. Coroutines leave their scopes in another order than they entered them. Neither the
//! compiler nor this crate can detect that, so leave such a scope before any call that may yield (its documentation has a
//! section *Control*):
//!
//! - `scoped_tls`: `KEY.set(&value, || suspend())` restores in the end what another coroutine had set, a reference to a value
//!   that may be gone. That is undefined behaviour, although the code is safe. So it is with any library that keeps borrowed
//!   values in thread-local scopes.
//! - Runtime guards, such as tokio's `Handle::enter`: tokio panics if they are not dropped in reverse order. Enter the runtime
//!   once, around the call that runs the context: see [`await_future`].
//! - `tracing`: a span that is entered during a suspension is current for the coroutines that run meanwhile, and their events
//!   are recorded in it. Enter the span between suspensions (`span.in_scope(..)`), or pass it to events by `parent:`. The same
//!   holds for `set_default` of a subscriber.
//! - [`std::thread::panicking`] and the guards of [`std::sync::Mutex`] belong to the thread, too. Use [`CoMutex`] for what is
//!   locked during a suspension.
//!
//! # Profilers
//!
//! A profiler that unwinds the stack in a signal handler of the thread (glibc's `backtrace` or libunwind on `SIGPROF`, as
//! gperftools and pprof-rs do) may crash if the signal arrives during the few instructions that switch stacks. The switch is
//! inline assembly in functions whose unwind tables the compiler writes; the tables do not describe the pushes and the change
//! of the stack pointer within it, and no directive could for every frame layout that the compiler may choose. Profilers that
//! copy the stack from outside the process (`perf record`, with frame pointers or with DWARF) are not affected: at worst such a
//! sample has a short call chain.

// These macros panic where nobody can read what they print; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

/// What the lock-free parts are made of. The model checker's tests include those same files, and have loom's here.
mod atomic {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

    pub(crate) use crossbeam_utils::Backoff;
    pub(crate) use parking_lot::Mutex;
}
pub(crate) mod context;
mod coroutine;
mod future;
mod home;
mod os_error;
mod report;
mod scope;
mod sync;
mod sys;
mod task;
pub mod trace;

pub use context::bottom_half::{BottomHalf, BottomHalfInfo};
pub use context::clock::VirtualClock;
pub use context::event_notifier::EventNotifier;
pub use context::fd::{Interest, Readiness, Watch, WatchInfo};
pub use context::lock::{ContextGuard, HomeGuard};
pub use context::polling::{PollHandler, PollHandlerInfo};
pub use context::registry::ContextEnded;
pub use context::thread::LoopThread;
pub use context::timer::{Timer, TimerInfo};
pub use context::{
    AioContext, AtHome, CoFd, ContextBuilder, Dump, HomeToken, LoopToken, Source, wait_readable, wait_writable,
};
pub use coroutine::stack::{DEFAULT_STACK_SIZE, MIN_STACK_SIZE};
pub use coroutine::{
    Builder, Cancelled, Coroutine, EnterError, ScheduleError, TimedOut, Token, Waker, can_suspend, check_cancelled,
    is_cancelled, shield, sleep, suspend, timeout, yield_now,
};
pub use future::{RemoteHandle, await_future};
pub use os_error::OsCode;
#[doc(hidden)]
pub use os_error::explained;
#[doc(hidden)]
pub use report::report;
pub use scope::{Scope, ScopedHandle, scope};
pub use sync::{
    CoMutex, CoMutexGuard, CoQueue, CoRwLock, CoRwReadGuard, CoRwWriteGuard, Messages, OneShotReceiver, OneShotSender,
    Permit, Receiver, RecvError, Semaphore, SendError, Sender, TryRecvError, TrySendError, channel, oneshot,
};
pub use task::{JoinHandle, spawn, start};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
