//! The engine as an event source: the driver passes on the loop's calls.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coralio_runtime::{AtHome, HomeToken, LoopToken, Source};

use super::Engine;
use super::policy::{Notifier, Policy};
use super::stats::add;
use crate::kernel::Kernel;

/// A plug delays requests for fewer loop iterations than this.
const MOST_HELD: u32 = 16;

impl<K: Kernel, P: Policy> Source for Engine<K, P> {
    fn dispatch(&self, token: LoopToken<'_>) -> bool {
        if !self.owner.is_polled_by(token) {
            return false;
        }
        self.eager.store(0, Ordering::Relaxed);
        self.kernel.before_dispatch();
        self.reap_from(token.at_home())
    }

    fn flush(&self, token: LoopToken<'_>, all: bool) -> bool {
        if !self.owner.is_polled_by(token) {
            return false;
        }
        let here = token.at_home();
        // A thread that reaps off home has woken the home thread, which submits pending requests
        // in its own iteration.
        if K::SUBMITS_AT_HOME && here.is_none() {
            return false;
        }
        // Before a sleep plugged requests are submitted too: nothing else would submit them (rule
        // E2). Nor may a loop that never sleeps delay them forever.
        let plugged = self.plug_depth.load(Ordering::Relaxed) > 0;
        let held = self.held.load(Ordering::Relaxed) + 1;
        if plugged && !all && held < MOST_HELD {
            self.held.store(held, Ordering::Relaxed);
            return false;
        }
        self.held.store(0, Ordering::Relaxed);
        !AtHome::in_child() && self.submit_from(here)
    }

    fn is_ready(&self, _token: HomeToken<'_>) -> bool {
        // SAFETY: only checks for a completion, which needs no lock.
        unsafe { self.kernel.peek() }.is_some() || self.can_submit()
    }

    fn is_idle(&self) -> bool {
        Engine::is_idle(self)
    }

    fn describe(&self) -> String {
        self.state()
    }

    fn sleep(&self, token: HomeToken<'_>, other: BorrowedFd<'_>, timeout: Option<Duration>) -> Option<io::Result<()>> {
        if !self.owner.is_home_of(token) {
            return None;
        }
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let waits = in_flight > 0 && P::NOTIFIER == Notifier::Wakes;
        let pending = || self.owner.acquire().map_or(0, |lock| self.pending.len(&lock));
        let slept = self.kernel.sleep_idle(in_flight, pending, waits, other, timeout);
        if slept.is_some() || !waits {
            return slept;
        }
        add(&self.counters.sleeps, 1);
        // SAFETY: this is the loop of the context that the engine is with, on its home thread. Only
        // that thread sleeps and, if the backend requires it, submits.
        Some(unsafe { self.kernel.wait(1, Some(other), timeout) })
    }

    fn close(&self, token: HomeToken<'_>) {
        if self.owner.is_home_of(token) {
            self.owner.at_home(|here| self.finish_in_place(here));
        }
    }
}
