//! The functions that a coroutine's author calls: create, spawn, join, wait, cancel, time out.

pub(crate) mod cancel;
pub(crate) mod cancel_on_drop;
pub(crate) mod coroutine;
pub(crate) mod coroutine_local;
pub(crate) mod future;
pub(crate) mod interval;
pub(crate) mod join_set;
pub(crate) mod remote;
pub(crate) mod scope;
pub(crate) mod select;
pub(crate) mod spawn;
pub(crate) mod time;
pub(crate) mod waker;

use std::io;

pub use cancel::{check_cancelled, is_cancelled, shield};
pub use cancel_on_drop::CancelOnDrop;
pub use coroutine::{Coroutine, CoroutineBuilder, can_suspend, suspend, yield_now};
pub use coroutine_local::CoroutineLocal;
pub use future::block_on;
pub use interval::{Interval, MissedTickBehavior, interval, interval_at};
pub use join_set::JoinSet;
pub use remote::RemoteJoinHandle;
pub use scope::{Scope, ScopedJoinHandle, scope};
pub use select::{Race, Select, race, select};
pub use spawn::{JoinHandle, spawn, spawn_now};
pub use time::{TimedOut, sleep, sleep_until, timeout, timeout_at};
pub use waker::Waker;

/// Returns the result of a spawn, or panics with its error.
#[track_caller]
fn expect_spawned<T>(spawned: io::Result<T>) -> T {
    match spawned {
        Ok(spawned) => spawned,
        Err(error) => panic!("cannot spawn a coroutine: {error}"),
    }
}
