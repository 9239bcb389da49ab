//! A reader-writer lock for coroutines (rule S3).
//!
//! Without waiters, one word is the whole state: the number of readers, or one writer. The word's
//! line bit shows that there are waiters:
//!
//! - *the line bit*: it is changed only under the wait queue's lock, and while that is free it is
//!   set exactly if the queue is not empty. While it is set, access is obtained only by a grant,
//!   which is given under the queue's lock: so there is no overtaking, and a stream of readers
//!   cannot starve a writer. Shares are released at any time, with one operation on the word.
//!
//! No waiter is lost. A queued waiter set the bit, or saw it set, in a state that excluded it, so a
//! later release of a share observes the bit. A release that observes the bit and leaves neither
//! reader nor writer then takes the queue's lock, and admits waiters from the head: one writer, or
//! readers up to the next writer. A downgrade does likewise, since it leaves only readers. So does
//! a waiter that leaves the queue without its grant, since it may have been the only obstacle for
//! the waiters behind it. Two threads may do this at the same time; each reads the word again.
//!
//! Each change of the word is a read-modify-write. So an acquire that finds it free synchronizes
//! with every earlier holder, not only the last: each holder's release heads a release sequence
//! that the later operations continue.

#![allow(unsafe_code)]

mod guard;

use crate::atomic::{AtomicU32, Ordering};
use crate::coroutine::{Cancelled, LockOwner, WaitReason};
use crate::sync::wait_queue::{Abandoned, EndsEarly, IF_CANCELLED, Locked, WaitQueue};
use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;

pub use guard::{CoRwReadGuard, CoRwWriteGuard};

/// There is a writer.
const WRITER: u32 = 1;
/// There are waiters: *the line bit*.
const LINE: u32 = 2;
/// One reader; readers are counted above the two bits.
const READER: u32 = 4;

/// The kind of access requested or held.
#[derive(Clone, Copy, Debug, Default)]
enum Share {
    #[default]
    Read,
    Write,
}

impl Share {
    /// Returns the word with this share added, or `None` if the current holders exclude it.
    #[inline]
    fn added_to(self, state: u32) -> Option<u32> {
        match self {
            Share::Read if state & WRITER == 0 => Some(
                state
                    .checked_add(READER)
                    .expect("more than 2^30 guards of one CoRwLock: guards were leaked; drop each guard"),
            ),
            Share::Write if state & !LINE == 0 => Some(state | WRITER),
            Share::Read | Share::Write => None,
        }
    }
}

/// A fair reader-writer lock for coroutines of any number of contexts and threads.
///
/// First come, first served: a reader that arrives while a writer waits queues behind it. So a
/// coroutine that holds read access must not request it again: with a writer in between it would
/// wait for itself.
///
/// ```
/// use coralio::{spawn, yield_now};
/// use coralio::sync::CoRwLock;
/// use std::rc::Rc;
///
/// coralio::run(|| {
///     let table = Rc::new(CoRwLock::new(vec![1, 2]));
///     let readers = [(); 2].map(|()| {
///         let table = Rc::clone(&table);
///         spawn(move || {
///             let table = table.read();
///             yield_now(); // the other one reads meanwhile
///             table.len()
///         })
///     });
///     let writer = spawn({
///         let table = Rc::clone(&table);
///         move || table.write().push(3) // when both have read
///     });
///     for reader in readers {
///         assert_eq!(reader.join().unwrap(), 2);
///     }
///     writer.join().unwrap();
///     assert_eq!(*table.read(), [1, 2, 3]);
/// });
/// ```
///
/// Converts read access to write access, and back:
///
/// ```
/// use coralio::context::AioContext;
/// use coralio::sync::CoRwLock;
///
/// AioContext::run(|_ctx| {
///     let mut cache = CoRwLock::new(None);
///     let reading = cache.read_cancellable().unwrap();
///     assert!(cache.try_write().is_none() && reading.is_none());
///     let mut writing = match reading.try_upgrade() {
///         Ok(writing) => writing, // the value has not changed
///         Err(reading) => reading.upgrade(), // another coroutine may have written: check again
///     };
///     *writing = Some("filled");
///     let reading = writing.downgrade();
///     assert_eq!(*reading, Some("filled"));
///     drop(reading);
///     *cache.write_cancellable().unwrap() = None;
///     assert_eq!(*cache.get_mut(), None); // exclusive: needs no lock
/// });
/// ```
#[doc(alias = "qemu_co_rwlock_init")]
pub struct CoRwLock<T: ?Sized> {
    state: AtomicU32,
    /// The writer.
    owner: LockOwner,
    queue: WaitQueue<Share>,
    value: UnsafeCell<T>,
}

// SAFETY: the lock owns the value.
unsafe impl<T: ?Sized + Send> Send for CoRwLock<T> {}
// SAFETY: a writer has exclusive access, so the value is sent from one writer to the next; readers
// on several threads share it.
unsafe impl<T: ?Sized + Send + Sync> Sync for CoRwLock<T> {}

impl<T> CoRwLock<T> {
    /// Creates an unlocked lock around `value`.
    pub const fn new(value: T) -> CoRwLock<T> {
        CoRwLock {
            state: AtomicU32::new(0),
            owner: LockOwner::new(),
            queue: WaitQueue::new(()),
            value: UnsafeCell::new(value),
        }
    }

    /// Returns the value.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> CoRwLock<T> {
    /// Locks for reading; suspends the coroutine while there is a writer, or a waiting writer
    /// ahead. First come, first served. Neither cancellation nor a timeout ends the wait: see
    /// [`read_cancellable`](Self::read_cancellable).
    ///
    /// # Panics
    ///
    /// If the coroutine holds the lock for writing.
    ///
    /// # Control
    ///
    /// May yield.
    #[inline]
    #[track_caller]
    #[doc(alias = "qemu_co_rwlock_rdlock")]
    pub fn read(&self) -> CoRwReadGuard<'_, T> {
        self.take(Share::Read, WaitReason::Read(&self.owner));
        self.reading()
    }

    /// Locks like [`read`](Self::read), but ends the wait early if the coroutine is cancelled or an
    /// enclosing timeout expires.
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. A lock that is free is acquired nevertheless.
    ///
    /// # Panics
    ///
    /// As [`read`](Self::read).
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn read_cancellable(&self) -> Result<CoRwReadGuard<'_, T>, Cancelled> {
        self.take_cancellable(Share::Read, WaitReason::Read(&self.owner))?;
        Ok(self.reading())
    }

    /// Locks for reading, if there is no writer and no waiter.
    #[inline]
    pub fn try_read(&self) -> Option<CoRwReadGuard<'_, T>> {
        self.try_take(Share::Read, false).then(|| self.reading())
    }

    /// Locks for writing; suspends the coroutine while others hold the lock. First come, first
    /// served. Neither cancellation nor a timeout ends the wait: see
    /// [`write_cancellable`](Self::write_cancellable).
    ///
    /// # Panics
    ///
    /// If the coroutine holds the lock for writing.
    ///
    /// # Control
    ///
    /// May yield.
    #[inline]
    #[track_caller]
    #[doc(alias = "qemu_co_rwlock_wrlock")]
    pub fn write(&self) -> CoRwWriteGuard<'_, T> {
        self.take(Share::Write, WaitReason::Write(&self.owner));
        self.writing()
    }

    /// Locks like [`write`](Self::write), but ends the wait early if the coroutine is cancelled or
    /// an enclosing timeout expires.
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. A lock that is free is acquired nevertheless.
    ///
    /// # Panics
    ///
    /// As [`write`](Self::write).
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn write_cancellable(&self) -> Result<CoRwWriteGuard<'_, T>, Cancelled> {
        self.take_cancellable(Share::Write, WaitReason::Write(&self.owner))?;
        Ok(self.writing())
    }

    /// Locks for writing, if the lock is free.
    #[inline]
    #[track_caller]
    pub fn try_write(&self) -> Option<CoRwWriteGuard<'_, T>> {
        self.try_take(Share::Write, false).then_some(())?;
        Some(self.writing())
    }

    /// Returns the value without locking: the exclusive borrow proves that the lock is not held.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// Creates the guard for a read share acquired by the caller.
    #[inline]
    fn reading(&self) -> CoRwReadGuard<'_, T> {
        CoRwReadGuard { lock: self, _not_send: PhantomData }
    }

    /// Creates the guard for write access acquired by the caller.
    #[inline]
    #[track_caller]
    fn writing(&self) -> CoRwWriteGuard<'_, T> {
        self.owner.record();
        CoRwWriteGuard { lock: self, _not_send: PhantomData }
    }

    /// Acquires a share, if there are no waiters or, under the queue's lock, for the first of them
    /// (`in_line`).
    #[inline]
    fn try_take(&self, share: Share, in_line: bool) -> bool {
        let mut now = self.state.load(Ordering::Relaxed);
        while in_line || now & LINE == 0 {
            // A waiter whose share does not fit: a later operation releases one, and observes the
            // line bit.
            let Some(next) = share.added_to(now) else { break };
            // Acquire pairs with the releases in `give_up` and `downgrade`; a grant passes the
            // synchronization on.
            match self.state.compare_exchange_weak(now, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(changed) => now = changed,
            }
        }
        false
    }

    /// Acquires a share, waiting if necessary.
    #[inline]
    #[track_caller]
    fn take(&self, share: Share, waiting: WaitReason) {
        if !self.try_take(share, false) {
            self.wait(share, waiting, None).expect("only an early end is an error");
        }
    }

    #[cold]
    #[track_caller]
    fn wait(&self, share: Share, waiting: WaitReason, ends_early: EndsEarly) -> Result<Share, Share> {
        let Some(locked) = self.line_up(share) else { return Ok(share) };
        self.queue.wait(locked, share, waiting, ends_early, || (), |gone| self.gone(gone))
    }

    /// Acquires like `take`, but ends early if the coroutine is cancelled.
    #[track_caller]
    fn take_cancellable(&self, share: Share, waiting: WaitReason) -> Result<(), Cancelled> {
        if !self.try_take(share, false) {
            self.wait(share, waiting, IF_CANCELLED).map_err(|_| Cancelled)?;
        }
        Ok(())
    }

    /// Acquires a share, or sets *the line bit*: then returns the locked queue, which the caller
    /// must join.
    #[track_caller]
    fn line_up(&self, share: Share) -> Option<Locked<'_, Share>> {
        // Checked before the queue is locked: a panic calls the panic hook, which is foreign code.
        self.owner.panic_if_self("CoRwLock");
        let locked = self.queue.lock();
        let mut now = self.state.load(Ordering::Relaxed);
        loop {
            let taken = if now & LINE == 0 { share.added_to(now) } else { None };
            // Acquire as in `try_take`, if it is taken. Setting the bit needs no ordering: a
            // release that observes it takes the queue's lock, and so sees everything done under
            // it.
            match self.state.compare_exchange(now, taken.unwrap_or(now | LINE), Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return taken.is_none().then_some(locked),
                Err(changed) => now = changed,
            }
        }
    }

    /// Handles a waiter that leaves.
    fn gone(&self, gone: Abandoned<'_, Share, ()>) {
        match gone {
            Abandoned::Left(locked) => self.grant_waiting(locked),
            Abandoned::Granted(share) => self.give_up(share),
        }
    }

    /// Releases a share, and admits the waiters that this allows.
    #[inline]
    fn give_up(&self, share: Share) {
        let share = match share {
            Share::Read => READER,
            Share::Write => WRITER,
        };
        // Release pairs with the acquires of the next holders.
        if self.state.fetch_sub(share, Ordering::Release) == share | LINE {
            self.grant_waiting(self.queue.lock());
        }
    }

    /// Admits waiters from the head of the queue, as far as the current holders allow.
    #[cold]
    #[track_caller]
    fn grant_waiting(&self, locked: Locked<'_, Share>) {
        self.queue.grant_all(locked, |locked| {
            let next = match locked.first() {
                Some(&mut share) if self.try_take(share, true) => locked.grant_first(),
                _ => None,
            };
            if locked.is_empty() {
                // Relaxed: it only lets others take the word as it is.
                self.state.fetch_and(!LINE, Ordering::Relaxed);
            }
            next
        });
    }
}

impl<T: Default> Default for CoRwLock<T> {
    fn default() -> CoRwLock<T> {
        CoRwLock::new(T::default())
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for CoRwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_read() {
            Some(guard) => f.debug_struct("CoRwLock").field("value", &&*guard).finish(),
            None => f.debug_struct("CoRwLock").field("value", &format_args!("<locked>")).finish(),
        }
    }
}
