//! The end of a context: remaining coroutines are unwound in order of creation, and their results
//! are not reported (C9, W5).

use crate::program::What;

use super::{Frame, Model, State, Wait, co};

impl Model<'_> {
    pub(super) fn end(&mut self) {
        self.ending = true;
        let mut left: Vec<usize> = (0..self.cos.len())
            .filter(|&index| !matches!(self.cos[index].state, State::Absent | State::Ended))
            .collect();
        left.sort_unstable_by_key(|&index| self.cos[index].serial);
        for index in left {
            match self.cos[index].state {
                State::Suspended | State::Scheduled => self.unwind(index),
                State::Finished => self.detach(index),
                State::Ended => {}
                State::Absent | State::Entered => unreachable!("nothing is entered when the loop has returned"),
            }
        }
    }

    /// Unwinds the innermost state first: the wait, then the locals.
    fn unwind(&mut self, index: usize) {
        self.cos[index].state = State::Entered;
        self.frames.push(Frame { running: Some(index), woken: Default::default() });
        match self.cos[index].wait {
            Wait::None | Wait::TimedOut | Wait::Resumed | Wait::SleepsForEver => {}
            // A grant is passed on.
            Wait::InLine(mutex) if self.mutexes[mutex].holder == Some(co(index)) => self.unlock(mutex),
            Wait::InLine(mutex) => self.mutexes[mutex].line.retain(|&waiter| waiter != index),
            Wait::InQueue(queue) if self.queues[queue].contains(&index) => {
                self.queues[queue].retain(|&waiter| waiter != index);
            }
            Wait::InQueue(queue) => drop(self.wake_one(queue)),
            // The handle is dropped with its stack.
            Wait::Joins(target) => self.detach(target),
            Wait::InScope => {
                for child in self.cos[index].scope.members.clone() {
                    if matches!(self.cos[child].state, State::Suspended | State::Scheduled) {
                        self.unwind(child);
                    }
                }
            }
        }
        self.drop_locals(co(index));
        self.tell(co(index), What::Dropped);
        if let Some(parent) = self.cos[index].parent {
            self.leave_scope(parent, None);
        }
        self.cos[index].state = State::Ended;
        self.frames.pop();
    }
}
