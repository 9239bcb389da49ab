//! Synchronisation among coroutines, of one context or of several. What waits is a coroutine, never the thread.

pub(crate) mod co_mutex;
pub(crate) mod co_queue;
mod wait_queue;

pub use co_mutex::{CoMutex, CoMutexGuard};
pub use co_queue::CoQueue;
