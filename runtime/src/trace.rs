//! The event log of a run: every enter, yield, wake and end of a coroutine, and the life of each
//! request.
//!
//! ```text
//!   Trace::new(capacity)           one log, for one context or several
//!     .with_source()               each event has the lines of the program that led to it
//!   ContextBuilder::trace(&t)      the context writes its events to `t`; a disabled trace costs one load
//!   t.recording()                  a copy of the log with names resolved: a Recording
//!     .check()                     checks that control transfers nest and that each request lives once
//!     .text() .html() .perfetto()  renders it; .write(path) writes one rendering to a file
//! ```
//!
//! Memory is bounded: a ring keeps the most recent events. Text and page show the events' numbers,
//! so that two identical runs give identical pictures. Their times are in the JSON for Perfetto and
//! in [`Record::time`]; under a [virtual clock](crate::VirtualClock) these too are the same in each
//! run.
//!
//! Control transfers nest on each thread like brackets: *enter* opens, *yield* and *end* close, and
//! a [`Span`] opens and closes. [`Replay`] therefore reconstructs the stack at any event from the
//! log alone.

mod event;
mod log;
mod render;
mod replay;
mod source;

pub use event::{CoroutineIndex, CoroutineInfo, Event, Record, Recording, RequestState, Span, WaitKind, Wake};
pub(crate) use log::Id;
pub use log::{SpanGuard, Trace, Tracer};
pub use render::{Format, TextOptions};
pub use replay::{Frame, Replay, Violation};
pub use source::SourceLine;
pub(crate) use source::addresses;
