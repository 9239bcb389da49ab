//! A program that kills the process, or hangs and is killed, cannot be shrunk; but its seed is
//! printed.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::common::in_child;

/// The seed of the running program.
static SEED: AtomicU64 = AtomicU64::new(0);
static RUNS: AtomicBool = AtomicBool::new(false);

/// Records that a program is running. All accesses are relaxed: only an ending process reads this,
/// and then a superfluous message is harmless.
pub(crate) fn is_about(seed: u64) {
    SEED.store(seed, Ordering::Relaxed);
    RUNS.store(true, Ordering::Relaxed);
}

/// Records that no program is running.
pub(crate) fn is_over() {
    RUNS.store(false, Ordering::Relaxed);
}

/// Prints the seed when a signal ends the process.
pub(crate) fn listen() {
    for signal in [libc::SIGABRT, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGTERM, libc::SIGINT] {
        // SAFETY: every field that `sigaction` reads is set; the handler only does what a signal
        // handler may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = tell as extern "C" fn(libc::c_int) as usize;
            // Once: a second signal has its default effect.
            action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

extern "C" fn tell(signal: libc::c_int) {
    const WORDS: &[u8] = b"\nit ended in a program; replay with CORALIO_PROPERTY_SEED=0x";
    let seed = SEED.load(Ordering::Relaxed);
    let mut text = [b'\n'; WORDS.len() + 17];
    text[..WORDS.len()].copy_from_slice(WORDS);
    for (digit, at) in (WORDS.len()..WORDS.len() + 16).enumerate() {
        text[at] = b"0123456789abcdef"[(seed >> (60 - 4 * digit)) as usize & 15];
    }
    // SAFETY: the text is initialised; both calls are allowed in a signal handler.
    unsafe {
        if RUNS.load(Ordering::Relaxed) {
            libc::write(2, text.as_ptr().cast(), text.len());
        }
        libc::raise(signal);
    }
}

#[test]
fn aborting_program_is_named() {
    // The seed of a program that ends the process is printed on standard error
    let Some(child) = in_child("last_word::aborting_program_is_named") else {
        listen();
        is_about(0x7a);
        std::process::abort();
    };
    crate::common::assert_aborted(&child, "CORALIO_PROPERTY_SEED=0x000000000000007a");
}
