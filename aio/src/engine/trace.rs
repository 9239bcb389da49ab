//! Reports an engine's events to its context's event log. Without a log each call costs one check.

use std::sync::atomic::{AtomicU32, Ordering};

use coralio_runtime::trace::{RequestState, Span, SpanGuard, Tracer};

use super::Engine;
use super::guards::Guards;
use crate::backend::Backend;

impl<B: Backend, G: Guards> Engine<B, G> {
    #[inline(always)]
    fn tracer(&self) -> Option<&Tracer> {
        if self.traced { self.owner.get()?.tracer() } else { None }
    }

    /// Records that the request with this key has changed state.
    #[inline]
    #[track_caller]
    pub(crate) fn tell(&self, key: u64, state: RequestState) {
        if let Some(tracer) = self.tracer() {
            tracer.request(key, state);
        }
    }

    /// Records the counters.
    #[inline]
    #[track_caller]
    pub(crate) fn tell_counters(&self) {
        if let Some(tracer) = self.tracer() {
            let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
            tracer.counters(count(&self.in_flight), self.pending.len() as u32, count(&self.plug_depth));
        }
    }

    /// Records a violated rule.
    #[track_caller]
    pub(crate) fn tell_violation(&self, what: &str) {
        if let Some(tracer) = self.tracer() {
            tracer.violation(what);
        }
    }

    /// Opens a span that ends when the returned value is dropped.
    #[inline]
    #[track_caller]
    pub(crate) fn tell_span(&self, span: Span) -> Option<SpanGuard<'_>> {
        self.tracer().map(|tracer| tracer.span(span))
    }
}
