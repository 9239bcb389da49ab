//! The `tracing` span of a coroutine: entered and left with it at each switch, on the enterer's side,
//! so that the spans of a thread nest as its enters do (rule S17).
//!
//! A subscriber is foreign code. It is called outside any coroutine: the stack that runs it is the
//! enterer's, which must not be suspended in the name of the coroutine.

use tracing::Span;
use tracing::span::EnteredSpan;

use crate::coroutine::{Attributes, ControlBlock};
use crate::scheduler::Scheduler;

/// Creates the span of a new coroutine, within the current one.
pub(super) fn create(attributes: &Attributes) -> Span {
    tracing::info_span!("coroutine", name = attributes.name.as_deref(), created_at = %attributes.created_at)
}

impl Scheduler {
    /// Enters the span of `block`, which is about to run.
    pub(super) fn enter_span(&self, block: &'static ControlBlock) -> EnteredSpan {
        self.outside(|| self.local(block).span.replace(Span::none()).entered())
    }

    /// Leaves the span of `block`, which has yielded or ended; the end closes it.
    pub(super) fn leave_span(&self, block: &'static ControlBlock, entered: EnteredSpan, has_ended: bool) {
        self.outside(|| {
            let span = entered.exit();
            if !has_ended {
                self.local(block).span.set(span);
            }
        });
    }

    fn outside<R>(&self, f: impl FnOnce() -> R) -> R {
        let running = self.running.take();
        let result = f();
        self.running.set(running);
        result
    }
}
