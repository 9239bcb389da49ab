//! System calls as safe values, clocks, and messages on standard error.
//!
//! The lowest layer. It knows nothing of coroutines or contexts.

pub(crate) mod clock;
pub(crate) mod cpus;
pub(crate) mod descriptors;
pub(crate) mod fork;
pub(crate) mod format;
pub(crate) mod os_error;
pub(crate) mod panic;
pub(crate) mod prefetch;
pub(crate) mod report;

pub(crate) use clock::{COARSE_STEP, Clock, VirtualClock};
pub(crate) use cpus::Pinned;
pub(crate) use descriptors::{Epoll, EventFd, Ready, TimerFd, set_nonblocking, socket_timeout};
pub(crate) use fork::{enter_child, in_child, refuse_in_child};
pub(crate) use format::{format_fn, opaque_debug};
pub(crate) use os_error::explained;
pub(crate) use panic::{__rust_begin_short_backtrace, FirstPanic, Payload, drop_quietly};
pub(crate) use prefetch::prefetch;
pub(crate) use report::{abort, report};
