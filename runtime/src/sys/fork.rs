//! Whether this process is the child of a `fork` by code that ran in a context.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Relaxed: set while the child has a single thread, which creates all its other threads.
static IN_CHILD: AtomicBool = AtomicBool::new(false);

/// Records that this process is such a child. Called once, in the child, by the fork handler.
pub(crate) fn enter_child() {
    IN_CHILD.store(true, Ordering::Relaxed);
}

/// Returns whether this process was forked by code that ran in a context.
#[inline]
pub(crate) fn in_child() -> bool {
    IN_CHILD.load(Ordering::Relaxed)
}

/// Panics in such a process, unless it is panicking already. Called where there is no home.
#[cold]
#[track_caller]
pub(crate) fn refuse_in_child(what: &str) {
    assert!(
        !in_child() || thread::panicking(),
        "{what} after fork: the process was forked inside a context, which belongs to the parent; call exec or _exit \
         in the child, or fork before `run`"
    );
}
