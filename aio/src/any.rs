//! The engine of a context, on the kernel that was chosen at run time (rule E16).
//!
//! The engine itself is generic, so that its way from a request to the kernel and back is compiled
//! for each. Files know it by what they ask of it: two calls per request, which always go the same
//! way.

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

/// By what a context's I/O goes to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelChoice {
    /// What suits the file, of what the machine allows: native AIO, with a thread for each request
    /// that would block the loop in submit (rules E14, E16); if that is refused, io_uring; else
    /// threads. [`chosen_kernel`](crate::chosen_kernel) says which, and why.
    #[default]
    Auto,
    /// Native AIO (`io_submit`) alone: whatever it does within submit blocks the loop meanwhile.
    Aio,
    /// io_uring.
    Uring,
    /// Plain system calls on a pool of threads.
    Threads,
}

/// Where [`KernelChoice::from_env`] looks.
const VARIABLE: &str = "CORALIO_KERNEL";

impl KernelChoice {
    /// What the environment says, for programs that let their users choose: `CORALIO_KERNEL` is
    /// `auto`, `aio`, `uring` or `threads`. If it is empty or not set: `Auto`. The library itself
    /// does not look there.
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
    /// `InvalidInput`: it is something else.
    pub fn from_env() -> io::Result<KernelChoice> {
        match std::env::var_os(VARIABLE) {
            Some(text) if !text.is_empty() => text.to_string_lossy().parse().map_err(|error: io::Error| {
                io::Error::new(
                    error.kind(),
                    format!("the environment has {VARIABLE}, and {error}; set one of these, or unset it"),
                )
            }),
            _ => Ok(KernelChoice::Auto),
        }
    }
}

impl FromStr for KernelChoice {
    type Err = io::Error;

    /// From `auto`, `aio`, `uring` or `threads`.
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

/// The engine of a context, whichever kernel it is on.
#[derive(Clone)]
pub(crate) struct AnyEngine {
    engine: Arc<dyn DynEngine>,
    /// `None`: on a kernel, or with a policy, of a test's own; or simulated.
    pub(crate) kernel: Option<KernelChoice>,
}

/// What files ask of an engine whose type they do not know.
pub(crate) trait DynEngine: Performs + Send + Sync {
    fn stats(&self) -> Stats;
    fn plug(self: Arc<Self>) -> Plug;
    fn on_short(&self) -> OnShort;
    /// Whether this is the home thread of the context that the engine is with.
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
        // SAFETY: the number is used in requests of the file that registers, by `Registered` until
        // it unregisters it.
        unsafe { self.kernel.register(fd) }
    }

    unsafe fn unregister(&self, number: RawFd) {
        // SAFETY: the caller's promise.
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
    /// One that no name stands for.
    pub(crate) fn unnamed(engine: Arc<dyn DynEngine>) -> AnyEngine {
        AnyEngine { engine, kernel: None }
    }

    /// Gives this thread's context an engine.
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

    /// The engine of this thread's context; made if it has none.
    pub(crate) fn of_this_context() -> io::Result<AnyEngine> {
        let context = AioContext::current().expect("files belong to a context; open them inside `run(|| ..)`");
        let Some(source) = context.source() else {
            return AnyEngine::attach(KernelChoice::Auto, DEFAULT_DEPTH);
        };
        let source = Auto::main_of(source) as Arc<dyn Any + Send + Sync>;
        named::<Engine<LinuxAio>>(source, Some(KernelChoice::Aio))
            .or_else(|source| named::<Engine<IoUring>>(source, Some(KernelChoice::Uring)))
            .or_else(|source| named::<Engine<Threads>>(source, Some(KernelChoice::Threads)))
            .or_else(|source| named::<Simulated>(source, None))
            .map_err(|_| {
                let why = "this context's I/O engine is not one that files can use";
                io::Error::new(io::ErrorKind::Unsupported, why)
            })
    }

    /// The engine of this thread's context, if that is simulated.
    pub(crate) fn simulated() -> Option<Arc<Simulated>> {
        let source = AioContext::current()?.source()? as Arc<dyn Any + Send + Sync>;
        source.downcast().ok()
    }

    /// As [`perform`].
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    pub(crate) unsafe fn perform(&self, attempt: &Attempt) -> i64 {
        // SAFETY: the caller's promise.
        unsafe { perform(&*self.engine, attempt) }
    }

    /// What the engines of this thread's context have done so far.
    pub(crate) fn stats(&self) -> Stats {
        let main = self.engine.stats();
        Auto::of_this_context().map_or(main, |auto| auto.stats_with(main))
    }

    /// Which kernel it is on, and why; `None` if it is one of a test's own.
    pub(crate) fn chosen(&self) -> Option<Chosen> {
        let named = self.kernel?;
        Some(Auto::of_this_context().map_or_else(|| Chosen::by_name(named), |auto| auto.chosen.clone()))
    }

    /// As [`Engine::set_submit_limit`]. Threads beside it never block the loop.
    pub(crate) fn set_submit_limit(&self, limit: Duration) {
        self.engine.set_submit_limit(limit);
    }

    /// Counts a request that direct I/O does not take as it is. On the home thread.
    pub(crate) fn count_detour(&self, detour: Detour) {
        self.engine.count_detour(detour);
    }

    /// Makes a file known to the kernel. Returns the number by which requests name it; and what
    /// ends that, unless it is the descriptor's own.
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

    /// Whether files on this engine can be used here: this is the home thread of the context that
    /// it is with.
    pub(crate) fn is_here(&self) -> bool {
        self.engine.is_here()
    }
}

/// A file that an engine's kernel knows, until this is dropped.
pub(crate) struct Registered {
    engine: Arc<dyn DynEngine>,
    number: RawFd,
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: `register` returned the number for this value, which is dropped once, when the
        // file whose requests used the number is gone, and before its descriptor.
        unsafe { self.engine.unregister(self.number) };
    }
}

/// The engine `E` by its kernel's name, if it is one.
fn named<E: DynEngine + Any>(
    source: Arc<dyn Any + Send + Sync>,
    kernel: Option<KernelChoice>,
) -> Result<AnyEngine, Arc<dyn Any + Send + Sync>> {
    source.downcast::<E>().map(|engine| AnyEngine { engine, kernel })
}
