//! What a suspended coroutine waits for.
//!
//! A coroutine records that before it suspends: two words, so the record is always on, for dumps
//! and deadlock reports.

#![allow(unsafe_code)]

use crate::coroutine::{ControlBlock, LockOwner};
use crate::trace::WaitKind;

/// The reason for which a coroutine is suspended. The address distinguishes objects of one kind.
#[derive(Clone, Copy, Default)]
pub(crate) enum WaitReason {
    /// An enter or a wake: a bare `suspend`.
    #[default]
    Enter,
    /// Its turn: `yield_now`.
    Turn,
    Join(&'static ControlBlock),
    CoMutex(*const LockOwner),
    Read(*const LockOwner),
    Write(*const LockOwner),
    Upgrade(*const LockOwner),
    CoQueue(usize),
    Semaphore(usize),
    Send(usize),
    Receive(usize),
    OneShot(usize),
    Notify(usize),
    Watch(usize),
    Barrier(usize),
    Sleep,
    Readable(i32),
    Writable(i32),
    Io,
    Future,
    Scope,
    JoinSet,
}

impl WaitReason {
    /// Returns the owner record, if the wait is for a lock.
    pub(crate) fn owner(&self) -> Option<&LockOwner> {
        match *self {
            WaitReason::CoMutex(holder)
            | WaitReason::Read(holder)
            | WaitReason::Write(holder)
            | WaitReason::Upgrade(holder) => {
                // SAFETY: *recorded while it waits*: the lock is borrowed by the wait that recorded
                // it, and the record is read at home, while the coroutine is suspended in that
                // wait.
                Some(unsafe { &*holder })
            }
            _ => None,
        }
    }
}

impl From<WaitReason> for WaitKind {
    fn from(reason: WaitReason) -> WaitKind {
        match reason {
            WaitReason::Enter => WaitKind::Enter,
            WaitReason::Turn => WaitKind::Turn,
            WaitReason::Join(_) => WaitKind::Join,
            WaitReason::CoMutex(_) | WaitReason::Read(_) | WaitReason::Write(_) | WaitReason::Upgrade(_) => {
                WaitKind::Lock
            }
            WaitReason::CoQueue(_)
            | WaitReason::Semaphore(_)
            | WaitReason::Send(_)
            | WaitReason::Receive(_)
            | WaitReason::OneShot(_)
            | WaitReason::Notify(_)
            | WaitReason::Watch(_)
            | WaitReason::Barrier(_) => WaitKind::Message,
            WaitReason::Sleep => WaitKind::Time,
            WaitReason::Readable(_) | WaitReason::Writable(_) => WaitKind::Descriptor,
            WaitReason::Io => WaitKind::Io,
            WaitReason::Future => WaitKind::Future,
            WaitReason::Scope | WaitReason::JoinSet => WaitKind::Scope,
        }
    }
}
