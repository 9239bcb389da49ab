//! What an engine tells the event log of its context, if there is one. If there is none, each place
//! costs one look.

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use coralio_runtime::trace::{Opened, RequestState, Span, Tracer};

use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::place::Held;
use crate::policy::Policy;

impl<K: Kernel, P: Policy> Engine<K, P> {
    #[inline(always)]
    fn tracer(&self) -> Option<&Tracer> {
        if self.traced { self.context.tracer() } else { None }
    }

    /// A request of this key is in another state.
    #[inline]
    #[track_caller]
    pub(crate) fn tell(&self, key: u64, state: RequestState) {
        if let Some(tracer) = self.tracer() {
            tracer.request(key, state);
        }
    }

    /// As [`tell`](Self::tell), of an entry.
    #[inline]
    #[track_caller]
    pub(crate) fn tell_of(&self, entry: &K::Entry, state: RequestState) {
        if let Some(tracer) = self.tracer() {
            tracer.request(self.kernel.key(entry), state);
        }
    }

    /// Has the kernel take what it will of `entries`, and tells which.
    ///
    /// # Safety
    ///
    /// As [`Kernel::submit`].
    #[inline]
    pub(crate) unsafe fn submit_and_tell(&self, entries: &mut [K::Entry]) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        let submitted = unsafe { self.kernel.submit(entries) };
        if let (true, Ok(taken)) = (self.traced, &submitted) {
            entries.iter().take(*taken).for_each(|entry| self.tell_of(entry, RequestState::InFlight));
        }
        submitted
    }

    /// How the counters stand.
    #[inline]
    #[track_caller]
    pub(crate) fn tell_counters(&self, guard: &Held<'_>) {
        if let Some(tracer) = self.tracer() {
            let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
            tracer.counters(count(&self.in_flight), self.pending.len(guard) as u32, count(&self.plug_depth));
        }
    }

    /// A rule was broken.
    #[track_caller]
    pub(crate) fn tell_violation(&self, what: &str) {
        if let Some(tracer) = self.tracer() {
            tracer.violation(what);
        }
    }

    /// A piece of work begins, and is over when the value is dropped.
    #[inline]
    #[track_caller]
    pub(crate) fn tell_span(&self, span: Span) -> Option<Opened<'_>> {
        self.tracer().map(|tracer| tracer.span(span))
    }
}
