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
mod scope;
mod sync;
mod sys;
mod task;
pub mod trace;

pub use context::bottom_half::BottomHalf;
pub use context::clock::VirtualClock;
pub use context::fd::{Interest, Readiness, Watch};
pub use context::lock::{ContextGuard, HomeGuard};
pub use context::polling::PollHandler;
pub use context::thread::LoopThread;
pub use context::timer::Timer;
pub use context::{
    AioContext, AtHome, CoFd, ContextBuilder, Dump, HomeToken, LoopToken, Source, wait_readable, wait_writable,
};
pub use coroutine::stack::{DEFAULT_STACK_SIZE, MIN_STACK_SIZE};
pub use coroutine::{
    Builder, Cancelled, Coroutine, EnterError, ScheduleError, TimedOut, Token, Waker, can_suspend, check_cancelled,
    is_cancelled, shield, sleep, suspend, timeout, yield_now,
};
pub use future::{RemoteHandle, await_future};
pub use scope::{Scope, ScopedHandle, scope};
pub use sync::{
    CoMutex, CoMutexGuard, CoQueue, CoRwLock, CoRwReadGuard, CoRwWriteGuard, Messages, OneShotReceiver, OneShotSender,
    Permit, Receiver, RecvError, Semaphore, SendError, Sender, TryRecvError, TrySendError, channel, oneshot,
};
pub use task::{JoinHandle, spawn, start};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
