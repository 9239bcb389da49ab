//! Moving engines, with their pending and in-flight requests, and files between contexts (rule
//! E12).
//!
//! ```text
//!   A's thread                         anywhere           B's thread
//!   ----------                         --------           ----------
//!   'X' reads, and waits
//!   engine.detach()  ---------------->  Detached  ----->  detached.attach()
//!   A's loop sleeps                                        B's loop submits, reaps
//!   'X' is woken, at home  <------------------------------ stores the result, wakes A's loop
//! ```
//!
//! The requests move; their waiting coroutines and the buffers do not. So moving needs no waiting,
//! and nothing is lost: B submits the pending requests, and reaps those in flight. *Lent to the
//! kernel* still holds: a call does not return before its request is done, wherever that is reaped.
//! This covers io_uring too, whose requests die with the thread that submitted them: A does not end
//! before its coroutines' requests are done, and B does not end before all requests of its engine
//! are ([`Source::close`](coralio_runtime::Source::close)).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coralio_runtime::{AioContext, AtHome, Source, can_suspend, yield_now};

use crate::any::AnyEngine;
use crate::auto::Auto;
use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::policy::{Current, Policy};
use crate::request::Slot;

/// An engine in transit between two contexts.
///
/// Dropping it instead of attaching it blocks the thread until all its requests are done, because
/// the kernel still uses their memory.
#[must_use = "dropping it blocks the thread until its requests have completed"]
pub struct Detached<K: Kernel, P: Policy = Current> {
    /// `None` once attached.
    engine: Option<Arc<Engine<K, P>>>,
}

/// Error of attaching an engine; hands the engine back.
pub struct Refused<D> {
    /// The engine that could not be attached.
    pub detached: D,
    /// The cause.
    pub error: io::Error,
}

impl<K: Kernel, P: Policy> Engine<K, P> {
    /// Takes the engine from this thread's context, with all its requests. Coroutines waiting for
    /// these keep waiting, and are woken on their home thread once the engine is
    /// [attached](Detached::attach) elsewhere and their requests are reaped. The context may get
    /// another engine; calls on this one from its coroutines fail with `ENOTCONN`.
    ///
    /// # Errors
    ///
    /// `NotConnected`: the engine is not with this thread's context. `WouldBlock`: the caller runs
    /// in a nested poll, on top of a completion of this engine; call it from a coroutine or bottom
    /// half that does not.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn detach(self: &Arc<Self>) -> io::Result<Detached<K, P>> {
        if self.context.is_busy() && self.context.at_home(|_| ()).is_some() && can_suspend() {
            // Most likely a completion woke the caller. After the yield, the loop resumes it
            // outside the reap.
            yield_now();
        }
        let Some(context) = self.context.get().filter(|context| context.is_home()) else {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "cannot detach the engine: it is not attached to this thread's context; detach it on the thread where \
                 it was last attached",
            ));
        };
        if self.context.is_busy() {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "cannot detach the engine: the caller runs in a nested poll inside one of its completions; detach it \
                 outside the nested poll",
            ));
        }
        let held = self.context.acquire();
        // First: a context gives up only an engine that has left.
        self.context.leave(&held);
        context.detach()?;
        // Wakes threads waiting for the engine's requests, so that they notice that it has left.
        context.notify();
        Ok(Detached { engine: Some(Arc::clone(self)) })
    }

    /// Processes the cancellations that coroutines of other contexts have posted. Returns whether
    /// any of the requests was pending.
    #[cold]
    pub(crate) fn read_mail(&self, here: Option<AtHome<'_>>) -> bool {
        // A cancelled coroutine may run at once. The rest of the mail, and the caller, rely on the engine's place.
        let _busy = here.map(|_| self.context.busy());
        let mut progress = false;
        // One by one: a panic of that coroutine leaves the rest of the mail.
        while let Some(key) = self.context.mail.take() {
            let taken_back = self.cancel_under(&self.context.acquire_from(here), key);
            if taken_back {
                self.finish(here, key, -i64::from(libc::ECANCELED));
            }
            progress |= taken_back;
        }
        progress
    }

    /// Ends the request of an unwinding stack: removes it if it is pending; otherwise cancels it if
    /// the kernel can, and waits for it (rules C9, E13).
    #[cold]
    pub(crate) fn abandon(&self, slot: &Slot) {
        if slot.result().is_some() {
            return;
        }
        let key = slot.key().to_bits();
        if !self.is_at_home() {
            self.cancel_from_elsewhere(key);
        } else if self.cancel_under(&self.context.acquire(), key) {
            return;
        }
        self.wait_in_place(slot);
    }

    /// As `wait_in_place`, on a thread whose context the engine has left. In transit this thread
    /// reaps, since no other would; otherwise the engine's new context reaps.
    #[cold]
    pub(crate) fn wait_abroad(&self, slot: &Slot) -> i64 {
        loop {
            if let Some(result) = slot.result() {
                return result;
            }
            let Some(held) = self.context.acquire_transit() else {
                self.context.wait_for_news(|| slot.result().is_some());
                continue;
            };
            if self.take_back(&held, slot.key().to_bits()) {
                return -i64::from(libc::ECANCELED);
            }
            if !self.reap() {
                self.sleep_in_place();
            }
        }
    }

    /// Completes all requests, blocking the thread.
    #[cold]
    pub(crate) fn finish_in_place(&self) {
        let held = self.context.acquire();
        while self.in_flight.load(Ordering::Relaxed) > 0 || self.pending.len(&held) > 0 {
            if !self.submit() && self.in_flight.load(Ordering::Relaxed) > 0 {
                self.sleep_in_place();
            }
        }
    }
}

impl<K: Kernel, P: Policy> Detached<K, P> {
    /// Attaches the engine to this thread's context, whose loop then submits and reaps its
    /// requests.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`: the context has an engine. The error hands this one back.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// Never enters or yields. If a stack waiting for one of the engine's requests is being
    /// unwound, this blocks the thread until a request is done.
    pub fn attach(mut self) -> Result<Arc<Engine<K, P>>, Refused<Self>> {
        let context =
            AioContext::current().expect("attaching an engine outside a context: attach it inside `run(|| ..)`");
        let engine = self.engine.take().expect("a detached engine is attached once");
        let held = engine.context.acquire();
        if let Err(error) = context.attach(Arc::clone(&engine) as Arc<dyn Source>) {
            drop(held);
            return Err(Refused { detached: Detached { engine: Some(engine) }, error });
        }
        engine.context.enter(&held, &context);
        drop(held);
        Ok(engine)
    }
}

impl<K: Kernel, P: Policy> Drop for Detached<K, P> {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.finish_in_place();
        }
    }
}

impl<K: Kernel, P: Policy> fmt::Debug for Detached<K, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.engine {
            Some(engine) => write!(f, "Detached({})", engine.state()),
            None => f.write_str("Detached"),
        }
    }
}

/// Takes the engine from this thread's context, with all its requests, to be attached to another
/// thread's context: see [`Engine::detach`].
///
/// # Errors
///
/// `NotFound`: the context has no engine. `Unsupported`: the engine was made by
/// [`KernelChoice::Auto`](crate::KernelChoice::Auto), or is simulated. `WouldBlock`: as
/// [`Engine::detach`].
///
/// # Panics
///
/// Outside a context.
///
/// # Control
///
/// May yield.
pub fn detach() -> io::Result<DetachedEngine> {
    let context = AioContext::current().expect("detaching an engine outside a context: detach it inside `run(|| ..)`");
    if context.source().is_none() {
        let why = "cannot detach the engine: this context has none; it gets one with its first file, or from \
             Runner::run";
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    if Auto::of_this_context().is_some() {
        let why = "cannot detach the engines of KernelChoice::Auto; choose a backend with Runner::kernel, or detach \
             single files with File::detach";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    AnyEngine::of_this_context()?.detach().map(DetachedEngine)
}

/// A context's engine in transit to another context, with its backend's type erased. Dropping it
/// instead of attaching it blocks the thread until all its requests are done, because the kernel
/// still uses their memory.
#[must_use = "dropping it blocks the thread until its requests have completed"]
pub struct DetachedEngine(pub(crate) Box<dyn Carried>);

/// A type-erased [`Detached`].
pub(crate) trait Carried: Send + fmt::Debug {
    fn attach(self: Box<Self>) -> Result<(), Refused<DetachedEngine>>;
}

impl<K: Kernel, P: Policy> Carried for Detached<K, P> {
    fn attach(self: Box<Self>) -> Result<(), Refused<DetachedEngine>> {
        let attached = Detached::attach(*self);
        attached
            .map(drop)
            .map_err(|Refused { detached, error }| Refused { detached: DetachedEngine(Box::new(detached)), error })
    }
}

impl DetachedEngine {
    /// Attaches the engine to this thread's context: see [`Detached::attach`]. Call it before the
    /// context's first file, and inside [`AioContext::run`] rather than [`Runner`](crate::Runner),
    /// which creates an engine.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`: the context has an engine. The error hands this one back.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// As [`Detached::attach`].
    pub fn attach(self) -> Result<(), Refused<DetachedEngine>> {
        self.0.attach()
    }
}

impl fmt::Debug for DetachedEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<D> fmt::Debug for Refused<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<D> fmt::Display for Refused<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<D> std::error::Error for Refused<D> {}

impl<D> From<Refused<D>> for io::Error {
    /// Drops the engine that could not be attached.
    fn from(refused: Refused<D>) -> io::Error {
        refused.error
    }
}
