//! The engine as an event source: the driver passes on the loop's calls.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coralio_runtime::{EventSource, HomeRef, HomeToken, LoopToken};

use super::Engine;
use super::guards::{Guards, Notifier};
use super::stats::add;
use crate::backend::Backend;

/// A plug delays requests for fewer loop iterations than this.
const MAX_PLUGGED_ROUNDS: u32 = 16;

impl<B: Backend, G: Guards> EventSource for Engine<B, G> {
    fn dispatch(&self, token: LoopToken<'_>) -> bool {
        if !self.owner.is(|context| token.is_of(context)) {
            return false;
        }
        self.immediate_submits.store(0, Ordering::Relaxed);
        self.backend.before_dispatch();
        self.reap_from(token.at_home())
    }

    fn flush(&self, token: LoopToken<'_>, all: bool) -> bool {
        if !self.owner.is(|context| token.is_of(context)) {
            return false;
        }
        let here = token.at_home();
        // A thread that reaps off home has woken the home thread, which submits pending requests
        // in its own iteration.
        if B::SUBMITS_AT_HOME && here.is_none() {
            return false;
        }
        // Before a sleep plugged requests are submitted too: nothing else would submit them (rule
        // E2). Nor may a loop that never sleeps delay them forever.
        let plugged = self.plug_depth.load(Ordering::Relaxed) > 0;
        let plugged_rounds = self.plugged_rounds.load(Ordering::Relaxed) + 1;
        if plugged && !all && plugged_rounds < MAX_PLUGGED_ROUNDS {
            self.plugged_rounds.store(plugged_rounds, Ordering::Relaxed);
            return false;
        }
        self.plugged_rounds.store(0, Ordering::Relaxed);
        !HomeRef::in_child() && self.submit_from(here)
    }

    fn is_ready(&self, token: HomeToken<'_>) -> bool {
        // SAFETY: only checks for a completion, which needs no lock.
        self.owner.is(|context| token.is_of(context))
            && (unsafe { self.backend.peek_completion() }.is_some() || self.can_submit())
    }

    fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0 && !self.can_submit()
    }

    fn describe(&self) -> String {
        self.state()
    }

    fn sleep(&self, token: HomeToken<'_>, other: BorrowedFd<'_>, timeout: Option<Duration>) -> Option<io::Result<()>> {
        if !self.owner.is(|context| token.is_of(context)) {
            return None;
        }
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let waits = in_flight > 0 && G::NOTIFIER == Notifier::Wakes;
        let pending = || self.owner.acquire().map_or(0, |lock| self.pending.len(&lock));
        let slept = self.backend.sleep_idle(in_flight, pending, waits, other, timeout);
        if slept.is_some() || !waits {
            return slept;
        }
        add(&self.counters.sleeps, 1);
        // SAFETY: this is the loop of the context that the engine is with, on its home thread. Only
        // that thread sleeps and, if the backend requires it, submits.
        Some(unsafe { self.backend.wait(1, Some(other), timeout) })
    }

    fn close(&self, token: HomeToken<'_>) {
        if self.owner.is(|context| token.is_of(context)) {
            self.owner.at_home(|here| self.finish_in_place(here));
        }
    }
}
