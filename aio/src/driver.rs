//! The I/O of one context: its engine, and the threads for requests that would block that engine.
//!
//! ```text
//!   BackendKind::Auto where io_uring is allowed
//!     all requests      ------------------->  engine: io_uring
//!
//!   BackendKind::Auto elsewhere
//!     direct or page-cached     ----------->  engine: native AIO, refuses blocking requests  --+
//!     known to block                                                                           | EAGAIN
//!         |                                                                                    |
//!         +-------------------------------->  fallback: threads, created when first needed  <--+
//! ```
//!
//! Under `Auto`, requests that do not wait for a device do not get this far: the calling thread performs
//! them in place.
//!
//! The loop sees both engines as one event source. It sleeps in the first; the fallback ends that
//! sleep through the context's notifier. io_uring needs no fallback, since its own workers perform
//! requests that would block its submit; nor do threads.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coralio_runtime::{AioContext, EventSource, Flush, HomeToken, LoopToken, SourceState};

use crate::backend::Backend;
use crate::backend::simulated::SimulatedBackend;
use crate::backend::thread_pool::ThreadPool;
use crate::engine::Engine;
use crate::engine::erased::ErasedEngine;
use crate::engine::guards::Guards;
use crate::engine::stats::add;
use crate::engine::transfer::{Request, submit_and_wait};

pub(crate) mod choice;
mod detach;
pub(crate) mod unblock;

pub use crate::engine::plug::Plug;
pub use crate::engine::stats::Stats;
pub use choice::{BackendKind, SelectedBackend};
pub use detach::{AttachError, DetachedEngine, detach};

/// Default queue depth: the maximum number of requests in flight.
///
/// Smaller than common device queues (`/sys/block/*/queue/nr_requests`): 128 for a loop device, 256
/// for virtio, 1023 for NVMe. A submit blocks while the device's queue is full. The margin leaves
/// room for other users of a shared device; batches of 16 already cost as little per request as
/// larger ones do.
pub const DEFAULT_QUEUE_DEPTH: u32 = 64;

/// See the module documentation.
pub(crate) struct Driver {
    /// The engine that files use.
    pub(crate) engine: Arc<dyn ErasedEngine>,
    /// `None` if no request would block `engine` in submit.
    pub(crate) fallback: Option<Fallback>,
    /// `None` if the backend is simulated, or a test's own.
    pub(crate) chosen: Option<SelectedBackend>,
    /// The backend of `engine`, if it is simulated.
    pub(crate) simulated: Option<SimulatedBackend>,
}

/// The engine of the thread pool that performs requests on which a native AIO engine would block.
pub(crate) struct Fallback {
    /// Created when first needed.
    engine: OnceLock<Arc<Engine<ThreadPool>>>,
    depth: u32,
    /// Requests that the primary engine refused because they would have blocked.
    refusals: AtomicU64,
    completed_refusals: AtomicU64,
}

impl Fallback {
    fn new(depth: u32) -> Fallback {
        Fallback { engine: OnceLock::new(), depth, refusals: AtomicU64::new(0), completed_refusals: AtomicU64::new(0) }
    }

    /// Creates the engine. Called on the home thread of the driver's context.
    fn create(&self) -> io::Result<Arc<Engine<ThreadPool>>> {
        let engine = Engine::new(ThreadPool::new(self.depth)?, self.depth, false)?;
        engine.backend().notify(AioContext::current().expect("the caller checked that this is its context's thread"));
        Ok(engine)
    }

    /// Counts a request that the primary engine has refused, by a completion or at submit, and that
    /// is made again.
    pub(crate) fn count_refusal(&self, by_completion: bool) {
        add(&self.refusals, 1);
        add(&self.completed_refusals, u64::from(by_completion));
    }
}

impl Driver {
    /// Attaches a driver to this thread's context.
    pub(crate) fn attach(choice: BackendKind, depth: u32) -> io::Result<Arc<Driver>> {
        let (engine, chosen) = choice::named(choice, depth)?;
        let would_block = chosen.is_auto() && chosen.backend() == BackendKind::Aio;
        let fallback = would_block.then(|| Fallback::new(depth));
        Driver { engine, fallback, chosen: Some(chosen), simulated: None }.attach_to_this_context()
    }

    /// Attaches a driver with an engine of a test's own, or a simulated one, to this thread's
    /// context.
    pub(crate) fn attach_engine(
        engine: Arc<dyn ErasedEngine>,
        simulated: Option<SimulatedBackend>,
    ) -> io::Result<Arc<Driver>> {
        Driver { engine, fallback: None, chosen: None, simulated }.attach_to_this_context()
    }

    fn attach_to_this_context(self) -> io::Result<Arc<Driver>> {
        let context =
            AioContext::current().expect("attaching an engine outside a context: call it inside `run(|| ..)`");
        let driver = Arc::new(self);
        context.attach(Arc::clone(&driver) as Arc<dyn EventSource>)?;
        Ok(driver)
    }

    /// Returns the driver of this thread's context; creates one if the context has no event source.
    pub(crate) fn of_this_context() -> io::Result<Arc<Driver>> {
        let context =
            AioContext::current().expect("opening a file outside a context: wrap the program in `run(|| ..)`");
        let Some(source) = context.source() else { return Driver::attach(BackendKind::Auto, DEFAULT_QUEUE_DEPTH) };
        source.into_any().downcast().map_err(|_| {
            let why = "this context's event source is not an I/O engine of this crate: it does not support files";
            io::Error::new(io::ErrorKind::Unsupported, why)
        })
    }

    /// Returns the driver of this thread's context, if it has one.
    pub(crate) fn current() -> Option<Arc<Driver>> {
        AioContext::current()?.source()?.into_any().downcast().ok()
    }

    /// Returns the backend of this thread's context, if it is simulated.
    pub(crate) fn simulated() -> Option<SimulatedBackend> {
        Driver::current()?.simulated.clone()
    }

    /// Returns the combined statistics of the engines. A request that the primary engine refused
    /// counts once.
    pub(crate) fn stats(&self) -> Stats {
        let mut all = self.engine.stats();
        if let Some(fallback) = &self.fallback {
            let offloaded = self.on_threads().map(Engine::stats).unwrap_or_default();
            all.add(offloaded);
            all.requests -= fallback.refusals.load(Ordering::Relaxed);
            all.completions -= fallback.completed_refusals.load(Ordering::Relaxed);
            all.offloaded = offloaded.requests;
        }
        all
    }

    /// Performs one operation on a thread. Returns `None` if there are no resources for that.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    pub(crate) unsafe fn offload(&self, attempt: &Request) -> Option<i64> {
        if !self.engine.owner().is_here() {
            return Some(-i64::from(libc::ENOTCONN));
        }
        let fallback = self.fallback.as_ref()?;
        if fallback.engine.get().is_none() {
            // Only the home thread gets here, so the cell is still empty.
            let _ = fallback.engine.set(fallback.create().ok()?);
        }
        // SAFETY: promised by the caller.
        self.on_threads().map(|engine| unsafe { submit_and_wait(engine, attempt) })
    }

    fn on_threads(&self) -> Option<&Engine<ThreadPool>> {
        self.fallback.as_ref()?.engine.get().map(|engine| &**engine)
    }

    fn engines(&self) -> impl Iterator<Item = &dyn ErasedEngine> {
        let on_threads = self.on_threads().map(|engine| engine as &dyn ErasedEngine);
        std::iter::once(&*self.engine).chain(on_threads)
    }

    /// Returns whether the user left the choice of backends to this crate.
    pub(crate) fn is_auto(&self) -> bool {
        self.chosen.as_ref().is_some_and(SelectedBackend::is_auto)
    }

    /// Returns how the backend was chosen, if `engine` is this driver's; `None` if it is simulated, or
    /// a test's own.
    pub(crate) fn chosen_for(&self, engine: &Arc<dyn ErasedEngine>) -> Option<&SelectedBackend> {
        self.chosen.as_ref().filter(|_| Arc::ptr_eq(&self.engine, engine))
    }
}

impl<B: Backend, G: Guards> Engine<B, G> {
    /// Attaches an engine on `backend` to this thread's context, with at most `depth` requests in
    /// flight.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: `depth` is 0 or exceeds the backend's capacity. `AlreadyExists`: the context
    /// has an engine.
    ///
    /// # Panics
    ///
    /// Outside a context.
    pub fn attach(backend: B, depth: u32) -> io::Result<Arc<Engine<B, G>>> {
        let engine = Engine::new(backend, depth, true)?;
        Driver::attach_engine(Arc::clone(&engine) as Arc<dyn ErasedEngine>, None)?;
        Ok(engine)
    }
}

impl EventSource for Driver {
    fn dispatch(&self, token: LoopToken<'_>) -> bool {
        let progress = self.engine.dispatch(token);
        self.on_threads().is_some_and(|fallback| fallback.dispatch(token)) || progress
    }

    fn flush(&self, token: LoopToken<'_>, when: Flush) -> bool {
        let progress = self.engine.flush(token, when);
        self.on_threads().is_some_and(|fallback| fallback.flush(token, when)) || progress
    }

    fn state(&self) -> SourceState {
        let fallback = self.on_threads().map_or(SourceState::Idle, |fallback| fallback.state());
        self.engine.state().min(fallback)
    }

    fn describe(&self) -> String {
        let engine = self.engine.describe();
        let fallback = self.on_threads().map(|fallback| format!("; on threads: {}", fallback.describe()));
        engine + &fallback.unwrap_or_default()
    }

    fn sleep(
        &self,
        token: HomeToken<'_>,
        other: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> Option<io::Result<bool>> {
        // A completion of the fallback makes `other` readable.
        self.engine.sleep(token, other, timeout)
    }

    fn leave(&self, token: HomeToken<'_>) -> io::Result<()> {
        let _ = token;
        self.leave_context()
    }

    fn close(&self, token: HomeToken<'_>) {
        self.engines().for_each(|engine| engine.close(token));
    }
}

/// Returns the statistics of this context's engine. All zero before its first file.
pub fn stats() -> Stats {
    Driver::current().map(|driver| driver.stats()).unwrap_or_default()
}

/// Returns the backend that this context uses, and why; `None` before its first file, and
/// outside a context. See also [`File::backend`](crate::File::backend).
///
/// ```
/// use coralio::RuntimeBuilder;
/// use coralio::driver::selected_backend;
///
/// // "io_uring", or "native AIO, with threads for requests that would block it: io_uring was
/// // refused: .."
/// RuntimeBuilder::new().run(|| println!("{}", selected_backend().unwrap()))?;
/// # std::io::Result::Ok(())
/// ```
pub fn selected_backend() -> Option<SelectedBackend> {
    Driver::current()?.chosen.clone()
}

/// Delays this context's requests until the plug is dropped, so that they share one system call.
///
/// # Errors
///
/// The error of creating the engine, if the context has none yet.
///
/// # Panics
///
/// Outside a context.
pub fn plug() -> io::Result<Plug> {
    let driver = Driver::of_this_context()?;
    Ok(Plug::new(Arc::clone(&driver.engine)))
}
