//! The child of a `fork` in a context: it has a copy of the coroutines, but the loop's descriptors
//! and the I/O in flight belong to the parent. So the child's context is disabled as soon as the
//! child exists.
//!
//! ```text
//!   parent                    child
//!   ------                    -----
//!   'A' calls fork()          no context is current; all run lists are empty; wakes do nothing
//!   'A' continues             'A' continues: exec and _exit are fine, using the context panics
//!   ..                        returning from `run` leaks the remaining coroutines, with a message
//! ```
//!
//! A `pthread_atfork` handler does that, so no other code checks for a fork on its fast path: code
//! that looks for the home finds none, and asks this module why. A child made by a bare `clone` is
//! not noticed; std's `Command` makes no child that runs our code.

#![allow(unsafe_code)]

use std::sync::Once;

use crate::context::LocalContext;
use crate::context::local;
use crate::scheduler::Scheduler;
use crate::sys::{enter_child, report};

/// Installs the fork handler, once.
pub(super) fn install() {
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
    let Some(home) = LocalContext::current_or_suspended() else { return };
    enter_child();
    local::disable();
    home.scheduler.set_ending();
    home.scheduler.forget_ready();
}

/// Reports that the child returns from `run`, where its copies of coroutines are leaked.
pub(super) fn report_leak(scheduler: &Scheduler) {
    let left = scheduler.live_in_any_order().count();
    report(format_args!(
        "coralio: a forked child returned from its parent's context, leaking its copies of {left} {}; call exec or \
         _exit in the child, or fork before `run`",
        if left == 1 { "coroutine" } else { "coroutines" }
    ));
}
