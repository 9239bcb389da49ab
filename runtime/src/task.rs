//! The functions that a coroutine's author calls: create, spawn, join, wait, cancel, time out.

pub(crate) mod cancel;
pub(crate) mod coroutine;
pub(crate) mod future;
pub(crate) mod scope;
pub(crate) mod spawn;
pub(crate) mod waker;

pub use cancel::{TimedOut, check_cancelled, is_cancelled, shield, sleep, timeout};
pub use coroutine::{Builder, Coroutine, can_suspend, suspend, yield_now};
pub use future::{RemoteHandle, await_future};
pub use scope::{Scope, ScopedHandle, scope};
pub use spawn::{JoinHandle, spawn, start};
pub use waker::{Token, Waker};
