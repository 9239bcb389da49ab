//! AIO contexts: made with an error that teaches, kept while idle, destroyed by their own process
//! alone.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coralio_runtime::explained;

use super::abi;

/// An AIO context and the memory that belongs to it wherever it goes.
pub(super) struct Context {
    pub(super) ring: NonNull<abi::Ring>,
    pub(super) depth: u32,
    /// The process that made it. In a forked child it is dead.
    process: u32,
    /// The poll request. It has to stay where it was submitted from.
    pub(super) poll: Box<UnsafeCell<abi::Iocb>>,
    /// Room for the array that `io_submit` wants.
    pub(super) pointers: Box<UnsafeCell<[*mut abi::Iocb]>>,
}

// SAFETY: see `LinuxAio`; an idle one is used by nobody.
unsafe impl Send for Context {}

impl Context {
    pub(super) fn new(depth: u32, pool: &Pool) -> io::Result<Context> {
        // One slot is for the poll request.
        let ring = match abi::io_setup(depth + 1) {
            // What we keep idle counts as used.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && pool.drain() => abi::io_setup(depth + 1),
            other => other,
        };
        let pointers: Box<[*mut abi::Iocb]> = vec![ptr::null_mut(); depth as usize].into();
        Ok(Context {
            ring: ring.map_err(|error| setup_error(error, depth))?,
            depth,
            process: std::process::id(),
            poll: Box::default(),
            // SAFETY: `UnsafeCell<[T]>` is laid out as `[T]`.
            pointers: unsafe { Box::from_raw(Box::into_raw(pointers) as *mut UnsafeCell<[*mut abi::Iocb]>) },
        })
    }

    pub(super) fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if self.is_ours() {
            // It fails only if there is no such context.
            // SAFETY: who drops it owns it, so nobody else looks at the ring.
            let _ = unsafe { abi::io_destroy(self.ring) };
        }
    }
}

/// Idle contexts, the oldest first: `io_destroy` takes up to 100 ms, so that programs and tests
/// that make many would feel it.
pub(super) struct Pool(Mutex<Vec<Context>>);

impl Pool {
    pub(super) const SIZE: usize = 8;
    /// Deeper ones are not kept: idle ones too count against `fs.aio-max-nr`, which all processes
    /// share.
    pub(super) const DEEPEST: u32 = 1024;

    pub(super) const fn new() -> Pool {
        Pool(Mutex::new(Vec::new()))
    }

    pub(super) fn idle(&self) -> MutexGuard<'_, Vec<Context>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, depth: u32) -> Option<Context> {
        let mut idle = self.idle();
        idle.retain(Context::is_ours);
        let at = idle.iter().position(|context| context.depth == depth)?;
        Some(idle.remove(at))
    }

    pub(super) fn put(&self, context: Context) {
        // Destroyed, as is what the pool has no room for, when the pool is unlocked.
        let mut _old = None;
        if context.depth <= Pool::DEEPEST {
            let mut idle = self.idle();
            _old = (idle.len() == Pool::SIZE).then(|| idle.remove(0));
            idle.push(context);
        }
    }

    /// Destroys all, and says whether there were any.
    pub(super) fn drain(&self) -> bool {
        let idle = std::mem::take(&mut *self.idle());
        !idle.is_empty()
    }
}

/// A descriptor that can be read at once.
pub(super) fn readable() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers; on success the descriptor is new and ours alone.
    let fd = unsafe { libc::eventfd(1, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What `io_setup` said, or another of these calls right after it, with cause and remedy.
pub(super) fn setup_error(error: io::Error, depth: u32) -> io::Error {
    let (kind, message) = match error.raw_os_error() {
        Some(libc::EAGAIN) => {
            let limit = |name| {
                let value = std::fs::read_to_string(format!("/proc/sys/fs/{name}"));
                value.map_or_else(|_| "unknown".into(), |value| value.trim().to_string())
            };
            let message = format!(
                "no room for {} AIO requests: fs.aio-nr is {} and fs.aio-max-nr {}; take a smaller depth, \
                 or raise the limit as root: sysctl fs.aio-max-nr=1048576",
                depth + 1,
                limit("aio-nr"),
                limit("aio-max-nr"),
            );
            (io::ErrorKind::QuotaExceeded, message)
        }
        Some(libc::ENOSYS) => (
            io::ErrorKind::Unsupported,
            "no native AIO here: the kernel was built without CONFIG_AIO, or a seccomp filter hides io_setup \
             (containers have one: allow io_setup, io_submit, io_getevents, io_cancel, io_destroy)"
                .into(),
        ),
        Some(libc::EPERM | libc::EACCES) => (
            io::ErrorKind::PermissionDenied,
            "native AIO is forbidden here, likely by a seccomp filter: \
             allow io_setup, io_submit, io_getevents, io_cancel, io_destroy"
                .into(),
        ),
        Some(_) => (error.kind(), format!("io_setup for a queue of {depth}: {error}")),
        // It says by itself what is wrong.
        None => return error,
    };
    explained(kind, message, error)
}
