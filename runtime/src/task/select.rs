//! Concurrent waits: the first to end cancels the others (rule S9).
//!
//! Each branch is a coroutine of a [scope](crate::scope()), so it may borrow, and all have ended when
//! the call returns. Where a future would be dropped half way, a coroutine is cancelled and runs to
//! its end, and so has a result in any case: *every branch returns*.

use std::cell::Cell;
use std::io;
use std::panic::resume_unwind;

use crate::coroutine::Cancelled;
use crate::task::{Coroutine, CoroutineBuilder, Scope, expect_spawned, scope};

/// Runs the closures of a tuple concurrently until the first one returns; then cancels the others,
/// waits for them, and returns the results of all.
///
/// A cancelled branch returns like any cancelled coroutine: its waits return [`Cancelled`], which
/// shows in its result. A branch whose wait had succeeded at the same time returns its value as
/// well: so check the results in the order that matters to you, and nothing is lost, in contrast to
/// a branch dropped half way. A branch that takes no notice of the cancellation (a lock without
/// `_cancellable`, [`shield`](crate::shield), a long computation) delays the return.
///
/// Branches start in order, in the loop's next iteration; each one runs at least to its first wait,
/// on a stack of its own, of the context's default size. They may borrow from the caller, also the
/// same values, but only one may borrow a value exclusively.
///
/// ```
/// use coralio::{sleep, spawn};
/// use coralio::sync::channel;
/// use coralio::task::{Cancelled, select};
/// use std::time::Duration;
///
/// coralio::run(|| {
///     let (sender, receiver) = channel::bounded(1);
///     let reader = spawn(move || {
///         let mut words = Vec::new();
///         loop {
///             match select((|| receiver.recv(), || sleep(Duration::from_secs(60)))) {
///                 (Ok(word), _) => words.push(word), // even if the time was over as well
///                 (Err(_), Ok(())) => return words,  // a minute without a word
///                 (Err(_), Err(Cancelled)) => return words, // all senders are gone
///             }
///         }
///     });
///     for word in ["one", "two"] {
///         sender.try_send(word).unwrap();
///         sleep(Duration::from_millis(1)).unwrap();
///     }
///     drop(sender);
///     assert_eq!(reader.join().unwrap(), ["one", "two"]);
/// });
/// ```
///
/// If the calling coroutine is cancelled, or an enclosing timeout expires, all branches are
/// cancelled. A timeout counts as hit then, as for a [scope](crate::scope()).
///
/// # Panics
///
/// If a branch panics: the others are cancelled and waited for, and their results dropped; then the
/// panic propagates, the first one if there are several. A panic of a branch that was cancelled
/// propagates too. Outside a context, or if there is no memory for the stacks.
///
/// # Control
///
/// Yields; on the thread's own stack, enters.
#[doc(alias = "race")]
#[track_caller]
pub fn select<B: Select>(branches: B) -> B::Output {
    branches.select()
}

/// Runs closures with one type of result concurrently until the first one returns; then cancels the
/// others, waits for them, drops their results, and returns the first one's result.
///
/// The closures are those of a tuple, an array or a `Vec`. To tell which one was first, let each
/// return a variant of an enum, or its number.
///
/// The result of a loser is dropped even if it is a value: a loser that was handed a message at the
/// same moment loses it. Where that matters use [`select`], which returns all results. A branch that
/// has not started when another one has ended is not run.
///
/// ```
/// use coralio::sleep;
/// use coralio::task::{Cancelled, race};
/// use std::time::Duration;
///
/// coralio::run(|| {
///     let replicas = [30, 10, 20]; // milliseconds
///     let read = |&delay: &u64| sleep(Duration::from_millis(delay)).map(|()| delay);
///     let fastest = race(replicas.iter().map(|replica| move || read(replica)).collect::<Vec<_>>());
///     assert_eq!(fastest, Ok(10));
/// });
/// ```
///
/// Otherwise as [`select`]: borrowed values, cancellation of the caller, and when branches run.
///
/// # Panics
///
/// As [`select`], whether the branch that panics was the first to end or not. If there are no
/// branches.
///
/// # Control
///
/// Yields; on the thread's own stack, enters.
#[doc(alias("select", "select_all", "any"))]
#[track_caller]
pub fn race<B: Race>(branches: B) -> B::Output {
    branches.race()
}

/// Branches for [`select`]: a tuple of up to eight closures.
///
/// ```
/// use coralio::{sleep, yield_now};
/// use coralio::context::AioContext;
/// use coralio::task::{Select, select};
/// use std::time::Duration;
///
/// /// Waits for the branches of a server, and says which results there are.
/// fn serve<B: Select<Output: std::fmt::Debug>>(branches: B) -> String {
///     format!("{:?}", select(branches))
/// }
///
/// let wait = || sleep(Duration::from_secs(3600));
/// AioContext::run(|_ctx| assert_eq!(serve((yield_now, wait)), "((), Err(Cancelled))"));
/// ```
pub trait Select: sealed::Sealed {
    /// The results, in the order of the branches.
    type Output;

    #[doc(hidden)]
    fn select(self) -> Self::Output;
}

/// Branches for [`race`]: an array, a `Vec` or a tuple of closures with one type of result.
///
/// ```
/// use coralio::context::AioContext;
/// use coralio::task::{Race, race};
///
/// /// Reads from whichever replica answers first.
/// fn read<B: Race<Output = u32>>(replicas: B) -> u32 {
///     race(replicas)
/// }
///
/// AioContext::run(|_ctx| assert_eq!(read([|| 7, || 7]), 7));
/// ```
pub trait Race: sealed::Sealed {
    /// The result.
    type Output;

    #[doc(hidden)]
    fn race(self) -> Self::Output;
}

mod sealed {
    pub trait Sealed {}
}

/// Held by each branch: the first one to end, by returning or by a panic, cancels the others.
struct Ending<'scope, 'env>(&'scope Scope<'scope, 'env>, &'scope Cell<bool>);

impl Drop for Ending<'_, '_> {
    fn drop(&mut self) {
        let Ending(scope, is_over) = *self;
        if !is_over.replace(true) {
            scope.cancel();
        }
    }
}

/// Spawns a branch.
fn spawn_branch<'scope>(
    scope: &'scope Scope<'scope, '_>,
    builder: &CoroutineBuilder,
    is_over: &'scope Cell<bool>,
    branch: impl FnOnce() + 'scope,
) -> io::Result<()> {
    let body = move || {
        let _ending = Ending(scope, is_over);
        branch();
    };
    scope.spawn_with(builder.clone(), body).map(drop)
}

/// Spawns a branch of `race`, which stores its result in `place` if it is the first to end.
fn spawn_racer<'scope, T>(
    scope: &'scope Scope<'scope, '_>,
    builder: &CoroutineBuilder,
    is_over: &'scope Cell<bool>,
    place: &'scope Cell<Option<T>>,
    branch: impl FnOnce() -> T + 'scope,
) -> io::Result<()> {
    spawn_branch(scope, builder, is_over, move || {
        let value = (!is_over.get()).then(branch);
        if !is_over.get() {
            place.set(value);
        }
    })
}

/// Runs a scope in which `spawn` spawns the branches, with a builder that names the caller.
#[track_caller]
fn run_branches<'env>(
    spawn: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>, &CoroutineBuilder) -> io::Result<()>,
) {
    let builder = Coroutine::builder();
    let spawned = scope(|scope| {
        let spawned = spawn(scope, &builder);
        if spawned.is_err() {
            scope.cancel();
        }
        spawned
    });
    expect_spawned(spawned);
}

/// Returns a branch's result; without one its coroutine was unwound, because the context ends.
fn result<T>(place: Option<T>) -> T {
    place.unwrap_or_else(|| resume_unwind(Box::new(Cancelled)))
}

impl<F, const N: usize> sealed::Sealed for [F; N] {}
impl<F> sealed::Sealed for Vec<F> {}

impl<T, F: FnOnce() -> T, const N: usize> Race for [F; N] {
    type Output = T;

    #[track_caller]
    fn race(self) -> T {
        race_all(self)
    }
}

impl<T, F: FnOnce() -> T> Race for Vec<F> {
    type Output = T;

    #[track_caller]
    fn race(self) -> T {
        race_all(self)
    }
}

#[track_caller]
fn race_all<T, F: FnOnce() -> T>(branches: impl IntoIterator<Item = F>) -> T {
    let mut branches = branches.into_iter().peekable();
    assert!(branches.peek().is_some(), "a race of no branches would never end: pass at least one");
    let (place, is_over) = (Cell::new(None), Cell::new(false));
    run_branches(|s, builder| branches.try_for_each(|branch| spawn_racer(s, builder, &is_over, &place, branch)));
    result(place.into_inner())
}

macro_rules! tuples {
    ($($branch:ident $value:ident $place:ident),*) => {
        impl<$($branch),*> sealed::Sealed for ($($branch,)*) {}

        impl<$($value, $branch: FnOnce() -> $value),*> Select for ($($branch,)*) {
            type Output = ($($value,)*);

            #[allow(non_snake_case)]
            #[track_caller]
            fn select(self) -> Self::Output {
                let ($($branch,)*) = self;
                let is_over = Cell::new(false);
                $(let mut $place = None;)*
                run_branches(|s, builder| {
                    $(
                        let place = &mut $place;
                        spawn_branch(s, builder, &is_over, move || *place = Some($branch()))?;
                    )*
                    Ok(())
                });
                ($(result($place),)*)
            }
        }

        impl<T, $($branch: FnOnce() -> T),*> Race for ($($branch,)*) {
            type Output = T;

            #[allow(non_snake_case)]
            #[track_caller]
            fn race(self) -> T {
                let ($($branch,)*) = self;
                let (place, is_over) = (Cell::new(None), Cell::new(false));
                run_branches(|s, builder| {
                    $(spawn_racer(s, builder, &is_over, &place, $branch)?;)*
                    Ok(())
                });
                result(place.into_inner())
            }
        }
    };
}

tuples!(FA A a, FB B b);
tuples!(FA A a, FB B b, FC C c);
tuples!(FA A a, FB B b, FC C c, FD D d);
tuples!(FA A a, FB B b, FC C c, FD D d, FE E e);
tuples!(FA A a, FB B b, FC C c, FD D d, FE E e, FF F f);
tuples!(FA A a, FB B b, FC C c, FD D d, FE E e, FF F f, FG G g);
tuples!(FA A a, FB B b, FC C c, FD D d, FE E e, FF F f, FG G g, FH H h);
