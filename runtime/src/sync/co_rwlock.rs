//! A lock that readers share and writers have alone (rule S3).
//!
//! One word decides as long as nobody waits: how many read, or that one writes. Its line bit says that somebody waits:
//!
//! - *the line bit*: it is changed under the line's lock alone, and while that is free it is set exactly if somebody is in
//!   line. While it is set nobody gets in but by a grant, which is given under the line's lock: so nobody overtakes, and
//!   no stream of readers keeps a writer out. Shares are given up at any time, with one operation on the word.
//!
//! Nobody is forgotten. Whoever stands in line has set the bit, or found it set, in a word that did not let it in; so some
//! share is given up later than that, by an operation that finds the bit. The one that does so and leaves nobody who reads
//! or writes then takes the line's lock, and lets in whoever stands at its head: one writer, or readers up to the next
//! writer. A downgrade does likewise, since it leaves readers alone. And one that leaves the line without its grant does,
//! for it may have been all that those behind it waited for. Two may be on the way to do this; each looks at the word anew.
//!
//! Each change of the word is a read-modify-write. So an acquire that finds it free sees what every holder did before, not
//! the last one alone: their releases head one sequence.

#![allow(unsafe_code)]

mod guard;

use crate::atomic::{AtomicU32, Ordering};
use std::cell::UnsafeCell;
use std::fmt;

pub use guard::{CoRwReadGuard, CoRwWriteGuard};

use super::wait_queue::{Gone, Locked, WaitQueue};
use crate::coroutine::Cancelled;
use crate::coroutine::waiting::{Holder, Waiting};

/// One writes.
const WRITER: u32 = 1;
/// Somebody is in line: *the line bit*.
const LINE: u32 = 2;
/// One that reads; they are counted above the two bits.
const READER: u32 = 4;

/// What is asked for, or held.
#[derive(Clone, Copy, Default)]
enum Share {
    #[default]
    Read,
    Write,
}

impl Share {
    /// The word with this share taken too, or `None` if those that hold one forbid it.
    #[inline]
    fn added_to(self, state: u32) -> Option<u32> {
        match self {
            Share::Read if state & WRITER == 0 => {
                Some(state.checked_add(READER).expect("2^30 guards of one CoRwLock; some were forgotten, not dropped"))
            }
            Share::Write if state & !LINE == 0 => Some(state | WRITER),
            Share::Read | Share::Write => None,
        }
    }
}

/// A fair lock that readers share and a writer has alone, for coroutines of any number of contexts and threads.
///
/// First come, first served: a reader that comes while a writer waits stands behind it. So a coroutine that reads must not
/// ask to read again: with a writer in between it would wait for itself.
///
/// ```
/// use coralio_runtime::{AioContext, CoRwLock, spawn, yield_now};
/// use std::rc::Rc;
///
/// AioContext::run(|_ctx| {
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
#[doc(alias = "qemu_co_rwlock_init")]
pub struct CoRwLock<T: ?Sized> {
    state: AtomicU32,
    /// Who writes.
    holder: Holder,
    line: WaitQueue<Share>,
    value: UnsafeCell<T>,
}

// SAFETY: the lock owns the value.
unsafe impl<T: ?Sized + Send> Send for CoRwLock<T> {}
// SAFETY: a writer has the value alone, so it is sent from one to the next; readers on several threads share it.
unsafe impl<T: ?Sized + Send + Sync> Sync for CoRwLock<T> {}

impl<T> CoRwLock<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> CoRwLock<T> {
        CoRwLock {
            state: AtomicU32::new(0),
            holder: Holder::new(),
            line: WaitQueue::new(()),
            value: UnsafeCell::new(value),
        }
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: ?Sized> CoRwLock<T> {
    /// Takes the lock to read; suspends the coroutine while one writes, or waits to. First come, first served. Neither
    /// cancelling nor a timeout ends the wait: see [`read_cancellable`](Self::read_cancellable).
    ///
    /// # Panics
    ///
    /// If the coroutine has the lock already, to write; outside a coroutine, if it would have to wait.
    ///
    /// # Control
    ///
    /// May yield.
    #[inline]
    #[track_caller]
    #[doc(alias = "qemu_co_rwlock_rdlock")]
    pub fn read(&self) -> CoRwReadGuard<'_, T> {
        self.take(Share::Read, Waiting::Read(&self.holder));
        self.reading()
    }

    /// As [`read`](Self::read), unless the coroutine is cancelled meanwhile, or a timeout around this is over.
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. A lock that is free is taken all the same.
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
        self.take_cancellable(Share::Read, Waiting::Read(&self.holder))?;
        Ok(self.reading())
    }

    /// Takes the lock to read, if none writes and none waits.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn try_read(&self) -> Option<CoRwReadGuard<'_, T>> {
        self.try_take(Share::Read).then(|| self.reading())
    }

    /// Takes the lock to write; suspends the coroutine while others have it. First come, first served. Neither cancelling
    /// nor a timeout ends the wait: see [`write_cancellable`](Self::write_cancellable).
    ///
    /// # Panics
    ///
    /// If the coroutine has the lock already, to write; outside a coroutine, if it would have to wait.
    ///
    /// # Control
    ///
    /// May yield.
    #[inline]
    #[track_caller]
    #[doc(alias = "qemu_co_rwlock_wrlock")]
    pub fn write(&self) -> CoRwWriteGuard<'_, T> {
        self.take(Share::Write, Waiting::Write(&self.holder));
        self.writing()
    }

    /// As [`write`](Self::write), unless the coroutine is cancelled meanwhile, or a timeout around this is over.
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. A lock that is free is taken all the same.
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
        self.take_cancellable(Share::Write, Waiting::Write(&self.holder))?;
        Ok(self.writing())
    }

    /// Takes the lock to write, if it is free.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    #[track_caller]
    pub fn try_write(&self) -> Option<CoRwWriteGuard<'_, T>> {
        self.try_take(Share::Write).then_some(())?;
        Some(self.writing())
    }

    /// The value, without locking: the borrow shows that nobody else has the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// A share was taken to read, by the caller.
    #[inline]
    fn reading(&self) -> CoRwReadGuard<'_, T> {
        CoRwReadGuard::new(self)
    }

    /// The lock was taken to write, by the caller.
    #[inline]
    #[track_caller]
    fn writing(&self) -> CoRwWriteGuard<'_, T> {
        self.holder.note();
        CoRwWriteGuard::new(self)
    }

    /// Takes a share, if nobody is in line.
    #[inline]
    fn try_take(&self, share: Share) -> bool {
        let mut now = self.state.load(Ordering::Relaxed);
        while now & LINE == 0
            && let Some(next) = share.added_to(now)
        {
            // Acquire pairs with the releases in `give_up` and `downgrade`.
            match self.state.compare_exchange_weak(now, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(changed) => now = changed,
            }
        }
        false
    }

    /// Takes a share; waits for it if need be.
    #[inline]
    #[track_caller]
    fn take(&self, share: Share, waiting: Waiting) {
        if !self.try_take(share) {
            self.wait(share, waiting);
        }
    }

    #[cold]
    #[track_caller]
    fn wait(&self, share: Share, waiting: Waiting) {
        if let Some(line) = self.line_up(share) {
            self.line.wait(line, share, waiting, || (), |gone| self.gone(gone));
        }
    }

    /// As `take`, unless the coroutine is cancelled meanwhile.
    #[track_caller]
    fn take_cancellable(&self, share: Share, waiting: Waiting) -> Result<(), Cancelled> {
        if !self.try_take(share)
            && let Some(line) = self.line_up(share)
        {
            let granted = self.line.wait_cancellable(line, share, waiting, || (), |gone| self.gone(gone));
            granted.map_err(|_| Cancelled)?;
        }
        Ok(())
    }

    /// Takes a share, or sets *the line bit*: then the caller must stand in the line, which is returned.
    #[track_caller]
    fn line_up(&self, share: Share) -> Option<Locked<'_, Share>> {
        // Without the line's lock: to panic is to run somebody else's hook.
        self.holder.refuse_self("CoRwLock");
        let line = self.line.lock();
        let mut now = self.state.load(Ordering::Relaxed);
        loop {
            let taken = if now & LINE == 0 { share.added_to(now) } else { None };
            // Acquire as in `try_take`, if it is taken. Setting the bit needs no order: whoever gives a share up and finds
            // it takes the line's lock, and sees what is done under it.
            match self.state.compare_exchange(now, taken.unwrap_or(now | LINE), Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return taken.is_none().then_some(line),
                Err(changed) => now = changed,
            }
        }
    }

    /// One goes away that waited.
    fn gone(&self, gone: Gone<'_, Share, ()>) {
        match gone {
            Gone::Left(line) => self.let_in(line),
            Gone::Granted(share) => self.give_up(share),
        }
    }

    /// Gives a share up, and lets in whoever waited for that.
    ///
    /// # Control
    ///
    /// Never switches. They run when the running coroutine yields, or else in their loops' next rounds.
    #[inline]
    fn give_up(&self, share: Share) {
        let share = match share {
            Share::Read => READER,
            Share::Write => WRITER,
        };
        // Release pairs with the acquires of whoever takes it next.
        if self.state.fetch_sub(share, Ordering::Release) == share | LINE {
            self.let_in(self.line.lock());
        }
    }

    /// Lets in whoever stands at the head of the line, as far as those that hold a share allow it.
    #[cold]
    #[track_caller]
    fn let_in(&self, line: Locked<'_, Share>) {
        self.line.hand_out(line, |line| {
            let next = match line.first() {
                Some(&mut share) if self.add_in_line(share) => line.grant_first(),
                _ => None,
            };
            if line.is_empty() {
                // Relaxed: it only lets others take the word as it is.
                self.state.fetch_and(!LINE, Ordering::Relaxed);
            }
            next
        });
    }

    /// Takes a share for the first in line, under the line's lock.
    fn add_in_line(&self, share: Share) -> bool {
        let mut now = self.state.load(Ordering::Relaxed);
        // If it does not fit, a share is given up later than what was read here, and by one that finds the line bit.
        while let Some(next) = share.added_to(now) {
            // Acquire pairs with the releases in `give_up` and `downgrade`; the grant passes on what is seen here.
            match self.state.compare_exchange(now, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(changed) => now = changed,
            }
        }
        false
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
