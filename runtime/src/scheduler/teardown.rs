//! The end of a context, or of a scope: the remaining coroutines are unwound (rule C9).

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::coroutine::{ControlBlock, CoroutineId, Resume, State};
use crate::scheduler::{Frame, Scheduler};
use crate::sys::{FirstPanic, Payload, abort, in_child, report};

/// Returns the noun and the pronoun for `count` coroutines.
fn plural(count: usize) -> (&'static str, &'static str) {
    if count == 1 { ("coroutine", "it") } else { ("coroutines", "them") }
}

impl Scheduler {
    /// Lets nothing new start and nothing be woken.
    pub(crate) fn set_ending(&self) {
        self.ending.set(true);
    }

    /// Empties the run lists: no woken coroutine resumes.
    pub(crate) fn forget_ready(&self) {
        while self.ready.pop().is_some() || self.taken.pop().is_some() {}
        self.frames().for_each(|frame| while frame.deferred.pop().is_some() {});
    }

    /// Makes handles stale, and reports the coroutines, where these cannot be unwound. A later
    /// context of this thread must not reach them.
    pub(crate) fn leak(&self) {
        let left: Vec<_> = self.live_in_any_order().collect();
        let (coroutines, them) = plural(left.len());
        report(format_args!(
            "coralio: context ended with {} suspended {coroutines}, leaking {them}: with panic = \"abort\" no stack can be \
             unwound; join {them} before the context ends",
            left.len()
        ));
        left.iter().for_each(|block| block.word.retire());
    }

    /// Unwinds the remaining coroutines, in order of creation (rule C9). A panic of one, or a
    /// message that cannot be written, does not affect the others. In the child of a fork, nothing
    /// is done.
    pub(crate) fn unwind_all(&self, reports: bool, panics: &mut FirstPanic) {
        let left: Vec<_> = self.live().collect();
        if reports {
            self.report_unwound(&left);
        }
        for block in left {
            // Destructors may have scheduled the coroutine: a block on a run list must not be
            // unwound and put on the free list.
            self.forget_ready();
            // A destructor may fork: the remaining coroutines are the parent's.
            if in_child() {
                return;
            }
            panics.catch(|| match self.local(block).state.get() {
                State::Suspended | State::Scheduled => self.unwind(block),
                State::Finished => drop(self.discard(block)),
                // Its join handle lay on another coroutine's stack, and was dropped with it.
                State::Free => {}
                State::Entered => unreachable!("no coroutine is entered after the loop has returned"),
            });
        }
    }

    /// Reports the coroutines that are about to be unwound (rule W5).
    fn report_unwound(&self, left: &[&'static ControlBlock]) {
        const MAX: usize = 8;
        let unfinished = |block: &&&'static ControlBlock| self.local(block).state.get() != State::Finished;
        let count = left.iter().filter(unfinished).count();
        if count == 0 {
            return;
        }
        let names = left.iter().filter(unfinished).take(MAX).map(|block| self.local(block).label().to_string());
        let (shown, more) = (names.collect::<Vec<_>>().join(", "), if count > MAX { ", .." } else { "" });
        let (coroutines, them) = plural(count);
        let remedy = match left.iter().filter(unfinished).all(|block| block.word.is_cancelled()) {
            true => format!("join {them} after the cancellation, which takes effect at the next wait outside a shield"),
            false => format!("join or cancel {them} first"),
        };
        report(format_args!(
            "coralio: context ended with {count} {coroutines} still alive, unwinding {them}: {shown}{more}; {remedy}"
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
    pub(crate) fn end_now(&self, id: CoroutineId) -> Option<Payload> {
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

    /// Removes a scheduled coroutine from its list. While the context ends, it may be on no list,
    /// since the lists were emptied.
    fn unlist(&self, block: &'static ControlBlock) {
        let deferred = self.frames().map(|frame| &frame.deferred);
        let found = [&self.ready, &self.taken].into_iter().chain(deferred).any(|list| list.remove(block));
        assert!(found || self.is_ending(), "a scheduled coroutine is on a list");
    }

    fn unwind(&self, block: &'static ControlBlock) {
        let local = self.local(block);
        local.propagates.set(true);
        let frame = Frame::above(self);
        frame.lock_depth.set(self.shared.lock_depth());
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
