//! Switching stacks: enter, resume, suspend, and the frames that record the entered coroutines.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::panic::{Location, resume_unwind};
use std::sync::atomic::{Ordering, compiler_fence};
use std::{fmt, ptr, thread};

use corosensei::CoroutineResult;

use crate::coroutine::control_block::{BlockRef, ControlBlock, LocalState, Resume, RunQueue, State};
use crate::coroutine::error::{Cancelled, EnterError};
use crate::coroutine::wait_reason::WaitReason;
use crate::diagnostics::backtrace::leave_trace;
use crate::scheduler::{Home, abort};

/// An `enter`, or an iteration of the loop, that has not returned.
pub(crate) struct Frame {
    pub(crate) parent: *const Frame,
    /// The coroutine that ran when this frame was pushed.
    outer: Option<&'static ControlBlock>,
    /// Coroutines woken by the running one; they run next, from this frame.
    pub(crate) deferred: RunQueue,
    /// The lock depth when the running coroutine was resumed: it may not suspend with more (rule
    /// X8).
    pub(crate) lock_depth: Cell<u32>,
}

impl Frame {
    #[inline]
    pub(crate) fn above(home: &Home) -> Frame {
        Frame { parent: home.top.get(), outer: home.running.get(), deferred: RunQueue::new(), lock_depth: Cell::new(0) }
    }

    #[inline]
    pub(crate) fn push<'a>(&'a self, home: &'a Home) -> FrameGuard<'a> {
        // Fenced, for a thread that stops this one: a frame on the chain is complete.
        compiler_fence(Ordering::SeqCst);
        home.top.set(self);
        FrameGuard { home, frame: self }
    }
}

/// Pops a frame, also on unwinding: `top` never points at a frame that is gone.
pub(crate) struct FrameGuard<'a> {
    home: &'a Home,
    frame: &'a Frame,
}

impl Drop for FrameGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // After a panic coroutines remain on the frame's list: none of them may be lost.
        self.home.ready.append(&self.frame.deferred);
        self.home.top.set(self.frame.parent);
        self.home.running.set(self.frame.outer);
        // As in `push`: the frame's memory is reused after this.
        compiler_fence(Ordering::SeqCst);
    }
}

impl Home {
    /// Enters `id`, or returns the reason why it cannot be entered (rule C5).
    ///
    /// # Control
    ///
    /// Enters the coroutine, then the coroutines that it woke.
    #[inline]
    pub(crate) fn try_enter(&self, id: BlockRef) -> Result<(), EnterError> {
        if id.is_live() && self.local(id.block).state.get() == State::Suspended && !id.block.word.is_scheduled() {
            if thread::panicking() && !self.unwinds_beneath.get() {
                self.above_unwinding(|| self.enter(id.block));
            } else {
                self.enter(id.block);
            }
            return Ok(());
        }
        Err(self.refuse_to_enter(id))
    }

    #[cold]
    fn refuse_to_enter(&self, id: BlockRef) -> EnterError {
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
    pub(crate) fn enter(&self, first: &'static ControlBlock) {
        let frame = Frame::above(self);
        let _leave = frame.push(self);
        let mut next = Some(first);
        while let Some(block) = next {
            self.running.set(Some(block));
            frame.lock_depth.set(self.shared.lock.depth());
            if let Some(payload) = self.resume(block, Resume::Continue) {
                resume_unwind(payload);
            }
            next = frame.deferred.pop();
        }
    }

    /// Switches to a coroutine's stack, until it yields or ends. Returns the payload of a panic to
    /// propagate.
    #[inline]
    pub(crate) fn resume(&self, block: &'static ControlBlock, how: Resume) -> Option<Box<dyn Any + Send>> {
        if self.has_tracer { self.trace_and_resume(block, how) } else { self.switch_in(block, how) }
    }

    #[cold]
    fn trace_and_resume(&self, block: &'static ControlBlock, how: Resume) -> Option<Box<dyn Any + Send>> {
        let local = self.local(block);
        let tracer = self.shared.tracer.as_ref();
        let id = block.id();
        if let Some(tracer) = tracer {
            tracer.enter(id, how == Resume::Unwind, local.suspended_at.get());
        }
        let payload = self.switch_in(block, how);
        // The end of a coroutine was traced before its block was reused.
        if let (Some(tracer), true) = (tracer, id.is_live() && local.state.get() != State::Finished) {
            tracer.yielded(id, local.wait_reason.get().into(), local.suspended_at.get());
        }
        payload
    }

    /// The only place that switches to a coroutine's stack (besides `Home::trace`).
    #[inline]
    fn switch_in(&self, block: &'static ControlBlock, how: Resume) -> Option<Box<dyn Any + Send>> {
        let local = self.local(block);
        local.state.set(State::Entered);
        block.word.clear_scheduled();
        // SAFETY: the state was Suspended or Scheduled, so the machine is in its slot; now it is
        // Entered, and no other code touches it (*taken out while it runs*).
        let machine = unsafe { (*local.raw.get()).assume_init_mut() };
        self.switching.set(true);
        let result = machine.resume(how);
        self.switching.set(false);
        match result {
            CoroutineResult::Yield(()) => None,
            CoroutineResult::Return(()) => self.finish(block),
        }
    }

    /// Returns whether the running coroutine can be suspended here. It cannot outside a coroutine,
    /// nor while its stack unwinds: the panic state belongs to the thread, and another coroutine
    /// would see it.
    #[inline]
    pub(crate) fn can_suspend(&self) -> bool {
        self.running().is_some_and(|block| !self.local(block).unwinding.get() && !self.is_panicking())
    }

    /// Returns whether a panic unwinds a stack other than one that was unwinding below already
    /// (`unwinds_beneath`). The standard library counts panics per thread and shows only whether the
    /// count is 0, so while a stack below unwinds, a panic of the running coroutine itself goes
    /// unnoticed.
    #[inline]
    fn is_panicking(&self) -> bool {
        thread::panicking() && !self.unwinds_beneath.get()
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
            self.suspend_above_unwinding(reason);
        }
    }

    /// Suspends the running coroutine. Returns false immediately if any stack of this thread is
    /// unwinding: I/O is then waited for in place. That holds also if the unwinding stack lies below,
    /// so that a coroutine that panics above it, and does I/O in a destructor, is not suspended.
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
        if self.local(block).unwinding.get() || thread::panicking() {
            return false;
        }
        self.leave_stack(block, reason);
        true
    }

    /// Leaves the stack of the running coroutine: the only place that does.
    #[inline(always)]
    #[track_caller]
    fn leave_stack(&self, block: &'static ControlBlock, reason: WaitReason) {
        // SAFETY: as in `frame`; the running coroutine was entered from one.
        let frame = unsafe { &*self.top.get() };
        let local = self.local(block);
        if self.shared.lock.depth() > frame.lock_depth.get() {
            yields_with_lock(local, self.shared.lock.depth() - frame.lock_depth.get());
        }
        local.wait_reason.set(reason);
        local.suspended_at.set(Location::caller());
        local.since.set(self.clock.get());
        // Last, for a thread that stops this one: a suspended coroutine has recorded what it waits
        // for.
        compiler_fence(Ordering::SeqCst);
        local.state.set(State::Suspended);
        if local.woken.take() {
            self.make_ready(block, Location::caller());
        }
        self.switch_out(local);
    }

    /// Suspends the running coroutine if what unwinds is a stack beneath; else refuses to.
    #[cold]
    #[track_caller]
    fn suspend_above_unwinding(&self, reason: WaitReason) {
        let block = self.running().expect("only a coroutine is refused");
        if !self.can_suspend() {
            return self.refuse_to_suspend(self.local(block));
        }
        self.suspended_above.set(Some(block.id()));
        self.leave_stack(block, reason);
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

    #[cold]
    fn refuse_to_suspend(&self, local: &LocalState) {
        if local.unwinding.get() && !self.is_panicking() {
            // The coroutine caught the unwinding and continued. Unwind it again, but not for ever.
            let swallowed = local.swallowed.get() + 1;
            local.swallowed.set(swallowed);
            if swallowed < 1000 {
                resume_unwind(Box::new(Cancelled));
            }
            abort(format_args!(
                "coroutine {} (created at {}) was cancelled but caught the unwinding {swallowed} times and waited \
                 again; rethrow the payload `Cancelled`",
                local.label(),
                local.created_at.get()
            ));
        }
        let (name, at) = (local.label(), local.created_at.get());
        if let Some(other) =
            self.suspended_above.get().filter(|other| other.is_live() && !ptr::eq(self.local(other.block), local))
        {
            abort(format_args!(
                "coroutine {name} (created at {at}) waits while a stack of its thread unwinds: its local, or that of coroutine {}, \
                 which waited above another stack that unwound; a destructor may do I/O, but not wait for another coroutine",
                self.local(other.block).label()
            ));
        }
        abort(format_args!(
            "coroutine {name} (created at {at}) waits while its stack unwinds; a destructor may do I/O but not wait for \
             another coroutine"
        ));
    }

    /// Returns the entered coroutines, innermost first; `None` for an iteration of the loop.
    /// Allocates nothing.
    pub(crate) fn on_stack(&self) -> impl Iterator<Item = Option<&'static ControlBlock>> {
        let (mut frame, mut running) = (self.frame(), self.running.get());
        std::iter::from_fn(move || {
            let inner = frame?;
            // SAFETY: as in `Home::frame`.
            frame = unsafe { inner.parent.as_ref() };
            Some(std::mem::replace(&mut running, inner.outer))
        })
    }

    /// Returns the entered coroutines, outermost first.
    pub(crate) fn chain(&self) -> Chain<'_> {
        Chain(self)
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
                let yielder = leave_trace();
                let home = Home::expect("a backtrace");
                home.switching.set(true);
                // SAFETY: as in `switch_out`.
                how = unsafe { &*yielder }.suspend(());
                home.switching.set(false);
            }
        }
    }
}

/// `main > 'A' > loop > 'B'`: the entered coroutines, outermost first. Formatting allocates
/// nothing.
pub(crate) struct Chain<'a>(&'a Home);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The frames lead from the innermost outwards, so they are read in windows, the outermost
        // window first: that needs no allocation.
        let mut window = [None; 64];
        let mut left = self.0.on_stack().count();
        f.write_str("main")?;
        while left > 0 {
            let skipped = left.saturating_sub(window.len());
            let inner = &mut window[..left - skipped];
            inner.iter_mut().zip(self.0.on_stack().skip(skipped)).for_each(|(place, running)| *place = running);
            for running in inner.iter().rev() {
                match running {
                    Some(block) => write!(f, " > {}", self.0.local(block).label())?,
                    None => f.write_str(" > loop")?,
                }
            }
            left = skipped;
        }
        Ok(())
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
        "coroutine {} yields while it holds the context's lock ({guards} guards): the next coroutine would run under \
         it; drop the guards first",
        local.label()
    )
}
