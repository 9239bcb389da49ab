//! Switching stacks: enter, resume, suspend, and the frames that record the entered coroutines.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::panic::{Location, resume_unwind};
use std::sync::atomic::{Ordering, compiler_fence};
use std::{fmt, ptr, thread};

use corosensei::CoroutineResult;

use crate::coroutine::control_block::{Control, ControlList, CoroutineId, Own, Resume, State};
use crate::coroutine::error::{Cancelled, EnterError};
use crate::coroutine::wait_reason::Waiting;
use crate::diagnostics::backtrace::leave_trace;
use crate::scheduler::{Home, abort};

/// An `enter`, or an iteration of the loop, that has not returned.
pub(crate) struct Frame {
    pub(crate) parent: *const Frame,
    /// The coroutine that ran when this frame was pushed.
    outer: Option<&'static Control>,
    /// Coroutines woken by the running one; they run next, from this frame.
    pub(crate) woken: ControlList,
    /// The lock depth when the running coroutine was resumed: it may not suspend with more (rule
    /// X8).
    pub(crate) lock_depth: Cell<u32>,
}

impl Frame {
    #[inline]
    pub(crate) fn above(home: &Home) -> Frame {
        Frame { parent: home.top.get(), outer: home.running.get(), woken: ControlList::new(), lock_depth: Cell::new(0) }
    }

    #[inline]
    pub(crate) fn push<'a>(&'a self, home: &'a Home) -> Leave<'a> {
        // Fenced, for a thread that stops this one: a frame on the chain is complete.
        compiler_fence(Ordering::SeqCst);
        home.top.set(self);
        Leave { home, frame: self }
    }
}

/// Pops a frame, also on unwinding: `top` never points at a frame that is gone.
pub(crate) struct Leave<'a> {
    home: &'a Home,
    frame: &'a Frame,
}

impl Drop for Leave<'_> {
    #[inline]
    fn drop(&mut self) {
        // After a panic coroutines remain on the frame's list: none of them may be lost.
        self.home.ready.append(&self.frame.woken);
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
    pub(crate) fn try_enter(&self, id: CoroutineId) -> Result<(), EnterError> {
        if id.is_live() && self.own(id.block).state.get() == State::Suspended && !id.block.ticket.is_scheduled() {
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
    fn refuse_to_enter(&self, id: CoroutineId) -> EnterError {
        if !id.is_live() {
            return EnterError::Ended;
        }
        let own = self.own(id.block);
        let name = own.label().to_string();
        match own.state.get() {
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
    pub(crate) fn enter(&self, first: &'static Control) {
        let frame = Frame::above(self);
        let _leave = frame.push(self);
        let mut next = Some(first);
        while let Some(block) = next {
            self.running.set(Some(block));
            frame.lock_depth.set(self.shared.lock.depth());
            if let Some(payload) = self.resume(block, Resume::Go) {
                resume_unwind(payload);
            }
            next = frame.woken.pop();
        }
    }

    /// Switches to a coroutine's stack, until it yields or ends. Returns the payload of a panic to
    /// propagate.
    #[inline]
    pub(crate) fn resume(&self, block: &'static Control, how: Resume) -> Option<Box<dyn Any + Send>> {
        if self.traced { self.tell_and_resume(block, how) } else { self.switch_in(block, how) }
    }

    #[cold]
    fn tell_and_resume(&self, block: &'static Control, how: Resume) -> Option<Box<dyn Any + Send>> {
        let own = self.own(block);
        let tracer = self.shared.tracer.as_ref();
        let id = block.id();
        if let Some(tracer) = tracer {
            tracer.enter(id, how == Resume::Unwind, own.suspended_at.get());
        }
        let payload = self.switch_in(block, how);
        // The end of a coroutine was traced before its block was reused.
        if let (Some(tracer), true) = (tracer, id.is_live() && own.state.get() != State::Finished) {
            tracer.yielded(id, own.waiting.get().into(), own.suspended_at.get());
        }
        payload
    }

    /// The only place that switches to a coroutine's stack (besides `Home::trace`).
    #[inline]
    fn switch_in(&self, block: &'static Control, how: Resume) -> Option<Box<dyn Any + Send>> {
        let own = self.own(block);
        own.state.set(State::Entered);
        block.ticket.clear_scheduled();
        // SAFETY: the state was Suspended or Scheduled, so the machine is in its slot; now it is
        // Entered, and no other code touches it (*taken out while it runs*).
        let machine = unsafe { (*own.machine.get()).assume_init_mut() };
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
        self.running().is_some_and(|block| !self.own(block).unwinding.get() && !self.is_panicking())
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
    pub(crate) fn suspend_for(&self, waiting: Waiting) {
        if !self.suspend_if_possible(waiting) {
            self.suspend_above_unwinding(waiting);
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
    pub(crate) fn suspend_if_possible(&self, waiting: Waiting) -> bool {
        let Some(block) = self.running.get() else { yields_outside() };
        if self.own(block).unwinding.get() || thread::panicking() {
            return false;
        }
        self.leave_stack(block, waiting);
        true
    }

    /// Leaves the stack of the running coroutine: the only place that does.
    #[inline(always)]
    #[track_caller]
    fn leave_stack(&self, block: &'static Control, waiting: Waiting) {
        // SAFETY: as in `frame`; the running coroutine was entered from one.
        let frame = unsafe { &*self.top.get() };
        let own = self.own(block);
        if self.shared.lock.depth() > frame.lock_depth.get() {
            yields_with_lock(own, self.shared.lock.depth() - frame.lock_depth.get());
        }
        own.waiting.set(waiting);
        own.suspended_at.set(Location::caller());
        own.since.set(self.clock.get());
        // Last, for a thread that stops this one: a suspended coroutine has recorded what it waits
        // for.
        compiler_fence(Ordering::SeqCst);
        own.state.set(State::Suspended);
        if own.woken.take() {
            self.make_ready(block, Location::caller());
        }
        self.switch_out(own);
    }

    /// Suspends the running coroutine if what unwinds is a stack beneath; else refuses to.
    #[cold]
    #[track_caller]
    fn suspend_above_unwinding(&self, waiting: Waiting) {
        let block = self.running().expect("only a coroutine is refused");
        if !self.can_suspend() {
            return self.refuse_to_suspend(self.own(block));
        }
        self.suspended_above.set(Some(block.id()));
        self.leave_stack(block, waiting);
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
            self.own(block).woken.set(true);
        }
        self.suspend_for(Waiting::Turn);
    }

    #[inline(always)]
    fn switch_out(&self, own: &Own) {
        self.switching.set(true);
        // SAFETY: the yielder lies at the root of the running stack, so it is alive.
        let how = unsafe { &*own.yielder.get() }.suspend(());
        self.switching.set(false);
        match how {
            Resume::Go => {}
            other => resumed_otherwise(other),
        }
    }

    #[cold]
    fn refuse_to_suspend(&self, own: &Own) {
        if own.unwinding.get() && !self.is_panicking() {
            // The coroutine caught the unwinding and continued. Unwind it again, but not for ever.
            let swallowed = own.swallowed.get() + 1;
            own.swallowed.set(swallowed);
            if swallowed < 1000 {
                resume_unwind(Box::new(Cancelled));
            }
            abort(format_args!(
                "coroutine {} (created at {}) was cancelled but caught the unwinding {swallowed} times and waited \
                 again; rethrow the payload `Cancelled`",
                own.label(),
                own.created_at.get()
            ));
        }
        let (name, at) = (own.label(), own.created_at.get());
        if let Some(other) =
            self.suspended_above.get().filter(|other| other.is_live() && !ptr::eq(self.own(other.block), own))
        {
            abort(format_args!(
                "coroutine {name} (created at {at}) waits while a stack of its thread unwinds: its own, or that of coroutine {}, \
                 which waited above another stack that unwound; a destructor may do I/O, but not wait for another coroutine",
                self.own(other.block).label()
            ));
        }
        abort(format_args!(
            "coroutine {name} (created at {at}) waits while its stack unwinds; a destructor may do I/O but not wait for \
             another coroutine"
        ));
    }

    /// Returns the entered coroutines, innermost first; `None` for an iteration of the loop.
    /// Allocates nothing.
    pub(crate) fn on_stack(&self) -> impl Iterator<Item = Option<&'static Control>> {
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
            Resume::Go => return,
            Resume::Unwind => resume_unwind(Box::new(Cancelled)),
            Resume::Trace => {
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
                    Some(block) => write!(f, " > {}", self.0.own(block).label())?,
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
fn yields_with_lock(own: &Own, guards: u32) -> ! {
    panic!(
        "coroutine {} yields while it holds the context's lock ({guards} guards): the next coroutine would run under \
         it; drop the guards first",
        own.label()
    )
}
