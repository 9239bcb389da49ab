//! Coroutines and unwinding stacks. The panic state belongs to the thread: a coroutine whose stack
//! unwinds cannot be suspended, since another coroutine would see that state.

use std::cell::Cell;
use std::panic::{Location, resume_unwind};
use std::{ptr, thread};

use crate::coroutine::{Cancelled, CoroutineId, LocalState};
use crate::scheduler::Scheduler;
use crate::sys::abort;
use crate::trace::WaitKind;

/// How often a coroutine may catch the unwinding and wait again.
const MAX_SWALLOWED: u16 = 1000;

pub(super) struct Unwinding {
    /// The context, the innermost iteration, or the innermost explicit enter began while the thread
    /// was unwinding: the unwinding stack lies below it. Coroutines that run above may be
    /// suspended.
    beneath: Cell<bool>,
    /// The coroutine most recently suspended above an unwinding stack. For messages.
    suspended_above: Cell<Option<CoroutineId>>,
}

impl Default for Unwinding {
    fn default() -> Unwinding {
        Unwinding { beneath: Cell::new(thread::panicking()), suspended_above: Cell::new(None) }
    }
}

impl Scheduler {
    /// Returns whether the running coroutine can be suspended here. False outside a coroutine, and
    /// while the coroutine's stack unwinds: the panic state belongs to the thread, and another
    /// coroutine would see it.
    #[inline]
    pub(crate) fn can_suspend(&self) -> bool {
        self.running().is_some_and(|block| !self.local(block).unwinding.get() && !self.is_panicking())
    }

    /// Returns whether a panic unwinds a stack, apart from a stack below that was unwinding already
    /// (`Unwinding::beneath`). The standard library counts panics per thread and shows only whether
    /// the count is 0. So while a stack below unwinds, this does not detect a panic of the running
    /// coroutine itself.
    #[inline]
    pub(super) fn is_panicking(&self) -> bool {
        thread::panicking() && !self.unwinding.beneath.get()
    }

    /// Runs `f`, called by a destructor while its thread unwinds. The unwinding stack lies below:
    /// coroutines that `f` enters are not affected, and may be suspended.
    #[cold]
    pub(super) fn above_unwinding<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Restore<'a>(&'a Scheduler);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.unwinding.beneath.set(false);
            }
        }
        self.unwinding.beneath.set(true);
        let _restore = Restore(self);
        f()
    }

    /// Suspends the running coroutine if only a stack below its own unwinds; otherwise refuses.
    #[cold]
    #[track_caller]
    pub(super) fn suspend_above_unwinding(&self) {
        let block = self.running().expect("only a coroutine is refused");
        if !self.can_suspend() {
            return self.refuse_to_suspend(self.local(block), Location::caller());
        }
        self.unwinding.suspended_above.set(Some(block.id()));
        self.leave_stack(block);
    }

    /// Suspends as `suspend_above_unwinding`, for waits that can fail: returns the error in a
    /// destructor on the coroutine's own unwinding stack.
    #[cold]
    #[track_caller]
    pub(super) fn suspend_or_fail(&self) -> Result<(), Cancelled> {
        let block = self.running().expect("only a coroutine is refused");
        if self.is_panicking() && self.hidden_unwinding(self.local(block)).is_none() {
            return Err(Cancelled);
        }
        self.suspend_above_unwinding();
        Ok(())
    }

    /// Returns another coroutine that was suspended above an unwinding stack. A panic of that
    /// coroutine may be undetected, and the thread's panic state may be due to that panic.
    fn hidden_unwinding(&self, local: &LocalState) -> Option<CoroutineId> {
        self.unwinding.suspended_above.get().filter(|other| other.is_live() && !ptr::eq(self.local(other.block), local))
    }

    #[cold]
    fn refuse_to_suspend(&self, local: &LocalState, wait: &Location<'_>) {
        if local.unwinding.get() && !self.is_panicking() {
            // The coroutine caught the unwinding and continued. Unwind it again, but not for ever.
            let swallowed = local.swallowed.get() + 1;
            local.swallowed.set(swallowed);
            if swallowed < MAX_SWALLOWED {
                resume_unwind(Box::new(Cancelled));
            }
            abort(format_args!(
                "coroutine {} (created at {}) was cancelled but caught the unwinding {swallowed} times and waited \
                 again; rethrow the payload `Cancelled`",
                local.label(),
                local.created_at.get()
            ));
        }
        let (name, at, kind) = (local.label(), local.created_at.get(), WaitKind::from(local.wait_reason.get()));
        if let Some(other) = self.hidden_unwinding(local) {
            abort(format_args!(
                "coroutine {name} (created at {at}) waits for {kind}, at {wait}, while a stack of its thread unwinds: its \
                 local, or that of coroutine {}, which waited above another stack that unwound; a destructor may do I/O, \
                 but not wait for another coroutine",
                self.local(other.block).label()
            ));
        }
        abort(format_args!(
            "coroutine {name} (created at {at}) waits for {kind}, at {wait}, while its stack unwinds; a destructor may do \
             I/O, and call waits that return `Cancelled` there, but this one cannot return it"
        ));
    }
}
