//! System calls as safe values, clocks, and messages on standard error.
//!
//! The lowest layer. It knows nothing of coroutines or contexts.

pub(crate) mod clock;
pub(crate) mod descriptors;
pub(crate) mod fork;
pub(crate) mod os_error;
pub(crate) mod panic;
pub(crate) mod report;
