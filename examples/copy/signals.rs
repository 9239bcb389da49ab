//! SIGINT, SIGTERM and SIGHUP end the copy in order: the handler notes the signal, and the coroutines look.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

/// The first signal that came; 0: none. Relaxed, because nothing else is handed over with it.
static CAUGHT: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    CAUGHT.store(signal, Ordering::Relaxed);
    // SAFETY: as in `listen`. Whoever is in a hurry sends it twice.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

pub fn listen() {
    let handler = note as extern "C" fn(libc::c_int);
    // SAFETY: `note` does only what a signal handler may: it stores to an atomic, and calls signal.
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

/// An error once a signal came.
pub fn check() -> io::Result<()> {
    match caught() {
        None => Ok(()),
        Some(signal) => Err(io::Error::new(io::ErrorKind::Interrupted, format!("stopped by signal {signal}"))),
    }
}
