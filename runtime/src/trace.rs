//! The event log of a run: who entered whom, who yielded, who woke whom and how, and what became of each request.
//!
//! ```text
//!   Trace::new(capacity)         one log, for one context or several
//!   ContextBuilder::trace(&t)    its events go there; without it, each place costs one look at a pointer
//!   t.recording()                what is there, with names: a Recording
//!     .check()                   do control transfers nest, does each request live once?
//!     .text() .html() .perfetto()  pictures of it; .write(path) puts one into a file
//! ```
//!
//! Memory is bounded: a ring that keeps the last events. There is no clock in it: events are numbered, so that the same run has
//! the same log.
//!
//! Control transfers nest on each thread like brackets: *enter* opens, *yield* and *end* close; a [`Span`] of the loop opens
//! and closes. So who is on the stack, at any event, can be told from the log alone: [`Replay`].

mod atomic {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering, fence};
}
mod event;
mod file;
mod html;
mod json;
mod log;
mod perfetto;
mod replay;
mod ring;
mod text;

pub use event::{Event, Lane, LaneInfo, Record, Recording, RequestState, Span, Waits, Wake};
pub use file::Format;
pub use log::{Opened, Trace, Tracer};
pub use replay::{Frame, Replay, Violation};
pub use text::TextOptions;
