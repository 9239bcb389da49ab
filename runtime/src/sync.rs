//! Synchronisation between coroutines, of one context or of several. Waiting suspends the
//! coroutine, never the thread.

pub(crate) mod channel;
pub(crate) mod co_mutex;
pub(crate) mod co_queue;
pub(crate) mod co_rwlock;
mod lock_owner;
pub(crate) mod oneshot;
pub(crate) mod semaphore;
pub(crate) mod wait_queue;

pub use channel::{Messages, Receiver, RecvError, SendError, Sender, TryRecvError, TrySendError, channel};
pub use co_mutex::{CoMutex, CoMutexGuard};
pub use co_queue::CoQueue;
pub use co_rwlock::{CoRwLock, CoRwReadGuard, CoRwWriteGuard};
pub use oneshot::{OneShotReceiver, OneShotSender, oneshot};
pub use semaphore::{Permit, Semaphore};
