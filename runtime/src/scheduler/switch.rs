//! Switching stacks: enter, resume, suspend.

#![allow(unsafe_code)]

use std::panic::{Location, resume_unwind};
use std::sync::atomic::{Ordering, compiler_fence};
use std::thread;

use corosensei::CoroutineResult;

use crate::coroutine::{Cancelled, ControlBlock, CoroutineId, EnterError, LocalState, Resume, State, WaitReason};
use crate::scheduler::{Frame, Scheduler, store_backtrace};
use crate::sys::{Payload, prefetch};
use crate::trace::addresses;

impl Scheduler {
    /// Enters `id`, or returns the reason why it cannot be entered (rule C5).
    ///
    /// # Control
    ///
    /// Enters the coroutine, then the coroutines that it woke.
    #[inline]
    pub(crate) fn try_enter(&self, id: CoroutineId) -> Result<(), EnterError> {
        if id.is_live() && self.local(id.block).state.get() == State::Suspended && !id.block.word.is_scheduled() {
            if self.is_panicking() {
                self.above_unwinding(|| self.enter(id.block));
            } else {
                self.enter(id.block);
            }
            return Ok(());
        }
        Err(self.refuse_to_enter(id))
    }

    #[cold]
    fn refuse_to_enter(&self, id: CoroutineId) -> EnterError {
        if !id.is_live() {
            return EnterError::Ended;
        }
        let local = self.local(id.block);
        let name = local.label().to_string();
        match local.state.get() {
            State::Suspended | State::Scheduled => EnterError::Scheduled { name, at: id.block.scheduled_at() },
            State::Entered => {
                let chain = self.chain().to_string();
                if let Some(tracer) = &self.shared.tracer {
                    tracer.violation(format!("recursive entry: {name} is entered already, by {chain}"));
                }
                EnterError::Recursive { name, chain }
            }
            State::Finished | State::Free => EnterError::Ended,
        }
    }

    /// Runs `first`, then the coroutines that were woken meanwhile. Propagates a panic of a
    /// coroutine without a join handle.
    #[inline]
    pub(super) fn enter(&self, first: &'static ControlBlock) {
        let frame = Frame::above(self);
        let _leave = frame.push(self);
        let mut next = Some(first);
        while let Some(block) = next {
            self.running.set(Some(block));
            frame.lock_depth.set(self.shared.lock_depth());
            if let Some(payload) = self.resume(block, Resume::Continue) {
                resume_unwind(payload);
            }
            next = frame.deferred.pop();
        }
    }

    /// Switches to a coroutine's stack, until it yields or ends. Returns the payload of a panic to
    /// propagate.
    #[inline]
    pub(super) fn resume(&self, block: &'static ControlBlock, how: Resume) -> Option<Payload> {
        if self.has_tracer { self.trace_and_resume(block, how) } else { self.switch_in(block, how) }
    }

    #[cold]
    fn trace_and_resume(&self, block: &'static ControlBlock, how: Resume) -> Option<Payload> {
        let local = self.local(block);
        let tracer = self.shared.tracer.as_ref();
        let id = block.id();
        if let Some(tracer) = tracer {
            tracer.enter(id.traced(), how == Resume::Unwind, local.suspended_at.get());
        }
        let payload = self.switch_in(block, how);
        // The end of a coroutine was traced before its block was reused.
        if let (Some(tracer), true) = (tracer, id.is_live() && local.state.get() != State::Finished) {
            // The event is written on this stack, but its lines are those of the coroutine's stack.
            let calls = if tracer.has_source() { self.walk(block, || Box::new(addresses())) } else { None };
            tracer.yielded(id.traced(), local.wait_reason.get().into(), local.suspended_at.get(), calls);
        }
        payload
    }

    /// Prefetches the first kilobyte of a coroutine's stack while another coroutine runs: with a
    /// thousand coroutines, the cache has evicted that memory since the coroutine last ran. Does
    /// nothing for a coroutine that has not run yet: its creation touched the stack.
    #[inline]
    pub(super) fn prefetch(&self, block: &'static ControlBlock) {
        let root = self.local(block).yielder.get().cast::<u8>();
        if !root.is_null() {
            prefetch(root.wrapping_sub(15 * 64), 16 * 64);
        }
    }

    /// The only place that switches to a coroutine's stack (besides `walk`).
    #[inline]
    fn switch_in(&self, block: &'static ControlBlock, how: Resume) -> Option<Payload> {
        let local = self.local(block);
        #[cfg(feature = "tracing")]
        let span = self.enter_span(block);
        local.state.set(State::Entered);
        block.word.clear_scheduled();
        // SAFETY: the state was Suspended or Scheduled, so the raw coroutine is in its slot; now it
        // is Entered, and no other code touches it (*taken out while it runs*).
        let raw = unsafe { (*local.raw.get()).assume_init_mut() };
        self.switching.set(true);
        let result = raw.resume(how);
        self.switching.set(false);
        #[cfg(feature = "tracing")]
        self.leave_span(block, span, matches!(result, CoroutineResult::Return(())));
        match result {
            CoroutineResult::Yield(()) => None,
            CoroutineResult::Return(()) => self.finish(block),
        }
    }

    /// Suspends like `suspend_if_possible`, for callers that have no other way to wait.
    ///
    /// # Control
    ///
    /// Yields. Unwinds instead of returning if the context, or its scope, ends meanwhile.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn suspend_for(&self, reason: WaitReason) {
        if !self.suspend_if_possible(reason) {
            self.suspend_above_unwinding();
        }
    }

    /// Suspends like `suspend_for`, for waits that can fail: returns the error in a destructor on
    /// the coroutine's own unwinding stack.
    ///
    /// # Control
    ///
    /// As `suspend_for`.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn try_suspend_for(&self, reason: WaitReason) -> Result<(), Cancelled> {
        if self.suspend_if_possible(reason) { Ok(()) } else { self.suspend_or_fail() }
    }

    /// Suspends the running coroutine. Returns false immediately if any stack of this thread is
    /// unwinding: I/O is then waited for in place. This includes a stack below that unwinds, so
    /// that a coroutine that panics above it, and does I/O in a destructor, is not suspended.
    ///
    /// The whole path from the public functions to the switch is inlined: the processor predicts
    /// returns from the most recent calls, so each frame that is left on another stack costs a
    /// mispredicted return. `inline(always)`, because plain `inline` is not honoured in a build
    /// with one codegen unit.
    ///
    /// # Control
    ///
    /// Yields. Unwinds instead of returning if the context, or its scope, ends meanwhile.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn suspend_if_possible(&self, reason: WaitReason) -> bool {
        let Some(block) = self.running.get() else { yields_outside() };
        let local = self.local(block);
        // First, and not passed on: a copy of the reason would take a dozen instructions.
        local.wait_reason.set(reason);
        if local.unwinding.get() || thread::panicking() {
            return false;
        }
        self.leave_stack(block);
        true
    }

    /// Leaves the stack of the running coroutine, which has recorded what it waits for: the only
    /// place that does.
    #[inline(always)]
    #[track_caller]
    pub(super) fn leave_stack(&self, block: &'static ControlBlock) {
        // SAFETY: as in `frame`; the running coroutine was entered from one.
        let frame = unsafe { &*self.top.get() };
        let local = self.local(block);
        if self.shared.lock_depth() > frame.lock_depth.get() {
            yields_with_lock(local, self.shared.lock_depth() - frame.lock_depth.get());
        }
        local.suspended_at.set(Location::caller());
        local.since.set(self.clock.ms());
        // Last, for an inspector that stops this thread: a suspended coroutine has recorded what it
        // waits for.
        compiler_fence(Ordering::SeqCst);
        local.state.set(State::Suspended);
        if local.woken.take() {
            self.make_ready(block, Location::caller());
        }
        self.switch_out(local);
    }

    /// Suspends the running coroutine until all other ready coroutines have run.
    ///
    /// # Control
    ///
    /// Yields.
    #[inline(always)]
    #[track_caller]
    pub(crate) fn reschedule(&self) {
        if let Some(block) = self.running() {
            self.local(block).woken.set(true);
        }
        self.suspend_for(WaitReason::Turn);
    }

    #[inline(always)]
    fn switch_out(&self, local: &LocalState) {
        self.switching.set(true);
        // SAFETY: the yielder lies at the root of the running stack, so it is alive.
        let how = unsafe { &*local.yielder.get() }.suspend(());
        self.switching.set(false);
        match how {
            Resume::Continue => {}
            other => resumed_otherwise(other),
        }
    }
}

/// Handles a resume to unwind or to take a backtrace. Cold and out of line, to keep `suspend`
/// small.
#[cold]
#[inline(never)]
fn resumed_otherwise(mut how: Resume) {
    loop {
        match how {
            Resume::Continue => return,
            Resume::Unwind => resume_unwind(Box::new(Cancelled)),
            Resume::Backtrace => {
                let yielder = store_backtrace();
                let scheduler = Scheduler::expect("a backtrace");
                scheduler.switching.set(true);
                // SAFETY: as in `switch_out`.
                how = unsafe { &*yielder }.suspend(());
                scheduler.switching.set(false);
            }
        }
    }
}

#[cold]
#[track_caller]
fn yields_outside() -> ! {
    panic!("yield outside a coroutine: only a coroutine can be suspended; spawn one")
}

#[cold]
#[track_caller]
fn yields_with_lock(local: &LocalState, guards: u32) -> ! {
    panic!(
        "coroutine {} yields while it holds the context's lock ({guards} {}): the next coroutine would run under it; \
         drop the guards first",
        local.label(),
        if guards == 1 { "guard" } else { "guards" }
    )
}
