//! AIO contexts: created with explanatory errors, pooled while idle, destroyed only by their own
//! process.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::io;
use std::ptr::{self, NonNull};

use coralio_runtime::explained;
use parking_lot::Mutex;

use super::abi;

/// An AIO context and the memory that belongs to it.
pub(super) struct Context {
    pub(super) ring: NonNull<abi::Ring>,
    pub(super) depth: u32,
    /// The process that created it. In a forked child the context is invalid.
    process: u32,
    /// The poll request, whose address must not change after it was submitted.
    pub(super) poll: Box<UnsafeCell<abi::Iocb>>,
    /// Buffer for `io_submit`'s array of pointers.
    pub(super) pointers: Box<UnsafeCell<[*mut abi::Iocb]>>,
}

// SAFETY: see `LinuxAio`; an idle context is not in use.
unsafe impl Send for Context {}

impl Context {
    pub(super) fn new(depth: u32, pool: &Pool) -> io::Result<Context> {
        // One slot is reserved for the poll request.
        let ring = match abi::io_setup(depth + 1) {
            // Idle contexts in the pool count as used.
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
            // Fails only if there is no such context.
            // SAFETY: `drop` has exclusive access, so no other thread reads the ring.
            let _ = unsafe { abi::io_destroy(self.ring) };
        }
    }
}

/// Idle contexts, oldest first: `io_destroy` takes up to 100 ms, which programs and tests that
/// create many contexts would notice.
pub(super) struct Pool(pub(super) Mutex<Vec<Context>>);

impl Pool {
    pub(super) const MAX_CACHED: usize = 8;
    /// Deeper contexts are not kept: idle ones also count against `fs.aio-max-nr`, which all
    /// processes share.
    pub(super) const MAX_CACHED_DEPTH: u32 = 1024;

    pub(super) const fn new() -> Pool {
        Pool(Mutex::new(Vec::new()))
    }

    pub(super) fn get(&self, depth: u32) -> Option<Context> {
        let mut idle = self.0.lock();
        idle.retain(Context::is_ours);
        let at = idle.iter().position(|context| context.depth == depth)?;
        Some(idle.remove(at))
    }

    pub(super) fn put(&self, context: Context) {
        // Dropped after the pool is unlocked, as is a context that the pool does not keep.
        let mut _old = None;
        if context.depth <= Pool::MAX_CACHED_DEPTH {
            let mut idle = self.0.lock();
            _old = (idle.len() == Pool::MAX_CACHED).then(|| idle.remove(0));
            idle.push(context);
        }
    }

    /// Destroys all idle contexts. Returns whether there were any.
    pub(super) fn drain(&self) -> bool {
        let idle = std::mem::take(&mut *self.0.lock());
        !idle.is_empty()
    }
}

/// Explains an error of `io_setup`, or of the calls right after it, with cause and remedy.
pub(super) fn setup_error(error: io::Error, depth: u32) -> io::Error {
    let (kind, message) = match error.raw_os_error() {
        Some(libc::EAGAIN) => {
            let limit = |name| {
                let value = std::fs::read_to_string(format!("/proc/sys/fs/{name}"));
                value.map_or_else(|_| "unknown".into(), |value| value.trim().to_string())
            };
            let message = format!(
                "no room for {} AIO requests: fs.aio-nr is {} and fs.aio-max-nr {}; use a smaller depth, or raise the \
                 limit as root: sysctl fs.aio-max-nr=1048576",
                depth + 1,
                limit("aio-nr"),
                limit("aio-max-nr"),
            );
            (io::ErrorKind::QuotaExceeded, message)
        }
        Some(libc::ENOSYS) => (
            io::ErrorKind::Unsupported,
            "native AIO is not available: the kernel was built without CONFIG_AIO, or a seccomp filter hides io_setup \
             (common in containers: allow io_setup, io_submit, io_getevents, io_cancel, io_destroy)"
                .into(),
        ),
        Some(libc::EPERM | libc::EACCES) => (
            io::ErrorKind::PermissionDenied,
            "native AIO is forbidden, likely by a seccomp filter: allow io_setup, io_submit, io_getevents, io_cancel, \
             io_destroy"
                .into(),
        ),
        Some(_) => (error.kind(), format!("io_setup with queue depth {depth}: {error}")),
        // The error is self-explanatory.
        None => return error,
    };
    explained(kind, message, error)
}
