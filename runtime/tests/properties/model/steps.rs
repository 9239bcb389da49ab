//! The outcome of each step.
//!
//! `Ok(None)`: the coroutine is suspended, and rechecks when it is resumed. `Err`: a panic
//! propagates to the caller of the step.

use crate::program::{Outcome, Step, What, Who};

use super::{Model, State, Thrown, Wait, Within};

pub(super) type Came = Result<Option<Outcome>, Thrown>;

pub(super) const OUTSIDE: &str = "outside a coroutine";

pub(super) fn done() -> Came {
    Ok(Some(Outcome::Done))
}

fn said(what: bool) -> Came {
    Ok(Some(Outcome::Said(what)))
}

pub(super) fn absent() -> Came {
    Ok(Some(Outcome::Absent))
}

pub(super) fn fault(why: &str) -> Came {
    Ok(Some(Outcome::Fault(why.to_string())))
}

/// The step catches the panic of the coroutine that it ran.
pub(super) fn caught(ran: Result<(), Thrown>) -> Came {
    Ok(Some(ran.map_or_else(Outcome::Panicked, |()| Outcome::Done)))
}

impl Model<'_> {
    pub(super) fn step(&mut self, who: Who, step: &Step) -> Came {
        // None: the step is the loop's, or the thread's own.
        let this = self.running();
        let known = |model: &Self, id: &u8| model.cos[usize::from(*id)].known;
        match step {
            Step::Create(id) => {
                let index = usize::from(*id);
                if self.cos[index].state != State::Absent {
                    return absent();
                }
                if self.ending {
                    self.tell(super::co(index), What::Dropped);
                    return Ok(Some(Outcome::Refused("ending".to_string())));
                }
                self.create(index);
                self.cos[index].known = true;
                done()
            }
            Step::Spawn(id) => {
                let index = usize::from(*id);
                if self.cos[index].state != State::Absent {
                    return absent();
                }
                if self.ending {
                    self.tell(super::co(index), What::Dropped);
                    return Ok(Some(Outcome::Refused("ending".to_string())));
                }
                self.create(index);
                self.make_ready(index);
                let new = &mut self.cos[index];
                (new.known, new.spawned, new.handle) = (true, true, true);
                done()
            }
            Step::DropHandle(id) => {
                let index = usize::from(*id);
                if !std::mem::take(&mut self.cos[index].handle) {
                    return absent();
                }
                self.detach(index);
                done()
            }
            Step::Join(id) => self.join(this, usize::from(*id)),
            Step::Enter(id)
            | Step::EnterThrough(id)
            | Step::EnterUnlessEntered(id)
            | Step::Wake(id)
            | Step::WakeElsewhere(id)
            | Step::Schedule(id)
            | Step::Cancel(id)
            | Step::Look(id)
                if !known(self, id) =>
            {
                absent()
            }
            Step::Enter(id) | Step::EnterThrough(id) => match self.refusal(usize::from(*id)) {
                Some(refusal) => Ok(Some(Outcome::Refused(refusal))),
                None => match (self.enter(usize::from(*id)), step) {
                    (Err(thrown), Step::EnterThrough(_)) => Err(thrown),
                    (ran, _) => caught(ran),
                },
            },
            Step::EnterUnlessEntered(id) => {
                let index = usize::from(*id);
                if self.cos[index].state == State::Entered {
                    return said(false);
                }
                match self.refusal(index) {
                    Some(refusal) => fault(&refusal),
                    None => Ok(Some(self.enter(index).map_or_else(Outcome::Panicked, |()| Outcome::Said(true)))),
                }
            }
            Step::Wake(id) => {
                let ran = self.wake(usize::from(*id));
                caught(ran)
            }
            Step::WakeElsewhere(id) => {
                self.call(usize::from(*id));
                done()
            }
            Step::Schedule(id) => {
                let index = usize::from(*id);
                said(self.cos[index].has_ended() || self.cos[index].state != State::Scheduled && self.call(index))
            }
            Step::Cancel(id) => {
                self.cos[usize::from(*id)].cancelled = true;
                let ran = self.wake(usize::from(*id));
                caught(ran)
            }
            Step::Look(id) => {
                let one = &self.cos[usize::from(*id)];
                Ok(Some(Outcome::Seen(one.state == State::Entered, one.has_ended())))
            }
            Step::Suspend | Step::Yield => {
                let Some(index) = this else { return fault(OUTSIDE) };
                if self.cos[index].wait == Wait::Resumed {
                    self.cos[index].wait = Wait::None;
                    return done();
                }
                self.cos[index].wait = Wait::Resumed;
                self.cos[index].woken |= *step == Step::Yield;
                Ok(None)
            }
            Step::SleepNot => match this {
                Some(_) => self.step(who, &Step::Yield),
                None => Ok(Some(self.poll(false).map_or_else(Outcome::Panicked, |_| Outcome::Done))),
            },
            Step::SleepForEver => {
                let Some(index) = this else { return Ok(Some(Outcome::Unfit)) };
                let timed_out = self.cos[index].timed_out;
                if self.is_cut_short(index) {
                    // A sleep always yields, and commits to its error afterwards.
                    if self.cos[index].wait == Wait::None {
                        self.cos[index].timed_out = timed_out;
                        return self.step(who, &Step::Yield);
                    }
                    self.cos[index].wait = Wait::None;
                    return Ok(Some(Outcome::Cancelled));
                }
                self.cos[index].wait = Wait::SleepsForEver;
                Ok(None)
            }
            Step::CheckCancelled => match this {
                Some(index) if self.is_cut_short(index) => Ok(Some(Outcome::Cancelled)),
                _ => done(),
            },
            Step::Lock(mutex) => self.lock(who, usize::from(*mutex), false),
            Step::LockCancellable(mutex) => self.lock(who, usize::from(*mutex), true),
            Step::TryLock(mutex) => {
                let free = self.mutexes[usize::from(*mutex)].holder.is_none();
                if free {
                    self.take(who, usize::from(*mutex));
                }
                said(free)
            }
            Step::Unlock(mutex) => {
                if !std::mem::take(&mut self.locals(who).held[usize::from(*mutex)]) {
                    return absent();
                }
                self.unlock(usize::from(*mutex));
                done()
            }
            Step::Probe(mutex) => said(self.mutexes[usize::from(*mutex)].holder.is_none()),
            Step::Wait(queue, mutex) => self.queue(who, usize::from(*queue), usize::from(*mutex), false),
            Step::WaitCancellable(queue, mutex) => self.queue(who, usize::from(*queue), usize::from(*mutex), true),
            Step::WakeOne(queue) => {
                let first = self.wake_one(usize::from(*queue));
                said(first)
            }
            Step::WakeAll(queue) => {
                while self.wake_one(usize::from(*queue)) {}
                done()
            }
            Step::BhSchedule(_)
            | Step::BhIdle(_)
            | Step::BhCancel(_)
            | Step::BhDrop(_)
            | Step::Shoot(_)
            | Step::Arm(..)
            | Step::Disarm(_)
            | Step::TimerDrop(_) => self.registration(step),
            Step::Poll => Ok(Some(self.poll(false).map_or_else(Outcome::Panicked, Outcome::Said))),
            Step::PollKicked => Ok(Some(self.poll(true).map_or_else(Outcome::Panicked, Outcome::Said))),
            Step::Scope(children, panics) => {
                let Some(index) = this else { return Ok(Some(Outcome::Unfit)) };
                self.scope(index, children, *panics)
            }
            Step::Defer(step) => {
                self.locals(who).deferred.push((**step).clone());
                done()
            }
            Step::Shield(step) => match this {
                Some(index) => self.within(who, index, Within::Shield, step),
                None => self.step(who, step),
            },
            Step::Timeout(step) => match this {
                Some(index) => {
                    if self.cos[index].wait == Wait::TimedOut {
                        self.cos[index].wait = Wait::None;
                        return Ok(Some(Outcome::TimedOut));
                    }
                    if self.cos[index].wait == Wait::None {
                        self.arm_limit(index);
                        self.cos[index].timed_out = false;
                    }
                    let came = self.within(who, index, Within::Timeout, step);
                    if !matches!(came, Ok(None)) {
                        self.disarm_limit(index);
                    }
                    match came {
                        Ok(Some(_)) if self.cos[index].timed_out => {
                            // It yields before it reports that.
                            self.cos[index].wait = Wait::TimedOut;
                            self.cos[index].woken = true;
                            Ok(None)
                        }
                        came => came,
                    }
                }
                None => fault(OUTSIDE),
            },
            Step::Panic => Err(who),
        }
    }

    fn within(&mut self, who: Who, index: usize, within: Within, step: &Step) -> Came {
        self.cos[index].within = within;
        let came = self.step(who, step);
        self.cos[index].within = Within::Nothing;
        came
    }

    /// Schedules a coroutine as another thread does (W1). Returns whether it was not scheduled
    /// before (W2).
    fn call(&mut self, index: usize) -> bool {
        let news = !self.cos[index].has_ended() && !self.cos[index].called;
        if news {
            self.cos[index].called = true;
            self.calls.push_back(index);
        }
        news
    }
}
