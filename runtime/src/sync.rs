//! Synchronisation between coroutines, of one context or of several. Waiting suspends the
//! coroutine, never the thread.

pub(crate) mod barrier;
pub mod channel;
pub(crate) mod co_mutex;
pub(crate) mod co_queue;
pub(crate) mod co_rwlock;
mod lock_owner;
pub(crate) mod notify;
pub(crate) mod once_cell;
pub mod oneshot;
pub(crate) mod semaphore;
pub(crate) mod wait_queue;
pub mod watch;

pub use barrier::{Barrier, BarrierWaitResult};
pub use channel::{Receiver, RecvError, SendError, Sender, TryRecvError, TrySendError};
pub use co_mutex::{CoMutex, CoMutexGuard, OwnedCoMutexGuard, SharedMutex};
pub use co_queue::CoQueue;
pub use co_rwlock::{CoRwLock, CoRwReadGuard, CoRwWriteGuard};
pub use notify::Notify;
pub use once_cell::OnceCell;
pub use semaphore::{OwnedPermit, Permit, Semaphore};
