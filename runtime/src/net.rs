//! Descriptors with blocking semantics that suspend the coroutine instead of the thread.

mod co_fd;
mod readiness;
mod signal;

pub use co_fd::CoFd;
pub use readiness::{wait_readable, wait_writable};
pub use signal::{Signal, ctrl_c, signal};
