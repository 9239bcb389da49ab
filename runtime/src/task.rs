//! The functions that a coroutine's author calls: create, spawn, join, wait, cancel, time out.

pub(crate) mod cancel;
pub(crate) mod coroutine;
pub(crate) mod future;
pub(crate) mod remote;
pub(crate) mod scope;
pub(crate) mod spawn;
pub(crate) mod time;
pub(crate) mod waker;

pub use cancel::{check_cancelled, is_cancelled, shield};
pub use coroutine::{Coroutine, CoroutineBuilder, can_suspend, suspend, yield_now};
pub use future::block_on;
pub use remote::RemoteJoinHandle;
pub use scope::{Scope, ScopedJoinHandle, scope};
pub use spawn::{JoinHandle, spawn, spawn_now};
pub use time::{TimedOut, sleep, timeout};
pub use waker::Waker;
