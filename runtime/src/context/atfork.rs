//! The child of a `fork` in a context: it has a copy of the coroutines, but the loop's descriptors
//! and the I/O in flight belong to the parent. So the child's context is disabled as soon as the
//! child exists.
//!
//! ```text
//!   parent                    child
//!   ------                    -----
//!   'A' calls fork()          HOME is null; all run lists are empty; wakes do nothing
//!   'A' continues             'A' continues: exec and _exit are fine, using the context panics
//!   ..                        returning from `run` leaks the remaining coroutines, with a message
//! ```
//!
//! A `pthread_atfork` handler does that, so no other code checks for a fork on its fast path: code
//! that looks for the home finds none, and asks this module why. A child made by a bare `clone` is
//! not noticed; std's `Command` makes no child that runs our code.

#![allow(unsafe_code)]

use std::mem;
use std::sync::Once;

use crate::coroutine::control_block::State;
use crate::scheduler::{HOME, Home, SUSPENDED};
use crate::sys::fork::enter_child;
use crate::sys::report::report;

/// Installs the fork handler, once.
pub(crate) fn notice_forks() {
    static NOTICED: Once = Once::new();
    NOTICED.call_once(|| {
        // SAFETY: the handler runs in the child, on the thread that forked, and does only what is
        // permitted there.
        let failed = unsafe { libc::pthread_atfork(None, None, Some(after_fork)) };
        assert_eq!(failed, 0, "no memory to install the fork handler");
    });
}

/// Disables the child's context. Allocates nothing and takes no lock: another thread of the parent
/// may have held it.
unsafe extern "C" fn after_fork() {
    let Some(home) = Home::current_or_suspended() else { return };
    enter_child();
    HOME.set(std::ptr::null());
    SUSPENDED.set(std::ptr::null());
    home.ending.set(true);
    home.forget_ready();
    home.shared.bottom_halves.forget_due();
    home.shared.watches.forget_ready();
    home.shared.pollers.forget();
    home.shared.timers.forget_due();
}

impl Home {
    /// Empties the run lists: no woken coroutine resumes.
    fn forget_ready(&self) {
        while self.ready.pop().is_some() || self.taken.pop().is_some() {}
        let mut frame = self.frame();
        while let Some(inner) = frame {
            while inner.deferred.pop().is_some() {}
            // SAFETY: as in `Home::frame`.
            frame = unsafe { inner.parent.as_ref() };
        }
    }

    /// Leaks the home when the child returns from `run`: the child's copies of coroutines are never
    /// unwound, since they would wait for the parent's I/O.
    pub(crate) fn leave_in_child(self) {
        let left = self.blocks.all().filter(|block| self.local(block).state.get() != State::Free).count();
        report(format_args!(
            "coralio: a forked child returned from its parent's context, leaking its copies of {left} coroutines; call \
             exec or _exit in the child, or fork before `run`"
        ));
        mem::forget(self);
    }
}
