//! The engine of a context, on the kernel that was chosen at run time (rule E16).
//!
//! The engine itself is generic, so that its way from a request to the kernel and back is compiled for each. Which one it is, is
//! asked once per request: a branch that always goes the same way.

#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use coralio_runtime::AioContext;

use crate::DEFAULT_DEPTH;
use crate::auto::{Auto, Chosen};
use crate::engine::{Engine, Stats};
use crate::kernel::io_uring::IoUring;
use crate::kernel::linux_aio::LinuxAio;
use crate::kernel::threads::Threads;
use crate::kernel::{Kernel, Operation};
use crate::policy::{Current, OnShort, Policy};
use crate::queue::Plug;
use crate::simulate::Simulated;

/// By what a context's I/O goes to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelChoice {
    /// What suits the file, of what the machine allows: native AIO, with a thread for each request that would block the loop in
    /// submit (rules E14, E16); if that is refused, io_uring; else threads. [`chosen_kernel`](crate::chosen_kernel) says which, and why.
    #[default]
    Auto,
    /// Native AIO (`io_submit`) alone: whatever it does within submit blocks the loop meanwhile.
    Aio,
    /// io_uring.
    Uring,
    /// Plain system calls on a pool of threads.
    Threads,
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
pub(crate) enum AnyEngine {
    Aio(Arc<Engine<LinuxAio>>),
    Uring(Arc<Engine<IoUring>>),
    Threads(Arc<Engine<Threads>>),
    /// On a kernel, or with a policy, of a test's own; or simulated.
    Other(Arc<dyn Other>),
}

/// What files ask of an engine whose type they do not know.
pub(crate) trait Other {
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    unsafe fn perform(&self, operation: &Operation) -> i64;
    fn stats(&self) -> Stats;
    fn plug(self: Arc<Self>) -> Plug;
    fn on_short(&self) -> OnShort;
}

impl<K: Kernel, P: Policy> Other for Engine<K, P> {
    unsafe fn perform(&self, operation: &Operation) -> i64 {
        // SAFETY: the caller's promise.
        unsafe { Engine::perform(self, operation) }
    }

    fn stats(&self) -> Stats {
        Engine::stats(self)
    }

    fn plug(self: Arc<Self>) -> Plug {
        Engine::plug(&self)
    }

    fn on_short(&self) -> OnShort {
        P::ON_SHORT
    }
}

impl AnyEngine {
    /// Gives this thread's context an engine.
    pub(crate) fn attach(choice: KernelChoice, depth: u32) -> io::Result<AnyEngine> {
        match choice {
            KernelChoice::Auto => {
                Auto::attach(depth)?;
                AnyEngine::of_this_context()
            }
            KernelChoice::Aio => Engine::attach(LinuxAio::new(depth)?, depth).map(AnyEngine::Aio),
            KernelChoice::Uring => Engine::attach(IoUring::new(depth)?, depth).map(AnyEngine::Uring),
            KernelChoice::Threads => Engine::attach(Threads::new(depth)?, depth).map(AnyEngine::Threads),
        }
    }

    /// The engine of this thread's context; made if it has none.
    pub(crate) fn of_this_context() -> io::Result<AnyEngine> {
        let context = AioContext::current().expect("files belong to a context; open them inside `run(|| ..)`");
        let Some(source) = context.source() else {
            return AnyEngine::attach(KernelChoice::Auto, DEFAULT_DEPTH);
        };
        let source = Auto::main_of(source) as Arc<dyn Any + Send + Sync>;
        let found = source.downcast().map(AnyEngine::Aio);
        let found = found.or_else(|source| source.downcast().map(AnyEngine::Uring));
        let found = found.or_else(|source| source.downcast().map(AnyEngine::Threads));
        found.or_else(|source| source.downcast().map(|engine: Arc<Simulated>| AnyEngine::Other(engine))).map_err(|_| {
            io::Error::new(io::ErrorKind::Unsupported, "this context's I/O engine is not one that files can use")
        })
    }

    /// The engine of this thread's context, if that is simulated.
    pub(crate) fn simulated() -> Option<Arc<Simulated>> {
        let source = AioContext::current()?.source()? as Arc<dyn Any + Send + Sync>;
        source.downcast().ok()
    }

    /// As [`Engine::perform_or_refuse`].
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    pub(crate) unsafe fn perform(&self, operation: &Operation, nowait: bool) -> i64 {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                AnyEngine::Aio(engine) => engine.perform_or_refuse(operation, nowait),
                AnyEngine::Uring(engine) => engine.perform(operation),
                AnyEngine::Threads(engine) => engine.perform(operation),
                AnyEngine::Other(engine) => engine.perform(operation),
            }
        }
    }

    /// What the engines of this thread's context have done so far.
    pub(crate) fn stats(&self) -> Stats {
        let main = match self {
            AnyEngine::Aio(engine) => engine.stats(),
            AnyEngine::Uring(engine) => engine.stats(),
            AnyEngine::Threads(engine) => engine.stats(),
            AnyEngine::Other(engine) => engine.stats(),
        };
        Auto::of_this_context().map_or(main, |auto| auto.stats_with(main))
    }

    /// Which kernel it is on, and why; `None`: a test's own.
    pub(crate) fn chosen(&self) -> Option<Chosen> {
        if let Some(auto) = Auto::of_this_context() {
            return Some(auto.chosen.clone());
        }
        Some(Chosen::by_name(match self {
            AnyEngine::Aio(_) => KernelChoice::Aio,
            AnyEngine::Uring(_) => KernelChoice::Uring,
            AnyEngine::Threads(_) => KernelChoice::Threads,
            AnyEngine::Other(_) => return None,
        }))
    }

    pub(crate) fn plug(&self) -> Plug {
        match self {
            AnyEngine::Aio(engine) => engine.plug(),
            AnyEngine::Uring(engine) => engine.plug(),
            AnyEngine::Threads(engine) => engine.plug(),
            AnyEngine::Other(engine) => Arc::clone(engine).plug(),
        }
    }

    pub(crate) fn on_short(&self) -> OnShort {
        match self {
            AnyEngine::Aio(_) | AnyEngine::Uring(_) | AnyEngine::Threads(_) => Current::ON_SHORT,
            AnyEngine::Other(engine) => engine.on_short(),
        }
    }
}
