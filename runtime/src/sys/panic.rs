//! Panics in code of the user that must not prevent the steps behind it.

use std::any::Any;
use std::hint::black_box;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The payload of a panic.
pub(crate) type Payload = Box<dyn Any + Send>;

/// Calls `f`. The name makes the backtrace of a panic in `f` end with `f`: std omits the frames
/// between this marker and the thread's own stack unless `RUST_BACKTRACE=full`.
#[inline(never)]
pub(crate) fn __rust_begin_short_backtrace<R>(f: impl FnOnce() -> R) -> R {
    let result = f();
    // Not a tail call, which would leave no frame.
    black_box(());
    result
}

/// The first panic of several steps, each of which runs although an earlier one panicked.
#[derive(Default)]
pub(crate) struct FirstPanic(Option<Payload>);

impl FirstPanic {
    /// Runs a step. The payload of a panic is kept if it is the first, else dropped.
    pub(crate) fn catch(&mut self, step: impl FnOnce()) {
        match catch_unwind(AssertUnwindSafe(step)) {
            Err(payload) if self.0.is_none() => self.0 = Some(payload),
            Err(payload) => drop_quietly(payload),
            Ok(()) => {}
        }
    }

    /// Returns the payload of the first panic.
    pub(crate) fn into_payload(self) -> Option<Payload> {
        self.0
    }
}

/// Drops the payload of a panic that is not reported. If the drop panics, the new payload is
/// leaked.
pub(crate) fn drop_quietly(payload: Payload) {
    mem::forget(catch_unwind(AssertUnwindSafe(|| drop(payload))));
}
