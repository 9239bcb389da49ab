//! Scopes: coroutines that borrow from the frame that waits for them (rule S4).
//!
//! A scope does not end, by any exit, before all its coroutines have: it waits for them. Where it
//! cannot wait, since the stack of its own coroutine unwinds, it unwinds them in place. A result
//! that was not fetched is dropped before the scope ends, since it may borrow as well. So
//! everything they borrow outlives them: *the scope ends last*.

#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::{io, thread, vec};

use crate::context::LocalContext;
use crate::coroutine::{Cancelled, CoroutineId, WaitReason};
use crate::scheduler::Scheduler;
use crate::sys::{__rust_begin_short_backtrace, Payload, drop_quietly, opaque_debug};
use crate::task::{Coroutine, CoroutineBuilder, JoinHandle, expect_spawned};

/// Runs `f`, which may spawn coroutines that borrow, and waits for all of them. A coroutine is
/// suspended meanwhile; on the thread's own stack, the loop runs.
///
/// ```
/// use coralio::{scope, yield_now};
///
/// coralio::run(|| {
///     let mut halves = [1, 2, 3, 4];
///     let (left, right) = halves.split_at_mut(2);
///     scope(|s| {
///         for half in [left, right] {
///             s.spawn(move || {
///                 yield_now();
///                 half.iter_mut().for_each(|n| *n *= 10);
///             });
///         }
///     });
///     assert_eq!(halves, [10, 20, 30, 40]);
/// });
/// ```
///
/// # Panics
///
/// If `f` panics: the scope's coroutines are cancelled and waited for, then the panic propagates.
/// If a coroutine of the scope panics and its handle is not joined: that panic propagates after the
/// others have ended. Outside a context.
///
/// # Control
///
/// May yield; on the thread's own stack, may enter.
#[track_caller]
pub fn scope<'env, F, T>(f: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    let scheduler = Scheduler::expect("a scope");
    let scope = Scope {
        members: RefCell::new(Vec::new()),
        left: Cell::new(0),
        waiter: Cell::new(None),
        panic: Cell::new(None),
        scope: PhantomData,
        env: PhantomData,
    };
    let end = End(scheduler, &scope);
    let value = catch_unwind(AssertUnwindSafe(|| f(&scope)));
    if value.is_err() {
        scope.cancel();
    }
    scope.wait(scheduler);
    drop(end);
    match (value, scope.panic.take()) {
        (Ok(value), None) => value,
        (Err(payload), _) | (_, Some(payload)) => resume_unwind(payload),
    }
}

type Panic = Cell<Option<Payload>>;

/// A scope to spawn coroutines in, which may borrow from outside the call of [`scope()`].
pub struct Scope<'scope, 'env: 'scope> {
    /// The coroutines spawned; some may have ended.
    members: RefCell<Vec<CoroutineId>>,
    /// The number of coroutines that have not ended.
    left: Cell<usize>,
    /// The coroutine that waits for the last of them.
    waiter: Cell<Option<CoroutineId>>,
    /// The first panic that no handle receives.
    panic: Panic,
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope> Scope<'scope, '_> {
    /// Spawns a coroutine as [`spawn`](crate::spawn()) does, from a closure that may borrow.
    ///
    /// # Panics
    ///
    /// If there is no memory for a stack, or the context is ending.
    #[track_caller]
    pub fn spawn<F, T>(&'scope self, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + 'scope,
        T: 'scope,
    {
        expect_spawned(self.spawn_with(Coroutine::builder(), f))
    }

    /// Spawns a coroutine as [`spawn`](Self::spawn) does, with a name or a stack size.
    ///
    /// ```
    /// use coralio::scope;
    /// use coralio::context::AioContext;
    /// use coralio::coroutine::Coroutine;
    ///
    /// AioContext::run(|_ctx| {
    ///     let words = ["one", "three"];
    ///     let longest = scope(|s| {
    ///         let builder = Coroutine::builder().name("longest").stack_size(1 << 20);
    ///         let longest = s.spawn_with(builder, || words.iter().map(|word| word.len()).max());
    ///         longest.unwrap().join().unwrap()
    ///     });
    ///     assert_eq!(longest, Some(5));
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// No memory for a stack, or the context is ending.
    #[track_caller]
    pub fn spawn_with<F, T>(&'scope self, builder: CoroutineBuilder, f: F) -> io::Result<ScopedJoinHandle<'scope, T>>
    where
        F: FnOnce() -> T + 'scope,
        T: 'scope,
    {
        let ended = Ended(self);
        self.left.set(self.left.get() + 1);
        let body = move || {
            // Dropped last.
            let ended = ended;
            let run = || {
                let value = __rust_begin_short_backtrace(f);
                // The value will not be fetched. Dropped here, while the coroutine still counts: it
                // may borrow, and its destructor may run the loop, and with it the party that waits
                // for the scope.
                (!is_detached()).then_some(value)
            };
            match catch_unwind(AssertUnwindSafe(run)) {
                Ok(value) => value,
                Err(payload) => {
                    if is_detached() {
                        keep(&ended.0.panic, payload);
                        resume_unwind(Box::new(Cancelled));
                    }
                    resume_unwind(payload)
                }
            }
        };
        // SAFETY: *the scope ends last*: everything `body` borrows lives for 'scope, and `End`
        // ensures that neither the coroutine nor its result outlives it.
        let handle = unsafe { builder.spawn_borrowing(body) }?;
        let mut members = self.members.borrow_mut();
        if members.len() > 2 * self.left.get() + 16 {
            members.retain(|member| member.is_live());
        }
        members.push(handle.id);
        Ok(ScopedJoinHandle { handle: ManuallyDrop::new(handle), panic: &self.panic })
    }

    /// Cancels all coroutines that have not ended, as
    /// [`Coroutine::cancel`](crate::Coroutine::cancel).
    ///
    /// # Panics
    ///
    /// Propagates a panic of a coroutine that this call enters. All are cancelled nevertheless.
    ///
    /// # Control
    ///
    /// May enter the coroutines, on the thread's own stack.
    #[track_caller]
    pub fn cancel(&self) {
        /// The members not cancelled yet. If one panics, the others are cancelled while that panic
        /// unwinds, when `cancel` enters none.
        struct Rest(vec::IntoIter<CoroutineId>);
        impl Drop for Rest {
            fn drop(&mut self) {
                for member in self.0.by_ref() {
                    Coroutine::of(member).cancel();
                }
            }
        }
        // A copy: members that are entered here may spawn more, which may compact the list.
        let mut rest = Rest(self.members.borrow().clone().into_iter());
        for member in rest.0.by_ref() {
            Coroutine::of(member).cancel();
        }
    }

    /// Waits until all members have ended, as far as waiting is possible.
    #[track_caller]
    fn wait(&self, scheduler: &Scheduler) {
        match scheduler.running() {
            Some(running) => {
                let mut has_cancelled = false;
                while self.left.get() > 0 && scheduler.can_suspend() {
                    // The waiting coroutine is to end early, so its members are cancelled. A
                    // timeout around the scope then counts as hit, since it is unknown which
                    // members are still affected.
                    if !has_cancelled && scheduler.is_cancelled(running) {
                        has_cancelled = true;
                        scheduler.cut_short(running);
                        self.cancel();
                    }
                    self.waiter.set(Some(running.id()));
                    scheduler.suspend_for(WaitReason::Scope);
                }
            }
            None => {
                let done = || self.left.get() == 0 || scheduler.is_ending();
                LocalContext::expect("a scope").context.poll_until(done);
            }
        }
    }
}

/// Keeps the first real panic.
fn keep(panic: &Panic, payload: Payload) {
    let first = panic.take();
    if payload.is::<Cancelled>() || first.is_some() {
        panic.set(first);
        drop_quietly(payload);
    } else {
        panic.set(Some(payload));
    }
}

/// Returns whether the running coroutine is detached.
fn is_detached() -> bool {
    Scheduler::current()
        .is_some_and(|scheduler| scheduler.running().is_some_and(|block| scheduler.local(block).detached.get()))
}

/// Held by each coroutine of a scope, and dropped last.
struct Ended<'a, 'scope, 'env>(&'a Scope<'scope, 'env>);

impl Drop for Ended<'_, '_, '_> {
    fn drop(&mut self) {
        let left = self.0.left.get() - 1;
        self.0.left.set(left);
        if left == 0 {
            if let (Some(scheduler), Some(waiter)) = (Scheduler::current(), self.0.waiter.take()) {
                // The waiter runs after this coroutine has ended, when its result is stored.
                scheduler.wake_later(waiter);
            }
        }
    }
}

/// Ensures that nothing of a scope is left, by any exit.
struct End<'a, 'scope, 'env>(&'a Scheduler, &'a Scope<'scope, 'env>);

impl Drop for End<'_, '_, '_> {
    fn drop(&mut self) {
        let End(scheduler, scope) = *self;
        loop {
            // Not borrowed during the loop: a destructor may spawn more, which are ended in turn.
            let members = scope.members.take();
            if members.is_empty() {
                break;
            }
            // In order of creation, as a context ends them.
            for member in members {
                if let Some(payload) = scheduler.end_now(member) {
                    keep(&scope.panic, payload);
                }
            }
        }
    }
}

/// A handle to a coroutine of a scope: waits for it and returns its result. It may be dropped: the
/// scope still waits for the coroutine.
pub struct ScopedJoinHandle<'scope, T> {
    /// The coroutine stores no value if the handle is dropped before the end.
    handle: ManuallyDrop<JoinHandle<Option<T>>>,
    panic: &'scope Panic,
}

impl<T> ScopedJoinHandle<'_, T> {
    /// Waits for the coroutine, as [`JoinHandle::join`] does.
    ///
    /// # Errors
    ///
    /// The payload of its panic, or [`Cancelled`].
    ///
    /// # Control
    ///
    /// May yield; on the thread's own stack, may enter.
    #[track_caller]
    pub fn join(self) -> thread::Result<T> {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not dropped, so the handle is taken once.
        let value = unsafe { ManuallyDrop::take(&mut this.handle) }.join()?;
        Ok(value.unwrap_or_else(|| unreachable!("a coroutine with a handle leaves a value")))
    }

    /// Cancels the coroutine, as [`JoinHandle::cancel`] does.
    ///
    /// # Control
    ///
    /// May enter the coroutine.
    #[track_caller]
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// Returns whether the coroutine has ended, as [`JoinHandle::is_finished`] does.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Drop for ScopedJoinHandle<'_, T> {
    fn drop(&mut self) {
        // SAFETY: `self` is being dropped, and `join` prevents its drop: so the handle is taken
        // once.
        let handle = unsafe { ManuallyDrop::take(&mut self.handle) };
        // From now on the panic belongs to the scope.
        if handle.is_finished() {
            if let Err(payload) = handle.join() {
                keep(self.panic, payload);
            }
        }
    }
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("left", &self.left.get()).finish_non_exhaustive()
    }
}

opaque_debug!(ScopedJoinHandle<'scope, T>);
