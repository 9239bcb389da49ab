//! Which backend a context uses: named by the user, or the first that the machine allows (rule
//! E16).

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use coralio_runtime::explained;

use crate::engine::Engine;
use crate::engine::erased::ErasedEngine;
use crate::kernel::Kernel;
use crate::kernel::io_uring::IoUring;
use crate::kernel::linux_aio::LinuxAio;
use crate::kernel::threads::Threads;

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

/// The kernel interface that a context uses, and why. `Display` gives one log line.
#[derive(Clone, Debug)]
pub struct Chosen {
    kernel: KernelChoice,
    /// Whether the library chose, rather than the user.
    auto: bool,
    refused: Arc<[(KernelChoice, io::Error)]>,
}

impl Chosen {
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

/// Creates an engine on the named backend.
pub(super) fn named(kernel: KernelChoice, depth: u32) -> io::Result<(Arc<dyn ErasedEngine>, Chosen)> {
    let engine = match kernel {
        KernelChoice::Auto => return first_allowed(depth),
        KernelChoice::Aio => engine(LinuxAio::new(depth), depth),
        KernelChoice::Uring => engine(IoUring::new(depth), depth),
        KernelChoice::Threads => engine(Threads::new(depth), depth),
    };
    Ok((engine?, Chosen { kernel, auto: false, refused: Arc::new([]) }))
}

fn engine<K: Kernel>(kernel: io::Result<K>, depth: u32) -> io::Result<Arc<dyn ErasedEngine>> {
    let engine: Arc<Engine<K>> = Engine::new(kernel?, depth, true)?;
    Ok(engine)
}

/// Returns the first engine that the machine allows, and why the ones before it failed.
fn first_allowed(depth: u32) -> io::Result<(Arc<dyn ErasedEngine>, Chosen)> {
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
