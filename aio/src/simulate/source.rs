//! The event source of a simulated context: sleeps in virtual time.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use coralio_runtime::{AioContext, AtHome, HomeToken, LoopToken, Source};

use crate::any::DynEngine;
use crate::detach::Carried;
use crate::engine::{Detour, Engine, Stats};
use crate::kernel::sim::{SLACK, SimKernel};
use crate::perform::{Attempt, Performs};
use crate::policy::{OnShort, Policy};
use crate::queue::Plug;
use crate::request::Slot;

/// The engine that the loop drives and files use: on the simulated backend, with any policy.
pub(crate) struct Simulated {
    engine: Arc<dyn DynEngine>,
    source: Arc<dyn Source>,
    context: AioContext,
    pub(crate) kernel: SimKernel,
}

/// Attaches an engine with the policy `P` to this thread's context.
pub(super) fn attach<P: Policy>(context: &AioContext, kernel: &SimKernel, depth: u32) -> io::Result<Arc<Simulated>> {
    let engine = Engine::<_, P>::new(kernel.clone(), depth, true)?;
    let source = Arc::clone(&engine) as Arc<dyn Source>;
    let simulated = Arc::new(Simulated { engine, source, context: context.clone(), kernel: kernel.clone() });
    context.attach(Arc::clone(&simulated) as Arc<dyn Source>)?;
    Ok(simulated)
}

impl Simulated {
    #[cold]
    fn fail_as_endless(&self) -> ! {
        let message = format!(
            "the run does not end: more requests, refused submits and sleeps than Simulation::most_steps allows; does \
             something retry for ever? raise most_steps if the run is meant to be this long\n{}",
            self.context.dump()
        );
        // Also recorded, because the panic may end up in a join handle.
        self.kernel.fail(message.clone());
        panic!("{message}");
    }
}

impl Performs for Simulated {
    unsafe fn begin(&self, here: AtHome<'_>, attempt: &Attempt) -> Option<&Slot> {
        // A coroutine whose requests all complete within submit never returns to the loop, which
        // would detect this.
        if !thread::panicking() && self.kernel.is_overrun(SLACK) {
            self.fail_as_endless();
        }
        // SAFETY: promised by the caller.
        unsafe { self.engine.begin(here, attempt) }
    }

    fn end(&self, here: AtHome<'_>, slot: &Slot) {
        self.engine.end(here, slot);
    }

    fn refusal(&self, here: Option<AtHome<'_>>) -> i64 {
        self.engine.refusal(here)
    }

    fn cancel(&self, slot: &Slot) -> Option<i64> {
        self.engine.cancel(slot)
    }

    fn wait_in_place(&self, slot: &Slot) -> i64 {
        self.engine.wait_in_place(slot)
    }

    fn abandon(&self, slot: &Slot) {
        self.engine.abandon(slot);
    }
}

impl DynEngine for Simulated {
    fn stats(&self) -> Stats {
        self.engine.stats()
    }

    fn plug(self: Arc<Self>) -> Plug {
        Arc::clone(&self.engine).plug()
    }

    fn on_short(&self) -> OnShort {
        self.engine.on_short()
    }

    fn is_here(&self) -> bool {
        self.engine.is_here()
    }

    fn register(&self, fd: BorrowedFd<'_>) -> RawFd {
        self.engine.register(fd)
    }

    unsafe fn unregister(&self, number: RawFd) {
        // SAFETY: promised by the caller.
        unsafe { self.engine.unregister(number) };
    }

    fn set_submit_limit(&self, limit: Duration) {
        self.engine.set_submit_limit(limit);
    }

    fn count_detour(&self, detour: Detour) {
        self.engine.count_detour(detour);
    }

    fn detach_any(self: Arc<Self>) -> io::Result<Box<dyn Carried>> {
        let why = "cannot detach a simulated engine: it belongs to its run; detach engines on real backends";
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }
}

impl Source for Simulated {
    /// # Panics
    ///
    /// If the run exceeds its maximum number of steps.
    fn dispatch(&self, token: LoopToken<'_>) -> bool {
        if self.kernel.is_overrun(0) {
            self.fail_as_endless();
        }
        self.source.dispatch(token)
    }

    fn flush(&self, token: LoopToken<'_>, all: bool) -> bool {
        self.source.flush(token, all)
    }

    fn is_ready(&self, token: HomeToken<'_>) -> bool {
        self.source.is_ready(token)
    }

    fn is_idle(&self) -> bool {
        self.source.is_idle()
    }

    fn describe(&self) -> String {
        self.source.describe()
    }

    /// # Panics
    ///
    /// If no completion would end the sleep; if requests are pending that nothing would submit; if
    /// nothing could ever end the sleep. A run cannot hang in any other way.
    fn sleep(&self, token: HomeToken<'_>, other: BorrowedFd<'_>, timeout: Option<Duration>) -> Option<io::Result<()>> {
        let Stats { in_flight, pending, .. } = self.stats();
        if in_flight > 0 && !self.kernel.is_idle() {
            let slept = self.source.sleep(token, other, timeout);
            assert!(slept.is_some(), "the loop sleeps, but no completion would wake it ({})", self.describe());
            return slept;
        }
        assert!(
            pending == 0 || in_flight > 0,
            "the loop sleeps with {pending} requests pending and none in flight: they are never submitted ({})",
            self.describe()
        );
        if !self.kernel.sleep_idle(other, timeout) {
            panic!("deadlock: every coroutine waits, and no request is in flight\n{}", self.context.dump());
        }
        Some(Ok(()))
    }

    fn may_detach(&self, token: HomeToken<'_>) -> io::Result<()> {
        self.source.may_detach(token)
    }
}
