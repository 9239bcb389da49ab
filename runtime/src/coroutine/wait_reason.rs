//! What a suspended coroutine waits for, who could end that wait, and what ends it early.
//!
//! A coroutine records what it waits for before it suspends: two words, so the record is always on,
//! for dumps and deadlock reports. Waits for an event (time, a message, a descriptor, I/O) end
//! early with [`Cancelled`] when the coroutine is cancelled or an enclosing
//! [`timeout`](crate::timeout) expires; waits for a lock do so only in their `_cancellable`
//! variants.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::panic::Location;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::time::Instant;
use std::{fmt, ptr};

use crate::coroutine::control_block::{BlockRef, ControlBlock, State};
use crate::coroutine::error::Cancelled;
use crate::scheduler::Home;

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
    Sleep,
    Readable(i32),
    Writable(i32),
    Io,
    Future,
    Scope,
}

impl WaitReason {
    /// Returns the owner record, if the wait is for a lock.
    fn owner(&self) -> Option<&LockOwner> {
        match *self {
            WaitReason::CoMutex(holder)
            | WaitReason::Read(holder)
            | WaitReason::Write(holder)
            | WaitReason::Upgrade(holder) => {
                // SAFETY: *noted while it waits*: the lock is borrowed by the wait that recorded
                // it, and the record is read at home, while the coroutine is suspended in that
                // wait.
                Some(unsafe { &*holder })
            }
            _ => None,
        }
    }
}

impl BlockRef {
    /// Returns whether the coroutine has ended, as seen from `home`'s thread.
    fn has_ended(self, home: &Home) -> bool {
        !self.is_live()
            || self.block.context() == home.shared.id() && home.local(self.block).state.get() == State::Finished
    }
}

/// The party that could end a wait.
pub(crate) enum WakeSource {
    /// The kernel, or the clock.
    Event,
    /// A holder of a handle to the coroutine.
    Handle,
    /// This coroutine, the lock's owner or the one joined.
    Coroutine(&'static ControlBlock),
    /// No coroutine: the lock's owner has ended.
    Nobody,
    /// Some coroutine of this context.
    Others,
    /// Some coroutine or thread.
    Anyone,
}

impl WaitReason {
    /// Returns the party that could end the wait. `home` is the home of the waiting coroutine.
    pub(crate) fn wake_source(self, home: &Home) -> WakeSource {
        match self {
            WaitReason::Turn
            | WaitReason::Sleep
            | WaitReason::Readable(_)
            | WaitReason::Writable(_)
            | WaitReason::Io => WakeSource::Event,
            WaitReason::Enter => WakeSource::Handle,
            WaitReason::Join(block) => WakeSource::Coroutine(block),
            WaitReason::Scope => WakeSource::Others,
            WaitReason::CoMutex(_) | WaitReason::Read(_) | WaitReason::Write(_) | WaitReason::Upgrade(_) => {
                match self.owner().and_then(LockOwner::get).and_then(|owner| owner.holder) {
                    None => WakeSource::Anyone,
                    Some(holder) if holder.has_ended(home) => WakeSource::Nobody,
                    Some(holder) if holder.block.context() != home.shared.id() => WakeSource::Event,
                    Some(holder) => WakeSource::Coroutine(holder.block),
                }
            }
            WaitReason::CoQueue(_)
            | WaitReason::Semaphore(_)
            | WaitReason::Send(_)
            | WaitReason::Receive(_)
            | WaitReason::OneShot(_)
            | WaitReason::Future => WakeSource::Anyone,
        }
    }

    /// Returns whether the wait has stored a waker where others find it: in a wait queue, or in a
    /// future.
    pub(crate) fn keeps_waker(self) -> bool {
        !matches!(
            self,
            WaitReason::Enter
                | WaitReason::Turn
                | WaitReason::Join(_)
                | WaitReason::Sleep
                | WaitReason::Io
                | WaitReason::Scope
        )
    }
}

/// A wait, formatted for messages.
pub(crate) struct DisplayWait<'a>(&'a Home, WaitReason);

impl WaitReason {
    /// Formats the wait. `home` is the home of the waiting coroutine.
    pub(crate) fn display(self, home: &Home) -> DisplayWait<'_> {
        DisplayWait(home, self)
    }
}

impl fmt::Display for DisplayWait<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DisplayWait(home, reason) = *self;
        match reason {
            WaitReason::Enter => f.write_str("an enter or a wake"),
            WaitReason::Turn => f.write_str("its turn"),
            WaitReason::Join(block) => write!(f, "the end of {}", home.local(block).label()),
            WaitReason::CoMutex(lock) => write!(f, "CoMutex {lock:p}"),
            WaitReason::Read(lock) => write!(f, "read access to CoRwLock {lock:p}"),
            WaitReason::Write(lock) => write!(f, "write access to CoRwLock {lock:p}"),
            WaitReason::Upgrade(lock) => write!(f, "an upgrade of CoRwLock {lock:p}"),
            WaitReason::CoQueue(queue) => write!(f, "a wake of CoQueue {queue:#x}"),
            WaitReason::Semaphore(semaphore) => write!(f, "permits of Semaphore {semaphore:#x}"),
            WaitReason::Send(channel) => write!(f, "room in channel {channel:#x}"),
            WaitReason::Receive(channel) => write!(f, "a message in channel {channel:#x}"),
            WaitReason::OneShot(oneshot) => write!(f, "the value of oneshot {oneshot:#x}"),
            WaitReason::Sleep => f.write_str("the end of its sleep"),
            WaitReason::Readable(fd) => write!(f, "descriptor {fd} to become readable"),
            WaitReason::Writable(fd) => write!(f, "descriptor {fd} to become writable"),
            WaitReason::Io => f.write_str("I/O"),
            WaitReason::Future => f.write_str("a future"),
            WaitReason::Scope => f.write_str("the coroutines of its scope"),
        }?;
        let Some(owner) = reason.owner().and_then(LockOwner::get) else { return Ok(()) };
        f.write_str(", held by ")?;
        match owner.holder {
            None => f.write_str("a thread")?,
            Some(holder) if holder.has_ended(home) => f.write_str("a finished coroutine")?,
            Some(holder) if holder.block.context() != home.shared.id() => {
                f.write_str("a coroutine of another context")?
            }
            Some(holder) => write!(f, "{}", home.local(holder.block).label())?,
        }
        write!(f, " since {}", owner.at)
    }
}

/// Suspends the running coroutine as [`suspend`](super::suspend) does, and records the reason.
///
/// # Control
///
/// Yields.
#[inline]
#[track_caller]
pub(crate) fn suspend_for(reason: WaitReason) {
    Home::expect("suspending a coroutine").suspend_for(reason);
}

/// The owner of a lock, and where the lock was taken. For messages, and to detect a coroutine that
/// would wait for itself. Relaxed: a coroutine sees its own writes, and nothing depends on seeing
/// the writes of others.
#[derive(Default)]
pub(crate) struct LockOwner {
    block: AtomicPtr<ControlBlock>,
    /// Needed because a block serves one coroutine after another.
    generation: AtomicU64,
    at: AtomicPtr<Location<'static>>,
}

impl LockOwner {
    pub(crate) const fn new() -> LockOwner {
        LockOwner {
            block: AtomicPtr::new(ptr::null_mut()),
            generation: AtomicU64::new(0),
            at: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Records that the running coroutine or thread took the lock.
    #[inline]
    #[track_caller]
    pub(crate) fn record(&self) {
        if let Some(block) = Home::current().and_then(Home::running) {
            self.block.store(ptr::from_ref(block).cast_mut(), Ordering::Relaxed);
            self.generation.store(block.word.generation(), Ordering::Relaxed);
        }
        self.at.store(ptr::from_ref(Location::caller()).cast_mut(), Ordering::Relaxed);
    }

    /// Clears the record; called just before the lock is released.
    #[inline]
    pub(crate) fn clear(&self) {
        self.block.store(ptr::null_mut(), Ordering::Relaxed);
        self.at.store(ptr::null_mut(), Ordering::Relaxed);
    }

    /// Panics if the running coroutine owns the lock: it would wait for itself (rule S6).
    #[track_caller]
    pub(crate) fn panic_if_self(&self, what: &str) {
        let (Some(home), Some(owner)) = (Home::current(), self.get()) else { return };
        let (Some(running), Some(holder)) = (home.running(), owner.holder) else { return };
        if running.id() == holder {
            panic!(
                "{} locks a {what} that it already holds, taken at {}: it would wait for itself; drop the guard first",
                home.local(running).label(),
                owner.at
            );
        }
    }

    fn get(&self) -> Option<OwnerSnapshot> {
        // SAFETY: both pointers come from &'static references, and control blocks are type-stable.
        unsafe {
            let at = self.at.load(Ordering::Relaxed).as_ref()?;
            let generation = self.generation.load(Ordering::Relaxed);
            let block = self.block.load(Ordering::Relaxed).as_ref();
            Some(OwnerSnapshot { holder: block.map(|block| BlockRef { block, generation }), at })
        }
    }
}

struct OwnerSnapshot {
    /// `None`: taken on a thread's own stack, or in the loop.
    holder: Option<BlockRef>,
    at: &'static Location<'static>,
}

/// An active [`timeout`](crate::timeout). It lies on the stack of its coroutine; no other coroutine
/// touches it.
pub(crate) struct Deadline {
    pub(crate) deadline: Instant,
    /// Whether an operation failed because of it. Set by [`Home::cut_short`] only.
    pub(crate) hit: Cell<bool>,
    pub(crate) outer: *const Deadline,
}

impl Home {
    /// Returns whether waits of this coroutine end early: it was cancelled, or a timeout has
    /// expired. Has no side effect: the wait may still find that it has succeeded, and then the
    /// timeout must not be marked as hit.
    #[inline]
    pub(crate) fn is_cancelled(&self, block: &'static ControlBlock) -> bool {
        // Usually neither.
        (block.word.is_cancelled() || !self.local(block).deadlines.get().is_null()) && self.is_cancelled_now(block)
    }

    #[cold]
    fn is_cancelled_now(&self, block: &'static ControlBlock) -> bool {
        self.local(block).shields.get() == 0 && (block.word.is_cancelled() || self.expired_limit(block).is_some())
    }

    /// Commits an operation of this coroutine to failure, and returns its error. The outermost
    /// expired timeout will return [`TimedOut`](crate::TimedOut). Called after
    /// [`is_cancelled`](Self::is_cancelled), once the operation can no longer succeed: it has left
    /// its queue, and nothing was granted to it (rule S4).
    #[cold]
    pub(crate) fn cut_short(&self, block: &'static ControlBlock) -> Cancelled {
        if self.local(block).shields.get() == 0 && !block.word.is_cancelled() {
            if let Some(limit) = self.expired_limit(block) {
                limit.hit.set(true);
            }
        }
        Cancelled
    }

    /// Returns the outermost timeout of this coroutine whose deadline has passed.
    fn expired_limit(&self, block: &'static ControlBlock) -> Option<&Deadline> {
        let now = self.shared.clock.now();
        let mut over = None;
        let mut next = self.local(block).deadlines.get();
        // SAFETY: *limits nest*: each lies in a frame of `timeout` on this coroutine's stack, which
        // unlinks it before it returns.
        while let Some(limit) = unsafe { next.as_ref() } {
            if limit.deadline <= now {
                over = Some(limit);
            }
            next = limit.outer;
        }
        over
    }

    /// Suspends the running coroutine until `look` returns a value, or until the wait is cut short
    /// with [`Cancelled`].
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub(crate) fn suspend_until<R>(
        &self,
        reason: WaitReason,
        mut look: impl FnMut() -> Option<R>,
    ) -> Result<R, Cancelled> {
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if let Some(block) = self.running().filter(|block| self.is_cancelled(block)) {
                return Err(self.cut_short(block));
            }
            self.suspend_for(reason);
        }
    }
}
