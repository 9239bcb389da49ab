//! Waits: each is a condition, checked when the step begins and whenever the coroutine is resumed
//! in it.

use crate::program::Outcome;

use super::steps::{Came, OUTSIDE, absent, caught, done, fault};
use super::{Model, Scope, State, Thrown, Wait, Who, Within};

impl Model<'_> {
    /// Returns whether waits of this coroutine end early (S4). An expired timeout records that it
    /// cut one short.
    pub(super) fn is_cut_short(&mut self, index: usize) -> bool {
        let this = &mut self.cos[index];
        match this.within {
            Within::Shield => false,
            _ if this.cancelled => true,
            Within::Timeout => {
                this.timed_out = true;
                true
            }
            Within::Nothing => false,
        }
    }

    pub(super) fn join(&mut self, this: Option<usize>, target: usize) -> Came {
        let begins = match this {
            Some(index) => self.cos[index].wait == Wait::None,
            None => true,
        };
        let finished = self.cos[target].state == State::Finished;
        if begins {
            if !self.cos[target].handle {
                return absent();
            }
            if this.is_none() && !finished {
                return Ok(Some(Outcome::Unfit));
            }
            self.cos[target].handle = false;
            if this == Some(target) {
                self.detach(target);
                return fault("joins itself");
            }
        }
        if let Some(index) = this {
            if !finished && self.is_cut_short(index) {
                self.cos[target].joiner = None;
                self.cos[target].cancelled = true;
                self.wake(target).expect("a running coroutine enters no other");
                self.detach(target);
                self.cos[index].wait = Wait::None;
                return Ok(Some(Outcome::Cancelled));
            }
            if !finished {
                self.cos[target].joiner = Some(index);
                self.cos[index].wait = Wait::Joins(target);
                return Ok(None);
            }
            self.cos[index].wait = Wait::None;
        }
        self.cos[target].state = State::Ended;
        let outcome = self.cos[target].outcome.take().expect("a finished one has an outcome");
        self.drop_result(target, outcome);
        caught(outcome)
    }

    pub(super) fn take(&mut self, who: Who, mutex: usize) {
        self.mutexes[mutex].holder = Some(who);
        self.locals(who).held[mutex] = true;
    }

    /// S1: handed to the first waiter, never free in between.
    pub(super) fn unlock(&mut self, mutex: usize) {
        let next = self.mutexes[mutex].line.pop_front();
        self.mutexes[mutex].holder = next.map(super::co);
        if let Some(next) = next {
            self.wake_later(next);
        }
    }

    pub(super) fn lock(&mut self, who: Who, mutex: usize, cancellable: bool) -> Came {
        let this = self.running();
        let begins = this.is_none_or(|index| self.cos[index].wait != Wait::InLine(mutex));
        if begins {
            if self.mutexes[mutex].holder.is_none() {
                self.take(who, mutex);
                if let Some(index) = this {
                    self.cos[index].wait = Wait::None;
                }
                return done();
            }
            let Some(index) = this else { return fault(OUTSIDE) };
            if self.mutexes[mutex].holder == Some(who) {
                return fault("already holds");
            }
            self.mutexes[mutex].line.push_back(index);
            self.cos[index].wait = Wait::InLine(mutex);
        }
        let index = this.expect("only a coroutine stands in line");
        if self.mutexes[mutex].holder == Some(who) {
            self.cos[index].wait = Wait::None;
            self.take(who, mutex);
            return done();
        }
        if cancellable && self.is_cut_short(index) {
            self.mutexes[mutex].line.retain(|&waiter| waiter != index);
            self.cos[index].wait = Wait::None;
            return Ok(Some(Outcome::Cancelled));
        }
        Ok(None)
    }

    /// S2: the mutex is released, and taken again after the wake.
    pub(super) fn queue(&mut self, who: Who, queue: usize, mutex: usize, cancellable: bool) -> Came {
        let this = self.running();
        if this.is_none_or(|index| self.cos[index].wait == Wait::None) {
            if !std::mem::take(&mut self.locals(who).held[mutex]) {
                return absent();
            }
            if let Some(index) = this {
                self.queues[queue].push_back(index);
                self.cos[index].wait = Wait::InQueue(queue);
            }
            self.unlock(mutex);
        }
        let Some(index) = this else { return fault(OUTSIDE) };
        if self.cos[index].wait == Wait::InQueue(queue) && self.queues[queue].contains(&index) {
            if cancellable && self.is_cut_short(index) {
                self.queues[queue].retain(|&waiter| waiter != index);
                self.cos[index].wait = Wait::None;
                return Ok(Some(Outcome::Cancelled));
            }
            return Ok(None);
        }
        self.lock(who, mutex, false)
    }

    pub(super) fn wake_one(&mut self, queue: usize) -> bool {
        let first = self.queues[queue].pop_front();
        if let Some(first) = first {
            self.wake_later(first);
        }
        first.is_some()
    }

    pub(super) fn scope(&mut self, index: usize, children: &[u8], panics: bool) -> Came {
        if self.cos[index].wait == Wait::None {
            self.cos[index].scope = Scope { panic: panics.then_some(super::co(index)), ..Scope::default() };
            for child in children.iter().copied().map(usize::from) {
                if self.create(child) {
                    self.make_ready(child);
                    let new = &mut self.cos[child];
                    (new.spawned, new.detached, new.parent) = (true, true, Some(index));
                    self.cos[index].scope.members.push(child);
                    self.cos[index].scope.left += 1;
                }
            }
            if panics {
                self.cancel_members(index);
            }
        }
        if self.cos[index].scope.left > 0 {
            if !self.cos[index].scope.cancelled && self.is_cut_short(index) {
                self.cos[index].scope.cancelled = true;
                self.cancel_members(index);
            }
            self.cos[index].wait = Wait::InScope;
            return Ok(None);
        }
        self.cos[index].wait = Wait::None;
        caught(self.cos[index].scope.panic.map_or(Ok(()), Err))
    }

    fn cancel_members(&mut self, index: usize) {
        for member in self.cos[index].scope.members.clone() {
            if !self.cos[member].has_ended() {
                self.cos[member].cancelled = true;
                self.wake(member).expect("a running coroutine enters no other");
            }
        }
    }

    /// A child has ended.
    pub(super) fn leave_scope(&mut self, parent: usize, thrown: Option<Thrown>) {
        let scope = &mut self.cos[parent].scope;
        scope.left -= 1;
        scope.panic = scope.panic.or(thrown);
        if scope.left == 0 && self.cos[parent].wait == Wait::InScope {
            self.wake_later(parent);
        }
    }
}
