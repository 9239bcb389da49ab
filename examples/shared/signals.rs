//! SIGINT, SIGTERM and SIGHUP end a program in order: the handler notes the signal, and the coroutines look, or wait for it.

use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// The first signal that came; 0: none. Relaxed, because nothing else is handed over with it.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

/// A pipe that the handler writes a byte to; -1: none. Relaxed, because it is set before there is a handler.
static TOLD: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note(signal: libc::c_int) {
    CAUGHT.store(signal, Ordering::Relaxed);
    let told = TOLD.load(Ordering::Relaxed);
    // SAFETY: as in `listen`; the pipe is never closed, and the byte is a constant. Whoever is in a hurry sends it twice.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if told >= 0 {
            libc::write(told, [0u8].as_ptr().cast(), 1);
        }
    }
}

/// From here on signals are noted; and told to `pipe`, for whoever sleeps until one comes.
pub fn listen(pipe: Option<OwnedFd>) {
    TOLD.store(pipe.map_or(-1, IntoRawFd::into_raw_fd), Ordering::Relaxed);
    let handler = note as extern "C" fn(libc::c_int);
    // SAFETY: `note` does only what a signal handler may: it stores to an atomic, and calls signal and write.
    unsafe {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // Who started us may have wanted it ignored (nohup).
            if libc::signal(signal, handler as libc::sighandler_t) == libc::SIG_IGN {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
        // At the file-size limit we want the error, not the end.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

pub fn caught() -> Option<u8> {
    Some(CAUGHT.load(Ordering::Relaxed) as u8).filter(|&signal| signal != 0)
}
