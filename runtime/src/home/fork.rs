//! The child of a `fork` in a context: it has a copy of the coroutines, but the descriptors that the loop sleeps on are
//! its parent's, and so is the I/O in flight. So the child's context is put out of use as soon as there is a child.
//!
//! ```text
//!   parent                    child
//!   ------                    -----
//!   'A' calls fork()          HOME is null; nobody is on a list; nothing is woken any more
//!   'A' goes on               'A' goes on: exec and _exit are fine, using the context panics
//!   ..                        returning from `run` leaks what is left, and says so
//! ```
//!
//! A handler of `pthread_atfork` does that, so nothing else looks for it: whoever asks for the home finds none, and asks
//! here why. A child that is made by a bare `clone` is not noticed; std's `Command` makes no child that runs our code.

#![allow(unsafe_code)]

use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{mem, thread};

use crate::coroutine::control::State;
use crate::report::report;

use super::{HIDDEN, HOME, Home};

/// Relaxed, always: it is set while the child has one thread, which then makes all others.
static IN_CHILD: AtomicBool = AtomicBool::new(false);

/// Whether this process was forked by code that ran in a context.
#[inline]
pub(crate) fn in_child() -> bool {
    IN_CHILD.load(Ordering::Relaxed)
}

/// Panics in such a process, unless it panics already. For the ways that are taken where there is no home.
#[cold]
#[track_caller]
pub(crate) fn refuse_in_child(what: &str) {
    assert!(
        !in_child() || thread::panicking(),
        "{what} after fork: this process was forked from one that runs a context, and the context is the parent's; \
         call exec or _exit in the child, or fork before `run`"
    );
}

/// Has forks noticed from now on.
pub(super) fn notice_forks() {
    static NOTICED: Once = Once::new();
    NOTICED.call_once(|| {
        // SAFETY: the handler runs in the child, on the thread that forked, and does what may be done there.
        let failed = unsafe { libc::pthread_atfork(None, None, Some(after_fork)) };
        assert_eq!(failed, 0, "no memory to have forks noticed");
    });
}

/// Allocates nothing and waits for no lock: another thread of the parent's may have held it.
unsafe extern "C" fn after_fork() {
    let Some(home) = Home::current_or_hidden() else { return };
    IN_CHILD.store(true, Ordering::Relaxed);
    HOME.set(std::ptr::null());
    HIDDEN.set(std::ptr::null());
    home.ending.set(true);
    home.forget_ready();
    home.shared.bottom_halves.forget_due();
    home.shared.watches.forget_ready();
    home.shared.pollers.forget();
    home.shared.timers.forget_due();
}

impl Home {
    /// Nobody who was woken goes on.
    fn forget_ready(&self) {
        while self.ready.pop().is_some() || self.taken.pop().is_some() {}
        let mut frame = self.frame();
        while let Some(inner) = frame {
            while inner.woken.pop().is_some() {}
            // SAFETY: as in `Home::frame`.
            frame = unsafe { inner.parent.as_ref() };
        }
    }

    /// The child returns from `run`: its copies are never unwound, as they would wait for the parent's I/O.
    pub(super) fn leave_in_child(self) {
        let left = self.blocks.all().filter(|block| self.own(block).state.get() != State::Free).count();
        report(format_args!(
            "coralio: a process that was forked from one that runs a context returned from it; its copies of {left} \
             coroutines are leaked; call exec or _exit in the child, or fork before `run`"
        ));
        mem::forget(self);
    }
}
