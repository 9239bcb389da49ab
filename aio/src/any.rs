//! A context's engine, on a backend chosen at run time (rule E16).
//!
//! The engine is generic, so its submit and reap paths are compiled separately for each backend.
//! Files see a trait object; a request costs two virtual calls, both well predicted.

#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use coralio_runtime::AioContext;

use crate::DEFAULT_DEPTH;
use crate::auto::{Auto, Chosen};
use crate::detach::Carried;
use crate::engine::{Detour, Engine, Stats, add};
use crate::kernel::Kernel;
use crate::kernel::io_uring::IoUring;
use crate::kernel::linux_aio::LinuxAio;
use crate::kernel::threads::Threads;
use crate::perform::{Attempt, Performs, perform};
use crate::policy::{OnShort, Policy};
use crate::queue::Plug;
use crate::simulate::Simulated;

/// The kernel interface that a context uses for I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelChoice {
    /// The most suitable interface that the machine allows: native AIO, plus a thread for each
    /// request that would block the loop in submit; if native AIO is unavailable, io_uring;
    /// otherwise threads. [`chosen_kernel`](crate::chosen_kernel) returns the choice and the
    /// reason.
    #[default]
    Auto,
    /// Native AIO (`io_submit`) alone: work that it does within submit blocks the loop.
    Aio,
    /// io_uring.
    Uring,
    /// Plain system calls on a thread pool.
    Threads,
}

/// The environment variable that [`KernelChoice::from_env`] reads.
const VARIABLE: &str = "CORALIO_KERNEL";

impl KernelChoice {
    /// Returns the choice made by the environment, for programs that offer this to their users:
    /// `CORALIO_KERNEL` is `auto`, `aio`, `uring` or `threads`. Returns `Auto` if the variable is
    /// empty or not set. The library itself does not read the variable.
    ///
    /// ```no_run
    /// use coralio_aio::{KernelChoice, Runner};
    ///
    /// Runner::new().kernel(KernelChoice::from_env()?).run(|| println!("hello"))?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidInput`: the variable has another value.
    pub fn from_env() -> io::Result<KernelChoice> {
        match std::env::var_os(VARIABLE) {
            Some(text) if !text.is_empty() => text.to_string_lossy().parse().map_err(|error: io::Error| {
                io::Error::new(
                    error.kind(),
                    format!("invalid environment variable {VARIABLE}: {error}; set one of these, or unset it"),
                )
            }),
            _ => Ok(KernelChoice::Auto),
        }
    }
}

impl FromStr for KernelChoice {
    type Err = io::Error;

    /// Parses `auto`, `aio`, `uring` or `threads`.
    fn from_str(text: &str) -> io::Result<KernelChoice> {
        match text {
            "auto" => Ok(KernelChoice::Auto),
            "aio" => Ok(KernelChoice::Aio),
            "uring" => Ok(KernelChoice::Uring),
            "threads" => Ok(KernelChoice::Threads),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{text:?} is not one of auto, aio, uring, threads"),
            )),
        }
    }
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            KernelChoice::Auto => "auto",
            KernelChoice::Aio => "aio",
            KernelChoice::Uring => "uring",
            KernelChoice::Threads => "threads",
        })
    }
}

/// A context's engine, with its backend's type erased.
#[derive(Clone)]
pub(crate) struct AnyEngine {
    engine: Arc<dyn DynEngine>,
    /// `None` if the backend or policy is a test's own, or simulated.
    pub(crate) kernel: Option<KernelChoice>,
}

/// The operations that files need from an engine of unknown type.
pub(crate) trait DynEngine: Performs + Send + Sync {
    fn stats(&self) -> Stats;
    fn plug(self: Arc<Self>) -> Plug;
    fn on_short(&self) -> OnShort;
    /// Whether the calling thread is the home thread of the engine's context.
    fn is_here(&self) -> bool;
    fn register(&self, fd: BorrowedFd<'_>) -> RawFd;
    /// # Safety
    ///
    /// As [`Kernel::unregister`].
    unsafe fn unregister(&self, number: RawFd);
    fn set_submit_limit(&self, limit: Duration);
    fn count_detour(&self, detour: Detour);
    fn detach_any(self: Arc<Self>) -> io::Result<Box<dyn Carried>>;
}

impl<K: Kernel, P: Policy> DynEngine for Engine<K, P> {
    fn stats(&self) -> Stats {
        Engine::stats(self)
    }

    fn plug(self: Arc<Self>) -> Plug {
        Engine::plug(&self)
    }

    fn on_short(&self) -> OnShort {
        P::ON_SHORT
    }

    fn is_here(&self) -> bool {
        self.is_at_home()
    }

    fn register(&self, fd: BorrowedFd<'_>) -> RawFd {
        // SAFETY: the number is used only in requests of the file that registers, until
        // `Registered` unregisters it.
        unsafe { self.kernel.register(fd) }
    }

    unsafe fn unregister(&self, number: RawFd) {
        // SAFETY: promised by the caller.
        unsafe { self.kernel.unregister(number) };
    }

    fn set_submit_limit(&self, limit: Duration) {
        Engine::set_submit_limit(self, limit);
    }

    fn count_detour(&self, detour: Detour) {
        add(&self.counts.detours[detour as usize], 1);
    }

    fn detach_any(self: Arc<Self>) -> io::Result<Box<dyn Carried>> {
        Ok(Box::new(Engine::detach(&self)?))
    }
}

impl AnyEngine {
    /// Wraps an engine that corresponds to no [`KernelChoice`].
    pub(crate) fn unnamed(engine: Arc<dyn DynEngine>) -> AnyEngine {
        AnyEngine { engine, kernel: None }
    }

    /// Attaches an engine to this thread's context.
    pub(crate) fn attach(choice: KernelChoice, depth: u32) -> io::Result<AnyEngine> {
        let engine: Arc<dyn DynEngine> = match choice {
            KernelChoice::Auto => {
                Auto::attach(depth)?;
                return AnyEngine::of_this_context();
            }
            KernelChoice::Aio => Engine::<_>::attach(LinuxAio::new(depth)?, depth)?,
            KernelChoice::Uring => Engine::<_>::attach(IoUring::new(depth)?, depth)?,
            KernelChoice::Threads => Engine::<_>::attach(Threads::new(depth)?, depth)?,
        };
        Ok(AnyEngine { engine, kernel: Some(choice) })
    }

    /// Returns the engine of this thread's context; creates one if there is none.
    pub(crate) fn of_this_context() -> io::Result<AnyEngine> {
        let context =
            AioContext::current().expect("opening a file outside a context: wrap the program in `run(|| ..)`");
        let Some(source) = context.source() else {
            return AnyEngine::attach(KernelChoice::Auto, DEFAULT_DEPTH);
        };
        let source = Auto::main_of(source).into_any();
        named::<Engine<LinuxAio>>(source, Some(KernelChoice::Aio))
            .or_else(|source| named::<Engine<IoUring>>(source, Some(KernelChoice::Uring)))
            .or_else(|source| named::<Engine<Threads>>(source, Some(KernelChoice::Threads)))
            .or_else(|source| named::<Simulated>(source, None))
            .map_err(|_| {
                let why = "this context's I/O engine does not support files";
                io::Error::new(io::ErrorKind::Unsupported, why)
            })
    }

    /// Returns the engine of this thread's context, if it is simulated.
    pub(crate) fn simulated() -> Option<Arc<Simulated>> {
        AioContext::current()?.source()?.into_any().downcast().ok()
    }

    /// As [`perform`].
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    pub(crate) unsafe fn perform(&self, attempt: &Attempt) -> i64 {
        // SAFETY: promised by the caller.
        unsafe { perform(&*self.engine, attempt) }
    }

    /// Returns the combined statistics of this thread's context's engines.
    pub(crate) fn stats(&self) -> Stats {
        let main = self.engine.stats();
        Auto::of_this_context().map_or(main, |auto| auto.stats_with(main))
    }

    /// Returns the kernel interface in use, and why; `None` if the backend is a test's own.
    pub(crate) fn chosen(&self) -> Option<Chosen> {
        let named = self.kernel?;
        Some(Auto::of_this_context().map_or_else(|| Chosen::by_name(named), |auto| auto.chosen.clone()))
    }

    /// As [`Engine::set_submit_limit`]. The fallback to threads needs no limit: it never blocks the
    /// loop.
    pub(crate) fn set_submit_limit(&self, limit: Duration) {
        self.engine.set_submit_limit(limit);
    }

    /// Counts a request that direct I/O does not accept as it is. Called on the home thread.
    pub(crate) fn count_detour(&self, detour: Detour) {
        self.engine.count_detour(detour);
    }

    /// Registers a file with the backend. Returns the number that requests use for it, and a guard
    /// that unregisters it, unless the number is the descriptor itself.
    pub(crate) fn register(&self, fd: BorrowedFd<'_>) -> (RawFd, Option<Registered>) {
        let number = self.engine.register(fd);
        let registered = || Registered { engine: Arc::clone(&self.engine), number };
        (number, (number != fd.as_raw_fd()).then(registered))
    }

    pub(crate) fn plug(&self) -> Plug {
        Arc::clone(&self.engine).plug()
    }

    pub(crate) fn detach(&self) -> io::Result<Box<dyn Carried>> {
        Arc::clone(&self.engine).detach_any()
    }

    pub(crate) fn on_short(&self) -> OnShort {
        self.engine.on_short()
    }

    /// Whether files on this engine can be used here: the calling thread is the home thread of its
    /// context.
    pub(crate) fn is_here(&self) -> bool {
        self.engine.is_here()
    }
}

/// Keeps a file registered with an engine's backend until dropped.
pub(crate) struct Registered {
    engine: Arc<dyn DynEngine>,
    number: RawFd,
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: `register` returned the number for this value, which is dropped once, after the
        // last request that used the number, and before its descriptor is closed.
        unsafe { self.engine.unregister(self.number) };
    }
}

/// Downcasts `source` to an engine of type `E`.
fn named<E: DynEngine + Any>(
    source: Arc<dyn Any + Send + Sync>,
    kernel: Option<KernelChoice>,
) -> Result<AnyEngine, Arc<dyn Any + Send + Sync>> {
    source.downcast::<E>().map(|engine| AnyEngine { engine, kernel })
}
