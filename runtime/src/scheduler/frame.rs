//! Frames: the record of the entered coroutines.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::coroutine::{ControlBlock, RunQueue};
use crate::scheduler::Scheduler;
use crate::sys::format_fn;

/// An `enter`, or an iteration of the loop, that has not returned.
pub(super) struct Frame {
    parent: *const Frame,
    /// The coroutine that ran when this frame was pushed.
    outer: Option<&'static ControlBlock>,
    /// Coroutines woken by the running one; they run next, from this frame.
    pub(super) deferred: RunQueue,
    /// The lock depth when the running coroutine was resumed: it may not suspend with more (rule
    /// X8).
    pub(super) lock_depth: Cell<u32>,
}

impl Frame {
    #[inline]
    pub(super) fn above(scheduler: &Scheduler) -> Frame {
        Frame {
            parent: scheduler.top.get(),
            outer: scheduler.running.get(),
            deferred: RunQueue::new(),
            lock_depth: Cell::new(0),
        }
    }

    #[inline]
    pub(super) fn push<'a>(&'a self, scheduler: &'a Scheduler) -> FrameGuard<'a> {
        // For an inspector that stops this thread: the frame is complete before `top` points at it.
        compiler_fence(Ordering::SeqCst);
        scheduler.top.set(self);
        FrameGuard { scheduler, frame: self }
    }
}

/// Pops a frame, also on unwinding: `top` never points at a frame that is gone.
pub(super) struct FrameGuard<'a> {
    scheduler: &'a Scheduler,
    frame: &'a Frame,
}

impl Drop for FrameGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // After a panic, coroutines may remain on the frame's list; none of them may be lost.
        self.scheduler.ready.append(&self.frame.deferred);
        self.scheduler.top.set(self.frame.parent);
        self.scheduler.running.set(self.frame.outer);
        // For such an inspector too: `top` changes before the frame's memory is reused.
        compiler_fence(Ordering::SeqCst);
    }
}

impl Scheduler {
    #[inline]
    pub(super) fn frame(&self) -> Option<&Frame> {
        // SAFETY: frames lie on the stacks of `enter` and `round`, which pop them before they
        // return.
        unsafe { self.top.get().as_ref() }
    }

    /// Returns the frames, innermost first.
    pub(super) fn frames(&self) -> impl Iterator<Item = &Frame> {
        // SAFETY: as in `frame`.
        std::iter::successors(self.frame(), |frame| unsafe { frame.parent.as_ref() })
    }

    /// Returns whether the running coroutine has woken others, which run next.
    #[inline]
    pub(crate) fn has_woken(&self) -> bool {
        self.frame().is_some_and(|frame| !frame.deferred.is_empty())
    }

    /// Runs `f` as an iteration of the loop: a coroutine woken in it is entered immediately, even
    /// if a coroutine polls.
    pub(crate) fn round<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Ended<'a>(&'a Scheduler);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.rounds.set(self.0.rounds.get() - 1);
            }
        }
        if self.is_panicking() {
            return self.above_unwinding(|| self.round(f));
        }
        // The coroutines below do not yield during this iteration, so it runs those that they woke.
        self.frames().for_each(|frame| self.ready.append(&frame.deferred));
        let frame = Frame::above(self);
        let _leave = frame.push(self);
        self.running.set(None);
        self.rounds.set(self.rounds.get() + 1);
        let _ended = Ended(self);
        f()
    }

    /// Returns whether the loop is in an iteration, which will flush the I/O source when it ends.
    #[inline]
    pub(crate) fn is_in_round(&self) -> bool {
        self.rounds.get() != 0
    }

    /// Returns the entered coroutines, innermost first; `None` for an iteration of the loop.
    /// Allocates nothing.
    pub(crate) fn on_stack(&self) -> impl Iterator<Item = Option<&'static ControlBlock>> {
        let mut running = self.running.get();
        self.frames().map(move |frame| std::mem::replace(&mut running, frame.outer))
    }

    /// Formats the entered coroutines, outermost first: `thread > 'A' > loop > 'B'`. Allocates
    /// nothing.
    pub(crate) fn chain(&self) -> impl fmt::Display {
        format_fn(|f| {
            // The frames lead from the innermost outwards, so they are read in windows, the outermost
            // window first: that needs no allocation.
            let mut window = [None; 64];
            let mut left = self.on_stack().count();
            f.write_str("thread")?;
            while left > 0 {
                let skipped = left.saturating_sub(window.len());
                let inner = &mut window[..left - skipped];
                inner.iter_mut().zip(self.on_stack().skip(skipped)).for_each(|(place, running)| *place = running);
                for running in inner.iter().rev() {
                    match running {
                        Some(block) => write!(f, " > {}", self.local(block).label())?,
                        None => f.write_str(" > loop")?,
                    }
                }
                left = skipped;
            }
            Ok(())
        })
    }
}
