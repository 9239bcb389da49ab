//! The end of a context, or of a scope: the remaining coroutines are unwound (rule C9).

#![allow(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::context::source::HomeToken;
use crate::coroutine::control_block::{BlockRef, ControlBlock, Resume, State};
use crate::scheduler::switch::Frame;
use crate::scheduler::{Home, abort, drop_quietly};
use crate::sys::fork;
use crate::sys::report::report;

impl Home {
    /// Ends the context: drops the users' registrations, unwinds the remaining coroutines in order
    /// of creation (rule C9), and closes the I/O engine. Returns the payload of the first panic. A
    /// panic, or a message that cannot be written, does not prevent the remaining steps. Does
    /// nothing in the child of a fork.
    pub(crate) fn end(&self) -> Option<Box<dyn Any + Send>> {
        let mut payload = None;
        // Any step may fork: the remaining steps are the parent's.
        let mut step = |f: &mut dyn FnMut()| match catch_unwind(AssertUnwindSafe(|| (!fork::in_child()).then(f))) {
            Err(panic) if payload.is_none() => payload = Some(panic),
            // Only the first panic is reported.
            Err(panic) => drop_quietly(panic),
            Ok(_) => {}
        };
        step(&mut || {
            // Under the lock, so that no poll of another thread runs a handler meanwhile.
            let guard = self.shared.acquire_at_home();
            let registered = self.shared.close();
            drop(guard);
            drop(registered);
        });
        if fork::in_child() {
            return payload;
        }
        self.ending.set(true);
        let left: Vec<_> = self.live().collect();
        if self.is_leaking() {
            report(format_args!(
                "coralio: context ended with {} suspended coroutines, leaking them: with panic = \"abort\" they cannot \
                 be unwound; join them before the context ends",
                left.len()
            ));
            // Makes handles stale: they must not reach these blocks from a later context of this
            // thread.
            left.iter().for_each(|block| block.word.retire());
            return payload;
        }
        self.report_unwound(&left);
        for block in left {
            // Destructors may have scheduled it: a block on a run list must not be unwound
            // and put on the free list.
            while self.taken.pop().is_some() || self.ready.pop().is_some() {}
            step(&mut || match self.local(block).state.get() {
                State::Suspended | State::Scheduled => self.unwind(block),
                State::Finished => drop(self.discard(block)),
                // Its join handle lay on another coroutine's stack, and was dropped with it.
                State::Free => {}
                State::Entered => unreachable!("no coroutine is entered after the loop has returned"),
            });
        }
        if let Some(source) = self.source.get() {
            step(&mut || source.close(HomeToken::new(self)));
        }
        payload
    }

    /// Reports the coroutines that are about to be unwound (rule W5).
    fn report_unwound(&self, left: &[&'static ControlBlock]) {
        const MAX: usize = 8;
        if !self.reports_unwound.get() {
            return;
        }
        let unfinished = |block: &&&'static ControlBlock| self.local(block).state.get() != State::Finished;
        let count = left.iter().filter(unfinished).count();
        if count == 0 {
            return;
        }
        let names = left.iter().filter(unfinished).take(MAX).map(|block| self.local(block).label().to_string());
        let (shown, more) = (names.collect::<Vec<_>>().join(", "), if count > MAX { ", .." } else { "" });
        report(format_args!(
            "coralio: context ended with {count} coroutines still alive, unwinding them: {shown}{more}; join or cancel \
             them first"
        ));
    }

    /// Returns whether suspended coroutines remain that cannot be unwound: then nothing they use
    /// may be freed.
    pub(crate) fn is_leaking(&self) -> bool {
        let suspended = |block: &&'static ControlBlock| {
            matches!(self.local(block).state.get(), State::Suspended | State::Scheduled)
        };
        cfg!(panic = "abort") && self.blocks.all().any(|block| suspended(&block))
    }

    /// Ends one coroutine in place, for a scope whose own stack unwinds, and drops its result.
    /// Returns the payload of its panic, if any.
    pub(crate) fn end_now(&self, id: BlockRef) -> Option<Box<dyn Any + Send>> {
        if !id.is_live() {
            return None;
        }
        let block = id.block;
        let ended = catch_unwind(AssertUnwindSafe(|| match self.local(block).state.get() {
            State::Free => None,
            State::Finished => self.discard(block),
            State::Suspended => {
                self.unwind(block);
                None
            }
            State::Scheduled => {
                self.unlist(block);
                self.unwind(block);
                None
            }
            State::Entered => abort(format_args!(
                "scope unwinding while its coroutine {} is entered: the coroutine would outlive the data it borrows",
                self.local(block).label()
            )),
        }));
        ended.unwrap_or_else(Some)
    }

    /// Removes a scheduled coroutine from its list. While the context ends it may be on none: they
    /// were emptied.
    fn unlist(&self, block: &'static ControlBlock) {
        let mut lists = vec![&self.ready, &self.taken];
        let mut frame = self.frame();
        while let Some(above) = frame {
            lists.push(&above.deferred);
            // SAFETY: as in `frame`.
            frame = unsafe { above.parent.as_ref() };
        }
        let found = lists.into_iter().any(|list| list.remove(block));
        assert!(found || self.is_ending(), "a scheduled coroutine is on a list");
    }

    fn unwind(&self, block: &'static ControlBlock) {
        let local = self.local(block);
        local.propagates.set(true);
        let frame = Frame::above(self);
        frame.lock_depth.set(self.shared.lock.depth());
        let _leave = frame.push(self);
        self.running.set(Some(block));
        // Set before resuming: a coroutine that was never entered drops its captures, which may not
        // wait either.
        local.unwinding.set(true);
        if let Some(payload) = self.resume(block, Resume::Unwind) {
            resume_unwind(payload);
        }
    }
}
