//! Permits, counted: so many coroutines at a time, or so many things that there are (rule S4).
//!
//! The count lies under the lock of the line. Whoever gives permits back looks at the head of the line, and lets in as many
//! as there are permits for, in order; nobody who comes later is asked before them, however few it wants.

use std::fmt;
use std::mem::ManuallyDrop;

use super::wait_queue::{Gone, Locked, WaitQueue};
use crate::coroutine::Cancelled;
use crate::coroutine::waiting::Waiting;

/// A number of permits, for coroutines of any number of contexts and threads. First come, first served: one that waits for
/// many is not overtaken by one that wants few.
///
/// ```
/// use coralio_runtime::{AioContext, Semaphore, spawn, yield_now};
/// use std::cell::Cell;
/// use std::rc::Rc;
///
/// AioContext::run(|_ctx| {
///     let shared = Rc::new((Semaphore::new(2), Cell::new(0)));
///     let tasks = [(); 5].map(|()| {
///         let shared = Rc::clone(&shared);
///         spawn(move || {
///             let (semaphore, running) = &*shared;
///             let _permit = semaphore.acquire();
///             running.set(running.get() + 1);
///             assert!(running.get() <= 2);
///             yield_now();
///             running.set(running.get() - 1);
///         })
///     });
///     for task in tasks {
///         task.join().unwrap();
///     }
///     assert_eq!(shared.0.available(), 2);
/// });
/// ```
pub struct Semaphore {
    /// Nodes carry how many are wanted; the state is how many there are.
    line: WaitQueue<usize, usize>,
}

impl Semaphore {
    /// A semaphore that has so many permits.
    pub const fn new(permits: usize) -> Semaphore {
        Semaphore { line: WaitQueue::new(permits) }
    }

    /// Takes a permit; suspends the coroutine while there is none. First come, first served. Neither cancelling nor a
    /// timeout ends the wait: see [`acquire_cancellable`](Self::acquire_cancellable).
    ///
    /// # Panics
    ///
    /// Outside a coroutine, if it would have to wait.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn acquire(&self) -> Permit<'_> {
        self.acquire_many(1)
    }

    /// Takes so many permits at once; suspends the coroutine while there are fewer. Permits can be added at any time, so a
    /// number that there never was is waited for like any other.
    ///
    /// # Panics
    ///
    /// Outside a coroutine, if it would have to wait.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    #[doc(alias = "co_get_from_shres")]
    pub fn acquire_many(&self, count: usize) -> Permit<'_> {
        if let Err(line) = self.take(count) {
            self.line.wait(line, count, self.waiting(), || (), |gone| self.gone(gone));
        }
        Permit { semaphore: self, count }
    }

    /// As [`acquire`](Self::acquire), unless the coroutine is cancelled meanwhile, or a timeout around this is over.
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. A permit that is there is taken all the same.
    ///
    /// # Panics
    ///
    /// Outside a coroutine, if it would have to wait.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn acquire_cancellable(&self) -> Result<Permit<'_>, Cancelled> {
        self.acquire_many_cancellable(1)
    }

    /// As [`acquire_many`](Self::acquire_many), unless the coroutine is cancelled meanwhile, or a timeout around this is
    /// over.
    ///
    /// # Errors
    ///
    /// [`Cancelled`]. Permits that are there are taken all the same.
    ///
    /// # Panics
    ///
    /// Outside a coroutine, if it would have to wait.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn acquire_many_cancellable(&self, count: usize) -> Result<Permit<'_>, Cancelled> {
        if let Err(line) = self.take(count) {
            let granted = self.line.wait_cancellable(line, count, self.waiting(), || (), |gone| self.gone(gone));
            granted.map_err(|_| Cancelled)?;
        }
        Ok(Permit { semaphore: self, count })
    }

    /// Takes a permit, if there is one and nobody waits.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn try_acquire(&self) -> Option<Permit<'_>> {
        self.take(1).is_ok().then(|| Permit { semaphore: self, count: 1 })
    }

    /// Adds permits. From any thread, in a coroutine or not.
    ///
    /// # Panics
    ///
    /// If that makes more than `usize::MAX`.
    ///
    /// # Control
    ///
    /// Never switches. Those that waited for them run when the running coroutine yields, or else in their loops' next
    /// rounds.
    #[track_caller]
    pub fn add_permits(&self, count: usize) {
        let mut line = self.line.lock();
        let Some(sum) = line.state().checked_add(count) else {
            drop(line);
            panic!("{count} permits more than a semaphore can count; are permits added that are given back as well?");
        };
        *line.state() = sum;
        self.let_in(line);
    }

    /// How many permits there are. It may have changed by the time one looks at it.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn available(&self) -> usize {
        *self.line.lock().state()
    }

    /// Takes permits if nobody is in line; otherwise returns the line, to stand in.
    fn take(&self, count: usize) -> Result<(), Locked<'_, usize, usize>> {
        let mut line = self.line.lock();
        match line.state().checked_sub(count) {
            Some(rest) if line.is_empty() => {
                *line.state() = rest;
                Ok(())
            }
            _ => Err(line),
        }
    }

    /// Lets in the first in line, as long as there are permits.
    #[track_caller]
    fn let_in(&self, line: Locked<'_, usize, usize>) {
        self.line.hand_out(line, |line| {
            let wanted = *line.first()?;
            *line.state() = line.state().checked_sub(wanted)?;
            line.grant_first()
        });
    }

    /// One goes away that waited.
    fn gone(&self, gone: Gone<'_, usize, usize>) {
        match gone {
            // Those behind it may want less.
            Gone::Left(line) => self.let_in(line),
            Gone::Granted(count) => self.add_permits(count),
        }
    }

    fn waiting(&self) -> Waiting {
        Waiting::Semaphore(std::ptr::from_ref(self).addr())
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("available", &self.available()).finish()
    }
}

/// One permit or several, taken together. Dropping it gives them back, on whichever thread.
#[must_use = "the permits are given back when this is dropped"]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    count: usize,
}

impl Permit<'_> {
    /// The permits are not given back: they are used up, or somebody will [add](Semaphore::add_permits) them.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn forget(self) {
        _ = ManuallyDrop::new(self);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.semaphore.add_permits(self.count);
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("count", &self.count).finish_non_exhaustive()
    }
}
