//! Moving a context's engine to another context, once it is drained (rule E12).
//!
//! ```text
//!   A's thread                            anywhere               B's thread
//!   ----------                            --------               ----------
//!   detach(): runs the loop until
//!   no request is left  -------------->   DetachedEngine  --->   attach()
//!   files of A: NotConnected                                     new files use it
//! ```

use std::fmt;
use std::io;
use std::sync::Arc;

use coralio_runtime::{AioContext, EventSource, can_suspend, yield_now};

use super::Driver;

/// An engine between two contexts. It has no requests.
#[must_use = "dropping it closes the engine; attach it to another context"]
pub struct DetachedEngine(Arc<Driver>);

/// Error of attaching an engine; returns the engine.
pub struct AttachError {
    /// The engine that could not be attached.
    pub detached: DetachedEngine,
    /// The cause.
    pub error: io::Error,
}

/// Waits until the engine of this thread's context has no requests, and detaches it, to be attached
/// to another thread's context. The wait is in the manner of [`AioContext::poll_while`]: it runs
/// the loop, and includes requests made meanwhile.
///
/// Files of the context stay open, and report `NotConnected` until the engine is attached to the
/// context again; [`File::detach`](crate::File::detach) moves a file to the engine's new context.
///
/// ```
/// use coralio::driver::{DetachedEngine, detach};
/// use coralio::{File, context::AioContext};
///
/// # fn main() -> std::io::Result<()> {
/// let engine: DetachedEngine = coralio::run(detach)?;
/// AioContext::builder().run_coroutine(|_ctx| {
///     engine.attach().map_err(|failed| failed.error)?;
///     File::open("Cargo.toml")?.read_at(&mut [0; 4096], 0).map(drop)
/// })?
/// # }
/// ```
///
/// # Errors
///
/// `NotFound`: the context has no engine. `Unsupported`: the engine is simulated, or of another
/// crate. `WouldBlock`: the caller runs in a nested poll, on top of a completion of this engine;
/// call it from a coroutine or bottom half that does not. `NotConnected`: the engine was detached
/// by another coroutine during the wait. `ResourceBusy`: the context is ending, and coroutines that
/// are still to be unwound have requests.
///
/// # Panics
///
/// Outside a context. Propagates panics from callbacks that the loop runs.
///
/// # Control
///
/// May yield; may enter coroutines. Blocks the thread, not just the coroutine.
pub fn detach() -> io::Result<DetachedEngine> {
    let context = AioContext::current().expect("detaching an engine outside a context: detach it inside `run(|| ..)`");
    if context.source().is_none() {
        let why = "cannot detach the engine: this context has none; it gets one with its first file, or from \
             RuntimeBuilder::run";
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    let driver = Driver::of_this_context()?;
    driver.check_real()?;
    if driver.is_busy() && can_suspend() {
        // Most likely a completion woke the caller. After the yield, the loop resumes it outside
        // the reap.
        yield_now();
    }
    if driver.is_busy() {
        let why = "cannot detach the engine: the caller runs in a nested poll inside one of its completions; detach \
             it outside the nested poll";
        return Err(io::Error::new(io::ErrorKind::WouldBlock, why));
    }
    context.poll_while(|| driver.engine.owner().is_here() && !driver.is_drained() && !context.is_ending());
    if !driver.engine.owner().is_here() {
        let why = "cannot detach the engine: another coroutine has detached it meanwhile";
        return Err(io::Error::new(io::ErrorKind::NotConnected, why));
    }
    context.detach()?;
    Ok(DetachedEngine(driver))
}

impl Driver {
    fn is_busy(&self) -> bool {
        self.engines().any(|engine| engine.owner().is_busy())
    }

    fn is_drained(&self) -> bool {
        self.engines().all(|engine| engine.is_drained())
    }

    /// Fails for a simulated engine: without it, its run would use real files.
    fn check_real(&self) -> io::Result<()> {
        if self.simulated.is_none() {
            return Ok(());
        }
        let why = "cannot detach a simulated engine: it belongs to its run; detach engines on real backends";
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }

    /// Makes the engines leave their context.
    pub(super) fn leave_context(&self) -> io::Result<()> {
        self.check_real()?;
        if !self.engine.owner().is_here() || !self.is_drained() {
            let why = "cannot detach the I/O engine: it has requests that would never complete; coralio::driver::detach \
                 waits for them, unless the context is ending";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        self.move_to(None);
        Ok(())
    }

    fn move_to(&self, context: Option<&AioContext>) {
        self.engines().for_each(|engine| engine.owner().move_to(context));
        if let (Some(engine), Some(context)) = (self.on_threads(), context) {
            engine.backend().notify(context.clone());
        }
    }
}

impl DetachedEngine {
    /// Attaches the engine to this thread's context. Call it before the context's first file, and
    /// inside [`AioContext::run`] rather than [`RuntimeBuilder`](crate::RuntimeBuilder), which
    /// creates an engine.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`: the context has an engine. The error returns this one.
    ///
    /// # Panics
    ///
    /// Outside a context.
    pub fn attach(self) -> Result<(), AttachError> {
        let context =
            AioContext::current().expect("attaching an engine outside a context: attach it inside `run(|| ..)`");
        match context.attach(Arc::clone(&self.0) as Arc<dyn EventSource>) {
            Ok(()) => self.0.move_to(Some(&context)),
            Err(error) => return Err(AttachError { detached: self, error }),
        }
        Ok(())
    }
}

impl fmt::Debug for DetachedEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DetachedEngine({})", self.0.describe())
    }
}

impl fmt::Debug for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for AttachError {}

impl From<AttachError> for io::Error {
    /// Drops the engine that could not be attached.
    fn from(error: AttachError) -> io::Error {
        error.error
    }
}
