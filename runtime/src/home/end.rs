//! The end of a context, or of a scope: whoever is left is unwound (rule C9).

#![allow(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::coroutine::control::{Control, CoroutineId, Resume, State};

use super::switch::Frame;
use super::{Home, abort};

impl Home {
    /// Ends what is left, in the order in which it was created: unwinds every coroutine (rule C9). Returns the payload of
    /// the first destructor that panicked.
    pub(super) fn end(&self) -> Option<Box<dyn Any + Send>> {
        self.ending.set(true);
        let left: Vec<_> = self.live().collect();
        if self.is_leaking() {
            eprintln!(
                "coralio: a context ended with {} suspended coroutines; with panic = \"abort\" they cannot be unwound \
                 and are leaked; join them before the context ends",
                left.len()
            );
            // No handle may reach them from a later context of this thread.
            left.iter().for_each(|block| block.ticket.retire());
            return None;
        }
        self.report_unwound(&left);
        let mut payload = None;
        for block in left {
            // Destructors may have scheduled it: a block on a list must not be unwound and given back.
            while self.taken.pop().is_some() || self.ready.pop().is_some() {}
            let ended = catch_unwind(AssertUnwindSafe(|| match self.own(block).state.get() {
                State::Suspended | State::Scheduled => self.unwind(block),
                State::Finished => drop(self.discard(block)),
                // Its join handle lay on the stack of another one, and went with it.
                State::Free => {}
                State::Entered => unreachable!("nothing is entered when the loop has returned"),
            }));
            match ended {
                Err(panic) if payload.is_none() => payload = Some(panic),
                // One is told. What dropping another one throws is nobody's, and must not end this loop.
                Err(panic) => std::mem::forget(catch_unwind(AssertUnwindSafe(|| drop(panic)))),
                Ok(()) => {}
            }
        }
        payload
    }

    /// Says who is about to be unwound (rule W5).
    fn report_unwound(&self, left: &[&'static Control]) {
        let unfinished = |block: &&&'static Control| self.own(block).state.get() != State::Finished;
        let names: Vec<_> = left.iter().filter(unfinished).map(|block| self.own(block).label().to_string()).collect();
        if !self.reports_unwound.get() || names.is_empty() {
            return;
        }
        let (shown, more) = (&names[..names.len().min(8)], if names.len() > 8 { ", .." } else { "" });
        eprintln!(
            "coralio: a context ended before {} of its coroutines had, and unwinds them: {}{more}; join or cancel them first",
            names.len(),
            shown.join(", ")
        );
    }

    /// Whether suspended coroutines are left that cannot be unwound: then nothing of theirs may be freed.
    pub(super) fn is_leaking(&self) -> bool {
        let suspended =
            |block: &&'static Control| matches!(self.own(block).state.get(), State::Suspended | State::Scheduled);
        cfg!(panic = "abort") && self.blocks.all().iter().any(suspended)
    }

    /// Ends one coroutine here and now, for a scope whose own stack unwinds, and drops its result. Returns the payload of
    /// its panic, if it left one.
    pub(crate) fn end_now(&self, id: CoroutineId) -> Option<Box<dyn Any + Send>> {
        if !id.is_live() {
            return None;
        }
        let block = id.block;
        let ended = catch_unwind(AssertUnwindSafe(|| match self.own(block).state.get() {
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
                "a scope unwinds above its coroutine {}, which would outlive what it borrows",
                self.own(block).label()
            )),
        }));
        ended.unwrap_or_else(Some)
    }

    /// Takes one that is scheduled off the list that it is on. While the context ends it may be on none: they were emptied.
    fn unlist(&self, block: &'static Control) {
        let mut lists = vec![&self.ready, &self.taken];
        let mut frame = self.frame();
        while let Some(above) = frame {
            lists.push(&above.woken);
            // SAFETY: as in `frame`.
            frame = unsafe { above.parent.as_ref() };
        }
        let found = lists.into_iter().any(|list| list.remove(block));
        assert!(found || self.is_ending(), "what is scheduled is on a list");
    }

    fn unwind(&self, block: &'static Control) {
        let own = self.own(block);
        own.propagates.set(true);
        let frame = Frame::above(self);
        frame.lock_depth.set(self.shared.lock.depth());
        let _leave = frame.push(self);
        self.running.set(Some(block));
        // From the first: one that was never entered drops what it caught, and may not wait in that either.
        own.unwinding.set(true);
        if let Some(payload) = self.resume(block, Resume::Unwind) {
            resume_unwind(payload);
        }
    }
}
