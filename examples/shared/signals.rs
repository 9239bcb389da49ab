//! SIGINT, SIGTERM and SIGHUP end a program in order: the handler records the signal, and
//! coroutines check for it or wait for it.

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// The first signal caught, or 0. Relaxed: publishes no other data.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// A pipe to which the handler writes a byte, or -1. Relaxed: set before the handler is installed.
static TOLD: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note(signal: libc::c_int) {
    CAUGHT.store(signal, Ordering::Relaxed);
    let told = TOLD.load(Ordering::Relaxed);
    // SAFETY: as in `listen`; the pipe is never closed, and the byte is a constant. A second signal
    // ends the program, because its default action is restored.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if told >= 0 {
            libc::write(told, [0u8].as_ptr().cast(), 1);
        }
    }
}

/// Starts recording signals. Each signal also writes a byte to `pipe`, for a coroutine that waits
/// for it.
pub fn listen(pipe: Option<OwnedFd>) {
    TOLD.store(pipe.map_or(-1, IntoRawFd::into_raw_fd), Ordering::Relaxed);
    let handler = note as extern "C" fn(libc::c_int);
    // SAFETY: `note` is async-signal-safe: it accesses atomics and calls signal and write.
    unsafe {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // Keep a signal ignored that the parent process has ignored (nohup).
            if libc::signal(signal, handler as libc::sighandler_t) == libc::SIG_IGN {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
        // At the file-size limit, get an error instead of a fatal signal.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

pub fn caught() -> Option<u8> {
    Some(CAUGHT.load(Ordering::Relaxed) as u8).filter(|&signal| signal != 0)
}
