//! Executes each step by the corresponding call.

use std::cell::RefCell;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use coralio_runtime::{
    BottomHalf, Cancelled, CoMutex, CoMutexGuard, CoQueue, Coroutine, JoinHandle, Timer, Waker, check_cancelled, scope,
    shield, sleep, suspend, timeout, yield_now,
};

use crate::program::{Id, Outcome, Step, When, Who, name};

use super::outcome::{caught, in_short, outcome_of};
use super::{Held, Locals, Mark, Thrown, World, body, callback, with_result};

const AN_HOUR: Duration = Duration::from_secs(3600);

impl World {
    pub(super) fn step<'w>(&'w self, who: Who, step: &Step, locals: &mut Locals<'w>) -> Outcome {
        match *step {
            Step::Panic => Thrown::go(who),
            Step::EnterThrough(id) => self.with(id, enter),
            _ => caught(|| self.attempt(who, step, locals)),
        }
    }

    fn attempt<'w>(&'w self, who: Who, step: &Step, locals: &mut Locals<'w>) -> Outcome {
        let outside = Coroutine::current().is_none();
        let or_cancelled = |waited: Result<(), Cancelled>| waited.map_or(Outcome::Cancelled, |()| Outcome::Done);
        match *step {
            Step::Create(id) | Step::Spawn(id) => self.begin(id, matches!(step, Step::Spawn(_))),
            Step::DropHandle(id) => match self.take_handle(id) {
                Some(handle) => done(|| drop(handle)),
                None => Outcome::Absent,
            },
            Step::Join(id) => {
                let Some(handle) = self.take_handle(id) else { return Outcome::Absent };
                if outside && !handle.is_finished() {
                    self.handles.borrow_mut()[usize::from(id)] = Some(handle);
                    return Outcome::Unfit;
                }
                handle.join().map_or_else(outcome_of, |result| done(|| drop(result)))
            }
            Step::Enter(id) => self.with(id, enter),
            Step::EnterUnlessEntered(id) => self.with(id, |it| Outcome::Said(it.enter_unless_entered())),
            Step::Wake(id) => self.with(id, |it| done(|| it.wake())),
            Step::WakeElsewhere(id) => self.with(id, |it| done(|| wake_elsewhere(it.waker()))),
            Step::Schedule(id) => self.with(id, |it| Outcome::Said(it.schedule().is_ok())),
            Step::Cancel(id) => self.with(id, |it| done(|| it.cancel())),
            Step::Look(id) => self.with(id, |it| Outcome::Seen(it.is_entered(), it.has_ended())),
            Step::Suspend => done(suspend),
            Step::Yield => done(yield_now),
            Step::SleepNot => or_cancelled(sleep(Duration::ZERO)),
            Step::SleepForEver if outside => Outcome::Unfit,
            Step::SleepForEver => or_cancelled(sleep(AN_HOUR)),
            Step::CheckCancelled => or_cancelled(check_cancelled()),
            Step::Lock(mutex) => self.hold(who, mutex, locals, |lock| Some(lock.lock())),
            Step::TryLock(mutex) => {
                let free = self.hold(who, mutex, locals, CoMutex::try_lock);
                Outcome::Said(free == Outcome::Done)
            }
            Step::LockCancellable(mutex) => self.hold(who, mutex, locals, |lock| lock.lock_cancellable().ok()),
            Step::Unlock(mutex) => match locals.held[usize::from(mutex)].take() {
                Some(held) => done(|| drop(held)),
                None => Outcome::Absent,
            },
            Step::Probe(mutex) => Outcome::Said(self.mutexes[usize::from(mutex)].try_lock().is_some()),
            Step::Wait(queue, mutex) => self.wait(who, queue, mutex, locals, |it, guard| Some(it.wait(guard))),
            Step::WaitCancellable(queue, mutex) => {
                self.wait(who, queue, mutex, locals, |it, guard| it.wait_cancellable(guard).ok())
            }
            Step::WakeOne(queue) => Outcome::Said(self.queues[usize::from(queue)].wake_one()),
            Step::WakeAll(queue) => done(|| self.queues[usize::from(queue)].wake_all()),
            Step::BhSchedule(id) => registered(&self.bottom_halves, id, |slot| slot.as_ref().map(BottomHalf::schedule)),
            Step::BhIdle(id) => {
                registered(&self.bottom_halves, id, |slot| slot.as_ref().map(BottomHalf::schedule_idle))
            }
            Step::BhCancel(id) => registered(&self.bottom_halves, id, |slot| slot.as_ref().map(BottomHalf::cancel)),
            Step::BhDrop(id) => registered(&self.bottom_halves, id, |slot| slot.take().map(drop)),
            Step::Shoot(id) => match self.shot.get(usize::from(id)) {
                Some(shot) if !shot.replace(true) => {
                    done(|| self.context.schedule_oneshot(callback(Who::Shot(id))).unwrap())
                }
                _ => Outcome::Absent,
            },
            Step::Arm(id, when) => {
                let deadline = match when {
                    When::Past(which) => self.start - Duration::from_micros(u64::from(u8::MAX - which)),
                    When::Never => self.start + AN_HOUR,
                };
                registered(&self.timers, id, |slot| slot.as_ref().map(|timer| timer.arm_at(deadline)))
            }
            Step::Disarm(id) => registered(&self.timers, id, |slot| slot.as_ref().map(Timer::disarm)),
            Step::TimerDrop(id) => registered(&self.timers, id, |slot| slot.take().map(drop)),
            Step::Poll => Outcome::Said(self.context.poll(false)),
            Step::PollKicked => {
                self.context.notify();
                Outcome::Said(self.context.poll(true))
            }
            Step::Scope(..) if outside => Outcome::Unfit,
            Step::Scope(ref children, panics) => done(|| self.scope(who, children, panics)),
            Step::Defer(ref step) => done(|| locals.deferred.2.push((**step).clone())),
            Step::Shield(ref step) => shield(|| self.step(who, step, locals)),
            Step::Timeout(ref step) => {
                timeout(Duration::ZERO, || self.step(who, step, locals)).unwrap_or(Outcome::TimedOut)
            }
            Step::EnterThrough(_) | Step::Panic => unreachable!("not attempted"),
        }
    }

    fn begin(&self, id: Id, spawned: bool) -> Outcome {
        let index = usize::from(id);
        if self.begun[index].get() {
            return Outcome::Absent;
        }
        let builder = Coroutine::builder().name(name(id));
        let begun = if spawned {
            builder.spawn(with_result(id)).map(|handle| {
                self.coroutines.borrow_mut()[index] = Some(handle.coroutine());
                self.handles.borrow_mut()[index] = Some(handle);
            })
        } else {
            builder.create(body(id)).map(|it| self.coroutines.borrow_mut()[index] = Some(it))
        };
        self.begun[index].set(begun.is_ok());
        begun.map_or(Outcome::Refused("ending".to_string()), |()| Outcome::Done)
    }

    fn scope(&self, who: Who, children: &[Id], panics: bool) {
        scope(|it| {
            for &child in children {
                if !self.begun[usize::from(child)].replace(true) {
                    let handle = it.spawn_with(Coroutine::builder().name(name(child)), with_result(child));
                    drop(handle.expect("there is memory for a stack"));
                }
            }
            if panics {
                Thrown::go(who);
            }
        });
    }

    fn with(&self, id: Id, f: impl FnOnce(Coroutine) -> Outcome) -> Outcome {
        let coroutine = self.coroutines.borrow()[usize::from(id)];
        coroutine.map_or(Outcome::Absent, f)
    }

    fn take_handle(&self, id: Id) -> Option<JoinHandle<Mark>> {
        self.handles.borrow_mut()[usize::from(id)].take()
    }

    fn hold<'w>(
        &'w self,
        who: Who,
        mutex: Id,
        locals: &mut Locals<'w>,
        lock: impl FnOnce(&'w CoMutex<Option<Who>>) -> Option<CoMutexGuard<'w, Option<Who>>>,
    ) -> Outcome {
        let Some(guard) = lock(&self.mutexes[usize::from(mutex)]) else { return Outcome::Cancelled };
        locals.held[usize::from(mutex)] = Some(Held::new(guard, who));
        Outcome::Done
    }

    fn wait<'w>(
        &'w self,
        who: Who,
        queue: Id,
        mutex: Id,
        locals: &mut Locals<'w>,
        wait: impl FnOnce(&CoQueue, CoMutexGuard<'w, Option<Who>>) -> Option<CoMutexGuard<'w, Option<Who>>>,
    ) -> Outcome {
        let Some(held) = locals.held[usize::from(mutex)].take() else { return Outcome::Absent };
        let guard = held.give();
        self.hold(who, mutex, locals, |_| wait(&self.queues[usize::from(queue)], guard))
    }
}

fn registered<T>(slots: &RefCell<Vec<Option<T>>>, id: Id, f: impl FnOnce(&mut Option<T>) -> Option<()>) -> Outcome {
    let came = slots.borrow_mut().get_mut(usize::from(id)).and_then(f);
    came.map_or(Outcome::Absent, |()| Outcome::Done)
}

fn enter(coroutine: Coroutine) -> Outcome {
    coroutine.try_enter().map_or_else(|error| Outcome::Refused(in_short(&error.to_string())), |()| Outcome::Done)
}

/// Wakes from another thread, which is done when this returns.
fn wake_elsewhere(waker: Waker) {
    thread_local! {
        static ELSEWHERE: (Sender<Waker>, Receiver<()>) = {
            let (wakers, to_wake) = channel::<Waker>();
            let (tell, told) = channel();
            thread::spawn(move || {
                for waker in to_wake {
                    waker.wake();
                    drop(waker);
                    tell.send(()).expect("the receiver waits");
                }
            });
            (wakers, told)
        };
    }
    ELSEWHERE.with(|(wakers, told)| {
        wakers.send(waker).expect("the thread runs as long as this one");
        told.recv().expect("it answers");
    });
}

fn done(f: impl FnOnce()) -> Outcome {
    f();
    Outcome::Done
}
