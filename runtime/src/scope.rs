//! Scopes: coroutines that borrow from the frame that waits for them (rule S4).
//!
//! A scope does not end, on whatever way out, before each of its coroutines has: it waits for them. Where it cannot wait,
//! since the stack of its own coroutine unwinds, it unwinds them in place first. A result that nobody has fetched is dropped before the
//! scope ends, since it may borrow as well. So what they borrow outlives them: *the scope ends last*.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::{io, thread, vec};

use crate::coroutine::control::CoroutineId;
use crate::coroutine::waiting::Waiting;
use crate::coroutine::{Builder, Cancelled, Coroutine, Token};
use crate::home::Home;
use crate::task::JoinHandle;

/// Runs `f`, which may spawn coroutines that borrow, and waits for all of them. In a coroutine, that one is suspended
/// meanwhile; on the thread's own stack, the loop runs.
///
/// ```
/// use coralio_runtime::{AioContext, scope, yield_now};
///
/// AioContext::run(|_ctx| {
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
/// If `f` panics: the others are cancelled, waited for, and its panic goes on. If a coroutine of the scope panics and its
/// handle is not joined: with that panic, after the others have ended. Outside a context.
///
/// # Control
///
/// May yield; on the thread's own stack, may enter.
#[track_caller]
pub fn scope<'env, F, T>(f: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    let home = Home::expect("a scope");
    let scope = Scope {
        members: RefCell::new(Vec::new()),
        left: Cell::new(0),
        waiter: Cell::new(None),
        panic: Cell::new(None),
        scope: PhantomData,
        env: PhantomData,
    };
    let end = End(home, &scope);
    let value = catch_unwind(AssertUnwindSafe(|| f(&scope)));
    if value.is_err() {
        scope.cancel();
    }
    scope.wait(home);
    drop(end);
    match (value, scope.panic.take()) {
        (Ok(value), None) => value,
        (Err(payload), _) | (_, Some(payload)) => resume_unwind(payload),
    }
}

type Panic = Cell<Option<Box<dyn Any + Send>>>;

/// What spawns coroutines that may borrow from outside the call of [`scope()`].
pub struct Scope<'scope, 'env: 'scope> {
    /// Those that may not have ended.
    members: RefCell<Vec<CoroutineId>>,
    /// How many have not ended.
    left: Cell<usize>,
    /// The coroutine that waits for the last of them.
    waiter: Cell<Option<CoroutineId>>,
    /// The first panic that no handle is there to tell of.
    panic: Panic,
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl<'scope> Scope<'scope, '_> {
    /// As [`spawn`](crate::spawn), for a closure that may borrow.
    ///
    /// # Panics
    ///
    /// If there is no memory for a stack, or the context is ending.
    #[track_caller]
    pub fn spawn<F, T>(&'scope self, f: F) -> ScopedHandle<'scope, T>
    where
        F: FnOnce() -> T + 'scope,
        T: 'scope,
    {
        match self.spawn_with(Coroutine::builder(), f) {
            Ok(handle) => handle,
            Err(error) => panic!("cannot spawn a coroutine: {error}"),
        }
    }

    /// As [`spawn`](Self::spawn), with a name or a stack size.
    ///
    /// # Errors
    ///
    /// No memory for a stack, or the context is ending.
    #[track_caller]
    pub fn spawn_with<F, T>(&'scope self, builder: Builder, f: F) -> io::Result<ScopedHandle<'scope, T>>
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
                let value = f();
                // Nobody will fetch it. Dropped here, where the coroutine still counts: it may borrow, and its destructor
                // may run the loop, and with it whoever waits for the scope.
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
        // SAFETY: *the scope ends last*: what `body` borrows lives for 'scope, and `End` sees to it that neither the
        // coroutine nor its result is left when that is over.
        let handle = unsafe { builder.spawn_borrowing(body) }?;
        let mut members = self.members.borrow_mut();
        if members.len() > 2 * self.left.get() + 16 {
            members.retain(|member| member.is_live());
        }
        members.push(handle.id);
        Ok(ScopedHandle { handle: ManuallyDrop::new(handle), panic: &self.panic })
    }

    /// Asks all that have not ended to end soon, as [`Coroutine::cancel`](crate::Coroutine::cancel).
    ///
    /// # Panics
    ///
    /// With the panic of what is entered here. All are cancelled nevertheless.
    ///
    /// # Control
    ///
    /// May enter them, on the thread's own stack.
    #[track_caller]
    pub fn cancel(&self) {
        /// The members that have not been cancelled. If one panics, the others are cancelled as that panic unwinds: then
        /// `cancel` enters none.
        struct Rest(vec::IntoIter<CoroutineId>);
        impl Drop for Rest {
            fn drop(&mut self) {
                for member in self.0.by_ref() {
                    Token::of(member).coroutine().cancel();
                }
            }
        }
        // A copy: members that are entered here may spawn more, and then the list is tidied.
        let mut rest = Rest(self.members.borrow().clone().into_iter());
        for member in rest.0.by_ref() {
            Token::of(member).coroutine().cancel();
        }
    }

    /// Waits for the end of all, where that can be.
    #[track_caller]
    fn wait(&self, home: &Home) {
        match home.running() {
            Some(running) => {
                let mut told = false;
                while self.left.get() > 0 && home.can_suspend() {
                    // The coroutine that waits for the members is to end early, so the members are. That is what a timeout
                    // around the scope reports: which of the members are still affected is not known.
                    if !told && home.is_cancelled(running) {
                        told = true;
                        home.cut_short(running);
                        self.cancel();
                    }
                    self.waiter.set(Some(running.id()));
                    home.suspend_for(Waiting::Scope);
                }
            }
            None => {
                while self.left.get() > 0 && !home.is_ending() {
                    home.context.poll(true);
                }
            }
        }
    }
}

/// Keeps the first panic that is one.
fn keep(panic: &Panic, payload: Box<dyn Any + Send>) {
    let first = panic.take();
    if payload.is::<Cancelled>() || first.is_some() {
        panic.set(first);
        drop_quietly(payload);
    } else {
        panic.set(Some(payload));
    }
}

/// Whether nobody will join the coroutine that runs.
fn is_detached() -> bool {
    Home::current().is_some_and(|home| home.running().is_some_and(|block| home.own(block).detached.get()))
}

/// What dropping a payload throws is nobody's.
fn drop_quietly(payload: Box<dyn Any + Send>) {
    if let Err(thrown) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(thrown);
    }
}

/// In each coroutine of a scope: the last to be dropped.
struct Ended<'a, 'scope, 'env>(&'a Scope<'scope, 'env>);

impl Drop for Ended<'_, '_, '_> {
    fn drop(&mut self) {
        let left = self.0.left.get() - 1;
        self.0.left.set(left);
        if left == 0
            && let (Some(home), Some(waiter)) = (Home::current(), self.0.waiter.take())
        {
            // It runs when this coroutine has ended: its result is in its place by then.
            home.wake_later(waiter);
        }
    }
}

/// Sees to it that nothing of a scope is left, on whatever way out.
struct End<'a, 'scope, 'env>(&'a Home, &'a Scope<'scope, 'env>);

impl Drop for End<'_, '_, '_> {
    fn drop(&mut self) {
        let End(home, scope) = *self;
        loop {
            // Not borrowed meanwhile: a destructor may spawn more, which are ended in turn.
            let members = scope.members.take();
            if members.is_empty() {
                break;
            }
            // In the order in which they were made, as a context ends them.
            for member in members {
                if let Some(payload) = home.end_now(member) {
                    keep(&scope.panic, payload);
                }
            }
        }
    }
}

/// Waits for a coroutine of a scope and takes its result. It may be dropped: the scope waits for the coroutine all the same.
pub struct ScopedHandle<'scope, T> {
    /// Its coroutine leaves no value if this is dropped before the end.
    handle: ManuallyDrop<JoinHandle<Option<T>>>,
    panic: &'scope Panic,
}

impl<T> ScopedHandle<'_, T> {
    /// As [`JoinHandle::join`].
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
        Ok(value.unwrap_or_else(|| unreachable!("whoever has a handle is left a value")))
    }

    /// As [`JoinHandle::cancel`].
    ///
    /// # Control
    ///
    /// May enter it.
    #[track_caller]
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// As [`JoinHandle::is_finished`].
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl<T> Drop for ScopedHandle<'_, T> {
    fn drop(&mut self) {
        // SAFETY: it is being dropped, and `join` does not let that happen: so the handle is taken once.
        let handle = unsafe { ManuallyDrop::take(&mut self.handle) };
        // Its panic is the scope's now.
        if handle.is_finished()
            && let Err(payload) = handle.join()
        {
            keep(self.panic, payload);
        }
    }
}

impl<T> fmt::Debug for ScopedHandle<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedHandle").finish_non_exhaustive()
    }
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("left", &self.left.get()).finish_non_exhaustive()
    }
}
