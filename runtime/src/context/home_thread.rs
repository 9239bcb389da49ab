//! The identity of a context's home thread, for messages and signals.

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::{self, Thread};

use rustix::thread::gettid;

/// The home thread. Known as long as the context runs.
pub(crate) struct HomeThread {
    thread: Thread,
    /// 0 when the context has ended.
    tid: AtomicI32,
}

impl HomeThread {
    /// Returns the calling thread.
    pub(crate) fn here() -> HomeThread {
        HomeThread { thread: thread::current(), tid: AtomicI32::new(gettid().as_raw_nonzero().get()) }
    }

    /// Marks the context as ended: the thread must not be signalled any more.
    pub(crate) fn leave(&self) {
        self.tid.store(0, Ordering::Relaxed);
    }

    /// Returns whether the context has ended, or its home is about to be dropped.
    pub(crate) fn has_left(&self) -> bool {
        self.tid.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn describe(&self) -> String {
        format!("'{}' ({})", self.thread.name().unwrap_or("?"), self.tid.load(Ordering::Relaxed))
    }

    /// Sends the thread a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        let tid = self.tid.load(Ordering::Relaxed);
        if tid == 0 {
            return Err(context_ended());
        }
        // SAFETY: takes numbers. For a thread that has ended meanwhile the kernel returns an error.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) };
        if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cold]
pub(crate) fn context_ended() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the context has ended")
}
