//! Which party could end a wait.

use std::fmt;

use crate::coroutine::{ControlBlock, CoroutineId, LockOwner, State, WaitReason};
use crate::scheduler::Scheduler;
use crate::sys::format_fn;
use crate::trace::WaitKind;

impl CoroutineId {
    /// Returns whether the coroutine has ended, as seen from the scheduler's thread.
    fn has_ended(self, scheduler: &Scheduler) -> bool {
        !self.is_live()
            || self.block.context() == scheduler.shared.id()
                && scheduler.local(self.block).state.get() == State::Finished
    }
}

/// The party that could end a wait.
pub(crate) enum WakeSource {
    /// The kernel, or the clock.
    Event,
    /// This coroutine: the owner of the lock, or the coroutine that is joined.
    Coroutine(&'static ControlBlock),
    /// No coroutine: the lock's owner has ended.
    Nobody,
    /// Some coroutine of this context.
    Others,
    /// Some coroutine or thread.
    Anyone,
}

impl WaitReason {
    /// Returns the party that could end the wait. `scheduler` is that of the waiting coroutine.
    pub(crate) fn wake_source(self, scheduler: &Scheduler) -> WakeSource {
        match (WaitKind::from(self), self) {
            (_, WaitReason::Join(block)) => WakeSource::Coroutine(block),
            (WaitKind::Scope, _) => WakeSource::Others,
            (WaitKind::Lock, _) => match self.owner().and_then(LockOwner::get).and_then(|owner| owner.holder) {
                None => WakeSource::Anyone,
                Some(holder) if holder.has_ended(scheduler) => WakeSource::Nobody,
                Some(holder) if holder.block.context() != scheduler.shared.id() => WakeSource::Event,
                Some(holder) => WakeSource::Coroutine(holder.block),
            },
            (WaitKind::Enter | WaitKind::Message | WaitKind::Future, _) => WakeSource::Anyone,
            (WaitKind::Turn | WaitKind::Join | WaitKind::Time | WaitKind::Descriptor | WaitKind::Io, _) => {
                WakeSource::Event
            }
        }
    }
}

impl WaitReason {
    /// Formats the wait. `scheduler` is that of the waiting coroutine.
    pub(crate) fn display(self, scheduler: &Scheduler) -> impl fmt::Display {
        format_fn(move |f| {
            match self {
                WaitReason::Enter => f.write_str("an enter or a wake"),
                WaitReason::Turn => f.write_str("its turn"),
                WaitReason::Join(block) => write!(f, "the end of {}", scheduler.local(block).label()),
                WaitReason::CoMutex(lock) => write!(f, "CoMutex {lock:p}"),
                WaitReason::Read(lock) => write!(f, "read access to CoRwLock {lock:p}"),
                WaitReason::Write(lock) => write!(f, "write access to CoRwLock {lock:p}"),
                WaitReason::Upgrade(lock) => write!(f, "an upgrade of CoRwLock {lock:p}"),
                WaitReason::CoQueue(queue) => write!(f, "a wake of CoQueue {queue:#x}"),
                WaitReason::Semaphore(semaphore) => write!(f, "permits of Semaphore {semaphore:#x}"),
                WaitReason::Send(channel) => write!(f, "room in channel {channel:#x}"),
                WaitReason::Receive(channel) => write!(f, "a message in channel {channel:#x}"),
                WaitReason::OneShot(oneshot) => write!(f, "the value of oneshot {oneshot:#x}"),
                WaitReason::Notify(notify) => write!(f, "a notification of Notify {notify:#x}"),
                WaitReason::Watch(channel) => write!(f, "a change of watch channel {channel:#x}"),
                WaitReason::Barrier(barrier) => write!(f, "the others at Barrier {barrier:#x}"),
                WaitReason::Sleep => f.write_str("the end of its sleep"),
                WaitReason::Readable(fd) => write!(f, "descriptor {fd} to become readable"),
                WaitReason::Writable(fd) => write!(f, "descriptor {fd} to become writable"),
                WaitReason::Io => f.write_str("I/O"),
                WaitReason::Future => f.write_str("a future"),
                WaitReason::Scope => f.write_str("the coroutines of its scope"),
                WaitReason::JoinSet => f.write_str("a coroutine of its JoinSet"),
            }?;
            let Some(owner) = self.owner().and_then(LockOwner::get) else { return Ok(()) };
            f.write_str(", held by ")?;
            match owner.holder {
                None => f.write_str("a thread or an owned guard")?,
                Some(holder) if holder.has_ended(scheduler) => f.write_str("a finished coroutine")?,
                Some(holder) if holder.block.context() != scheduler.shared.id() => {
                    f.write_str("a coroutine of another context")?
                }
                Some(holder) => write!(f, "{}", scheduler.local(holder.block).label())?,
            }
            write!(f, " since {}", owner.at)
        })
    }
}
