//! Suppresses the output of panics that are part of the search: shrinking a tape runs the failing
//! code hundreds of times.

use std::cell::RefCell;
use std::panic;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

/// When suppression starts: immediately, or when a counter exceeds a number.
type When = Option<(Arc<AtomicU32>, u32)>;

thread_local! {
    /// The requests for suppression in force.
    static QUIET: RefCell<Vec<When>> = const { RefCell::new(Vec::new()) };
}

/// Suppresses the output of panics on this thread while it exists.
pub(super) struct SilentPanics(());

impl SilentPanics {
    pub(super) fn new() -> SilentPanics {
        SilentPanics::enter(None)
    }

    /// As `new`, from the moment `counter` exceeds its current value.
    pub(super) fn after(counter: &Arc<AtomicU32>) -> SilentPanics {
        SilentPanics::enter(Some((Arc::clone(counter), counter.load(Ordering::Relaxed))))
    }

    fn enter(when: When) -> SilentPanics {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let loud = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                if !is_quiet() {
                    loud(info);
                }
            }));
        });
        QUIET.with_borrow_mut(|all| all.push(when));
        SilentPanics(())
    }
}

fn is_quiet() -> bool {
    // Relaxed: incremented on this thread.
    let is_due = |when: &When| when.as_ref().is_none_or(|(counter, above)| counter.load(Ordering::Relaxed) > *above);
    // While its thread ends the list may be gone.
    QUIET.try_with(|all| all.borrow().iter().any(is_due)).unwrap_or(false)
}

impl Drop for SilentPanics {
    fn drop(&mut self) {
        QUIET.with_borrow_mut(|all| all.pop());
    }
}
