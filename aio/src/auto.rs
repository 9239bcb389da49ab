//! The engines of a context under [`KernelChoice::Auto`]: the first that the machine allows, and
//! threads for requests that would block it.
//!
//! ```text
//!   a request of a file (file/route.rs)
//!     direct or page-cached         --->  main: native AIO, refuses blocking requests  --+
//!     known to block                                                                     | EAGAIN
//!         |                                                                              |
//!         +---------------------------->  spare: threads, created when first needed  <---+
//! ```
//!
//! The loop sees both as one [`Source`]. It sleeps in the main engine; the spare one ends that
//! sleep through the context's notifier. io_uring needs no spare engine, because its own workers
//! perform requests that would block its submit. Nor do threads.

#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coralio_runtime::{AioContext, HomeToken, LoopToken, Source, explained};

use crate::any::KernelChoice;
use crate::engine::{Engine, Stats, add};
use crate::kernel::Kernel;
use crate::kernel::io_uring::IoUring;
use crate::kernel::linux_aio::LinuxAio;
use crate::kernel::threads::Threads;
use crate::perform::{Attempt, perform};
use crate::policy::Current;

/// The kernel interface that a context uses, and why. `Display` gives one log line.
#[derive(Clone, Debug)]
pub struct Chosen {
    kernel: KernelChoice,
    /// Whether the library chose, rather than the user.
    auto: bool,
    refused: Arc<[(KernelChoice, io::Error)]>,
}

impl Chosen {
    /// An interface named by the user.
    pub(crate) fn by_name(kernel: KernelChoice) -> Chosen {
        Chosen { kernel, auto: false, refused: Arc::new([]) }
    }

    /// Returns the interface; never [`KernelChoice::Auto`].
    pub fn kernel(&self) -> KernelChoice {
        self.kernel
    }

    /// Returns the interfaces that were tried before and rejected, in order, each with the cause
    /// and remedy.
    pub fn refused(&self) -> impl Iterator<Item = (KernelChoice, &io::Error)> {
        self.refused.iter().map(|(kernel, error)| (*kernel, error))
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name(self.kernel))?;
        match self.kernel {
            _ if !self.auto => f.write_str(", as requested")?,
            KernelChoice::Aio => f.write_str(", with threads for requests that would block it")?,
            _ => {}
        }
        let mut mark = ": ";
        for (kernel, error) in self.refused() {
            write!(f, "{mark}{} was refused: {error}", name(kernel))?;
            mark = "; ";
        }
        Ok(())
    }
}

/// The user-visible name.
fn name(kernel: KernelChoice) -> &'static str {
    match kernel {
        KernelChoice::Auto => "auto",
        KernelChoice::Aio => "native AIO",
        KernelChoice::Uring => "io_uring",
        KernelChoice::Threads => "threads",
    }
}

/// The engines of a context under [`KernelChoice::Auto`].
pub(crate) struct Auto {
    main: Arc<dyn Source>,
    spare: OnceLock<Arc<Engine<Threads>>>,
    context: AioContext,
    depth: u32,
    /// Requests that the main engine refused because they would have blocked.
    refusals: AtomicU64,
    completed_refusals: AtomicU64,
    pub(crate) chosen: Chosen,
}

/// Creates an engine on `kernel`, without attaching it.
fn engine<K: Kernel>(kernel: io::Result<K>, depth: u32) -> io::Result<Arc<dyn Source>> {
    Ok(Engine::<K, Current>::new(kernel?, depth, true)? as Arc<dyn Source>)
}

impl Auto {
    /// Attaches the engines to this thread's context.
    pub(crate) fn attach(depth: u32) -> io::Result<()> {
        let context =
            AioContext::current().expect("attaching an engine outside a context: call it inside `run(|| ..)`");
        let (main, chosen) = first_allowed(depth)?;
        let auto = Auto {
            main,
            spare: OnceLock::new(),
            context: context.clone(),
            depth,
            refusals: AtomicU64::new(0),
            completed_refusals: AtomicU64::new(0),
            chosen,
        };
        context.attach(Arc::new(auto))
    }

    /// Returns the engines of this thread's context, if it uses [`KernelChoice::Auto`].
    pub(crate) fn of_this_context() -> Option<Arc<Auto>> {
        AioContext::current()?.source()?.into_any().downcast().ok()
    }

    /// Returns the main engine of an `Auto`; otherwise `source` itself.
    pub(crate) fn main_of(source: Arc<dyn Source>) -> Arc<dyn Source> {
        let any = Arc::clone(&source).into_any();
        any.downcast::<Auto>().map_or(source, |auto| Arc::clone(&auto.main))
    }

    /// As [`Engine::perform`], on a thread. Returns `None` if there are no resources for the spare
    /// engine.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    pub(crate) unsafe fn perform_on_spare(&self, attempt: &Attempt) -> Option<i64> {
        if self.spare.get().is_none() {
            // The engine belongs to the context in which it is created.
            if !self.context.is_home() {
                return Some(-i64::from(libc::ENOTCONN));
            }
            let threads = Threads::new(self.depth).ok()?;
            threads.notify(self.context.clone());
            let spare = Engine::new(threads, self.depth, false).ok()?;
            // Only the home thread gets here, so the cell is still empty.
            let _ = self.spare.set(spare);
        }
        // SAFETY: promised by the caller.
        self.spare.get().map(|spare| unsafe { perform(&**spare, attempt) })
    }

    /// Counts a request that the main engine has refused, by a completion or at submit, and that is
    /// made again.
    pub(crate) fn count_refusal(&self, by_completion: bool) {
        add(&self.refusals, 1);
        add(&self.completed_refusals, u64::from(by_completion));
    }

    /// Combines the statistics of both engines, given those of the main one. A request that the
    /// main engine refused counts once.
    pub(crate) fn stats_with(&self, main: Stats) -> Stats {
        let spare = self.spare.get().map(|spare| spare.stats()).unwrap_or_default();
        let refusals = self.refusals.load(Ordering::Relaxed);
        Stats {
            requests: main.requests + spare.requests - refusals,
            completions: main.completions + spare.completions - self.completed_refusals.load(Ordering::Relaxed),
            submits: main.submits + spare.submits,
            sleeps: main.sleeps + spare.sleeps,
            in_flight: main.in_flight + spare.in_flight,
            pending: main.pending + spare.pending,
            on_threads: spare.requests,
            ..main
        }
    }
}

/// Returns the first engine that the machine allows, and why the ones before it failed.
fn first_allowed(depth: u32) -> io::Result<(Arc<dyn Source>, Chosen)> {
    let mut refused = Vec::new();
    for kernel in [KernelChoice::Aio, KernelChoice::Uring, KernelChoice::Threads] {
        let tried = match kernel {
            KernelChoice::Aio => engine(LinuxAio::new(depth).and_then(LinuxAio::probed), depth),
            KernelChoice::Uring => engine(IoUring::new(depth), depth),
            KernelChoice::Auto | KernelChoice::Threads => engine(Threads::new(depth), depth),
        };
        match tried {
            Ok(main) => return Ok((main, Chosen { kernel, auto: true, refused: refused.into() })),
            // Invalid queue depth: the other backends would refuse it too.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(error) => refused.push((kernel, error)),
        }
    }
    let all: Vec<_> = refused.iter().map(|(kernel, error)| format!("{}: {error}", name(*kernel))).collect();
    let (_, last) = refused.pop().expect("at least one backend was tried");
    Err(explained(last.kind(), format!("no I/O backend available: {}", all.join("; ")), last))
}

impl Source for Auto {
    fn dispatch(&self, token: LoopToken<'_>) -> bool {
        let progress = self.main.dispatch(token);
        self.spare.get().is_some_and(|spare| spare.dispatch(token)) || progress
    }

    fn flush(&self, token: LoopToken<'_>, all: bool) -> bool {
        let progress = self.main.flush(token, all);
        self.spare.get().is_some_and(|spare| spare.flush(token, all)) || progress
    }

    fn is_ready(&self, token: HomeToken<'_>) -> bool {
        self.main.is_ready(token) || self.spare.get().is_some_and(|spare| spare.is_ready(token))
    }

    fn is_idle(&self) -> bool {
        self.main.is_idle() && self.spare.get().is_none_or(|spare| spare.is_idle())
    }

    fn describe(&self) -> String {
        match self.spare.get() {
            None => self.main.describe(),
            Some(spare) => format!("{}; on threads: {}", self.main.describe(), spare.describe()),
        }
    }

    fn sleep(&self, token: HomeToken<'_>, other: BorrowedFd<'_>, timeout: Option<Duration>) -> Option<io::Result<()>> {
        // A completion of the spare engine makes `other` readable.
        self.main.sleep(token, other, timeout)
    }

    fn may_detach(&self, token: HomeToken<'_>) -> io::Result<()> {
        self.main.may_detach(token)
    }
}
