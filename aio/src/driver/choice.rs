//! Which backend a context and each of its files use: named by the user, or the fastest that the
//! machine allows (rule E16).

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use coralio_runtime::explained;

use crate::backend::Backend;
use crate::backend::io_uring::IoUring;
use crate::backend::linux_aio::LinuxAio;
use crate::backend::thread_pool::ThreadPool;
use crate::engine::Engine;
use crate::engine::erased::ErasedEngine;

/// The backend that a context uses for I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendKind {
    /// The fastest interface that the machine allows, for each request:
    ///
    /// | request | interface | reason |
    /// |---|---|---|
    /// | on tmpfs | a system call in place | it does not wait for a device; io_uring would pass it to a worker thread |
    /// | write of more than 1 MiB to tmpfs | io_uring, or a thread | its copy would occupy the loop for long |
    /// | read whose data is in the page cache, while no other coroutine is ready | a system call in place | it does not wait for a device |
    /// | any other | io_uring | the least CPU time per request, and its submit does not block |
    ///
    /// If io_uring is not available, as in many containers, native AIO takes its place, plus a
    /// thread for each request that would block the loop in submit; if neither is, threads do.
    /// [`selected_backend`](crate::driver::selected_backend) returns the choice of a context and its
    /// reason, [`File::backend`](crate::File::backend) that of a file.
    #[default]
    Auto,
    /// Native AIO (`io_submit`) alone: work that it does within submit blocks the loop.
    Aio,
    /// io_uring, which needs Linux 6.0.
    Uring,
    /// Plain system calls on a thread pool.
    Threads,
}

/// The environment variable that [`BackendKind::from_env`] reads.
const VARIABLE: &str = "CORALIO_BACKEND";

impl BackendKind {
    /// Returns the choice made by the environment, for programs that offer this to their users:
    /// `CORALIO_BACKEND` is `auto`, `aio`, `uring` or `threads`. Returns `Auto` if the variable is
    /// empty or not set. The library itself does not read the variable.
    ///
    /// ```no_run
    /// use coralio::RuntimeBuilder;
    /// use coralio::driver::BackendKind;
    ///
    /// RuntimeBuilder::new().backend(BackendKind::from_env()?).run(|| println!("hello"))?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidInput`: the variable has another value.
    pub fn from_env() -> io::Result<BackendKind> {
        match std::env::var_os(VARIABLE) {
            Some(text) if !text.is_empty() => text.to_string_lossy().parse().map_err(|error: io::Error| {
                io::Error::new(
                    error.kind(),
                    format!("invalid environment variable {VARIABLE}: {error}; set one of these, or unset it"),
                )
            }),
            _ => Ok(BackendKind::Auto),
        }
    }
}

/// In the order of the enum: the name that users write, and the one in messages.
const NAMES: [(BackendKind, &str, &str); 4] = [
    (BackendKind::Auto, "auto", "auto"),
    (BackendKind::Aio, "aio", "native AIO"),
    (BackendKind::Uring, "uring", "io_uring"),
    (BackendKind::Threads, "threads", "threads"),
];

impl FromStr for BackendKind {
    type Err = io::Error;

    /// Parses `auto`, `aio`, `uring` or `threads`.
    fn from_str(text: &str) -> io::Result<BackendKind> {
        let found = NAMES.iter().find(|(_, name, _)| *name == text);
        found.map(|&(backend, ..)| backend).ok_or_else(|| {
            let message = format!("{text:?} is not one of auto, aio, uring, threads");
            io::Error::new(io::ErrorKind::InvalidInput, message)
        })
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(NAMES[*self as usize].1)
    }
}

/// The backend that a context or a file uses, and why. `Display` gives one log line.
#[derive(Clone, Debug)]
pub struct SelectedBackend {
    backend: BackendKind,
    reason: Reason,
    refused: Arc<[(BackendKind, io::Error)]>,
}

/// Why a backend is used.
#[derive(Clone, Copy, Debug)]
enum Reason {
    /// The user named it.
    Requested,
    /// The fastest of those allowed, for a context.
    Context,
    /// The same, for a file on tmpfs.
    OnTmpfs,
}

impl SelectedBackend {
    /// Returns whether the user left the choice to this crate.
    pub(crate) fn is_auto(&self) -> bool {
        !matches!(self.reason, Reason::Requested)
    }

    /// Returns the choice for a file on tmpfs.
    pub(crate) fn on_tmpfs(&self) -> SelectedBackend {
        SelectedBackend { reason: Reason::OnTmpfs, ..self.clone() }
    }

    /// Returns the interface for requests that may wait; never [`BackendKind::Auto`].
    pub fn backend(&self) -> BackendKind {
        self.backend
    }

    /// Returns the interfaces that were tried before and rejected, in order, each with the cause
    /// and remedy.
    pub fn rejected(&self) -> impl Iterator<Item = (BackendKind, &io::Error)> {
        self.refused.iter().map(|(backend, error)| (*backend, error))
    }
}

impl fmt::Display for SelectedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Reason::OnTmpfs = self.reason {
            return f.write_str("system calls in place, since requests on tmpfs do not wait for a device");
        }
        f.write_str(name(self.backend))?;
        f.write_str(match (self.reason, self.backend) {
            (Reason::Requested, _) => ", as requested",
            (_, BackendKind::Aio) => ", with threads for requests that would block it",
            _ => "",
        })?;
        let mut mark = ": ";
        for (backend, error) in self.rejected() {
            write!(f, "{mark}{} was refused: {error}", name(backend))?;
            mark = "; ";
        }
        Ok(())
    }
}

fn name(backend: BackendKind) -> &'static str {
    NAMES[backend as usize].2
}

fn engine<B: Backend>(backend: io::Result<B>, depth: u32) -> io::Result<Arc<dyn ErasedEngine>> {
    let engine: Arc<Engine<B>> = Engine::new(backend?, depth, true)?;
    Ok(engine)
}

/// Creates an engine on the named backend, or on the first that the machine allows.
pub(super) fn named(named: BackendKind, depth: u32) -> io::Result<(Arc<dyn ErasedEngine>, SelectedBackend)> {
    let auto = named == BackendKind::Auto;
    let reason = if auto { Reason::Context } else { Reason::Requested };
    let mut refused = Vec::new();
    for backend in [BackendKind::Uring, BackendKind::Aio, BackendKind::Threads] {
        if !auto && backend != named {
            continue;
        }
        let tried = match backend {
            BackendKind::Aio if auto => engine(LinuxAio::new(depth).and_then(LinuxAio::verify), depth),
            BackendKind::Aio => engine(LinuxAio::new(depth), depth),
            BackendKind::Uring => engine(IoUring::new(depth), depth),
            BackendKind::Auto | BackendKind::Threads => engine(ThreadPool::new(depth), depth),
        };
        match tried {
            Ok(main) => return Ok((main, SelectedBackend { backend, reason, refused: refused.into() })),
            // Invalid queue depth: the other backends would refuse it too.
            Err(error) if !auto || error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(error) => refused.push((backend, error)),
        }
    }
    let all: Vec<_> = refused.iter().map(|(backend, error)| format!("{}: {error}", name(*backend))).collect();
    let (_, last) = refused.pop().expect("at least one backend was tried");
    Err(explained(last.kind(), format!("no I/O backend available: {}", all.join("; ")), last))
}
