//! Coroutines: made, entered, suspended, woken.
//!
//! A [`Coroutine`] is a handle, a number really: it may be copied, kept and compared, and never keeps anything alive.
//! The coroutine itself belongs to its context, which ends it.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::panic::Location;
use std::sync::Arc;

use crate::context::shared::Shared;
use crate::home::Home;

pub(crate) mod control;
pub(crate) mod stack;
pub(crate) mod ticket;

use control::{Control, CoroutineId, State};
use ticket::Claim;

/// Makes coroutines that have a name, or a stack of a size of their own.
///
/// ```
/// use coralio_runtime::{AioContext, Coroutine};
///
/// AioContext::run(|_ctx| {
///     let co = Coroutine::builder().name("reader").stack_size(64 * 1024).create(|| {}).unwrap();
///     assert_eq!(co.to_string(), "'reader'");
///     co.enter();
/// });
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    pub(crate) attributes: Attributes,
}

#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    pub(crate) name: Option<Cow<'static, str>>,
    pub(crate) stack_size: Option<usize>,
    pub(crate) created_at: &'static Location<'static>,
}

impl Attributes {
    #[track_caller]
    #[inline]
    pub(crate) fn new() -> Attributes {
        Attributes { name: None, stack_size: None, created_at: Location::caller() }
    }
}

impl Builder {
    /// Its name in messages. Without one it is shown by its number, as `#17`.
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> Builder {
        self.attributes.name = Some(name.into());
        self
    }

    /// Size of its stack in bytes, guard page included. At least [`MIN_STACK_SIZE`](crate::MIN_STACK_SIZE), rounded up
    /// to whole pages; without it, that of the context.
    pub fn stack_size(mut self, bytes: usize) -> Builder {
        self.attributes.stack_size = Some(bytes);
        self
    }

    /// Makes a coroutine that runs `f` when it is first entered. A panic in it goes on in whoever entered it.
    ///
    /// # Errors
    ///
    /// No memory for a stack, or the context is ending.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "qemu_coroutine_create")]
    pub fn create(self, f: impl FnOnce() + 'static) -> io::Result<Coroutine> {
        // SAFETY: `f` is 'static.
        let id = unsafe { Home::expect("making a coroutine").create(self.attributes, true, f) }?;
        Ok(Coroutine { id, _home: PhantomData })
    }
}

/// A handle to a coroutine of this thread.
///
/// It is `Copy`, and stays at home: what other threads may do with a coroutine is wake it, by its [`Waker`].
///
/// ```
/// use coralio_runtime::{AioContext, Coroutine, suspend};
///
/// AioContext::run(|_ctx| {
///     let co = Coroutine::new(|| {
///         println!("first");
///         suspend();
///         println!("second");
///     });
///     co.enter(); // first
///     co.enter(); // second
///     assert!(co.try_enter().is_err(), "it has ended");
/// });
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Coroutine {
    id: CoroutineId,
    _home: PhantomData<*const ()>,
}

impl Coroutine {
    /// Makes a coroutine that runs `f` when it is first entered. A panic in it goes on in whoever entered it.
    ///
    /// # Panics
    ///
    /// Outside a context, and where [`Builder::create`] returns an error.
    ///
    /// # Control
    ///
    /// Never switches.
    #[track_caller]
    #[doc(alias = "qemu_coroutine_create")]
    pub fn new(f: impl FnOnce() + 'static) -> Coroutine {
        Coroutine::builder().create(f).unwrap_or_else(|error| panic!("cannot make a coroutine: {error}"))
    }

    /// For a name, or another stack size.
    #[track_caller]
    pub fn builder() -> Builder {
        Builder { attributes: Attributes::new() }
    }

    /// The coroutine that runs now; `None` on the thread's own stack and in the loop.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    #[doc(alias = "qemu_coroutine_self")]
    pub fn current() -> Option<Coroutine> {
        let block = Home::current()?.running()?;
        Some(Coroutine { id: block.id(), _home: PhantomData })
    }

    /// Runs it until it yields or ends, and then whatever it woke.
    ///
    /// # Panics
    ///
    /// Where [`try_enter`](Self::try_enter) returns an error; and with its panic, if it panics.
    ///
    /// # Control
    ///
    /// Enters it.
    #[inline]
    #[track_caller]
    #[doc(alias = "qemu_coroutine_enter")]
    pub fn enter(self) {
        if let Err(error) = self.try_enter() {
            not_entered(&error);
        }
    }

    /// Runs it until it yields or ends, and then whatever it woke; or says why that cannot be, and changes nothing.
    ///
    /// # Errors
    ///
    /// It is entered already, scheduled to run elsewhere, or has ended (rule C5).
    ///
    /// # Panics
    ///
    /// With its panic, if it panics.
    ///
    /// # Control
    ///
    /// Enters it.
    #[inline]
    pub fn try_enter(self) -> Result<(), EnterError> {
        match Home::current() {
            Some(home) => home.try_enter(self.id),
            None => Err(EnterError::Ended),
        }
    }

    /// Runs it, unless it is entered already: then it does nothing, and returns false.
    ///
    /// # Panics
    ///
    /// If it has ended or is scheduled elsewhere; and with its panic, if it panics.
    ///
    /// # Control
    ///
    /// May enter it.
    #[track_caller]
    pub fn enter_unless_entered(self) -> bool {
        if self.is_entered() {
            return false;
        }
        self.enter();
        true
    }

    /// Whether it is on the stack: running, or beneath coroutines that it has entered.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    #[doc(alias = "qemu_coroutine_entered")]
    pub fn is_entered(self) -> bool {
        self.state() == Some(State::Entered)
    }

    /// Whether it has ended, by returning, by a panic or with its context.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn has_ended(self) -> bool {
        matches!(self.state(), None | Some(State::Finished))
    }

    fn state(self) -> Option<State> {
        self.id.is_live().then(|| Home::current().map(|home| home.own(self.id.block).state.get())).flatten()
    }

    /// Makes it run again: now, if no coroutine is running; else when the running one yields or ends. Woken twice, it
    /// runs once; woken while it is entered, it goes on at its next suspension; once ended, it stays so.
    ///
    /// # Panics
    ///
    /// With its panic, if it panics.
    ///
    /// # Control
    ///
    /// May enter it.
    #[inline]
    #[track_caller]
    #[doc(alias = "aio_co_wake")]
    pub fn wake(self) {
        if let Some(home) = Home::current() {
            home.wake(self.id);
        }
    }

    /// Makes it run in the loop's next round.
    ///
    /// # Errors
    ///
    /// It is scheduled already (rule W2).
    ///
    /// # Control
    ///
    /// Never switches.
    #[track_caller]
    #[doc(alias = "aio_co_schedule")]
    pub fn schedule(self) -> Result<(), ScheduleError> {
        match Home::current() {
            Some(home) => match self.state() {
                // Woken: it runs when the running coroutine yields.
                Some(State::Scheduled) => {
                    Err(ScheduleError { first: self.id.block.scheduled_at(), second: Location::caller() })
                }
                _ => schedule(&home.shared, self.id),
            },
            None => Ok(()),
        }
    }

    /// The coroutine as plain data, for an I/O engine.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn token(self) -> Token {
        Token { id: self.id }
    }

    /// A handle for other threads and contexts: it can wake the coroutine, and nothing else.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn waker(self) -> Waker {
        Waker { id: self.id, shared: Arc::clone(&Home::expect("a waker").shared) }
    }
}

impl fmt::Display for Coroutine {
    /// Its name in quotes, or its number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Home::current() {
            Some(home) if self.id.is_live() => home.own(self.id.block).label().fmt(f),
            _ => f.write_str("(ended)"),
        }
    }
}

impl fmt::Debug for Coroutine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Coroutine({self})")
    }
}

/// Wakes a coroutine from wherever it is.
#[derive(Clone)]
pub struct Waker {
    id: CoroutineId,
    shared: Arc<Shared>,
}

impl Waker {
    /// Makes the coroutine run again: as [`Coroutine::wake`] on its home thread; from elsewhere, in the next round of
    /// its loop, which is notified. For a coroutine that has ended it does nothing.
    ///
    /// # Panics
    ///
    /// With the coroutine's panic, if it is entered here and panics.
    ///
    /// # Control
    ///
    /// May enter the coroutine, on its home thread.
    #[track_caller]
    pub fn wake(&self) {
        match Home::current() {
            Some(home) if Arc::ptr_eq(&home.shared, &self.shared) => home.wake(self.id),
            // It is on the list already: one wake does for both.
            _ => drop(schedule(&self.shared, self.id)),
        }
    }

    /// As [`wake`](Self::wake), for destructors: enters nobody.
    #[track_caller]
    pub(crate) fn wake_later(&self) {
        match Home::current() {
            Some(home) if Arc::ptr_eq(&home.shared, &self.shared) => home.wake_later(self.id),
            _ => drop(schedule(&self.shared, self.id)),
        }
    }

    /// Makes the coroutine run in the next round of its loop, also from its home thread.
    ///
    /// # Errors
    ///
    /// It is scheduled already (rule W2).
    ///
    /// # Control
    ///
    /// Never switches.
    #[track_caller]
    pub fn schedule(&self) -> Result<(), ScheduleError> {
        schedule(&self.shared, self.id)
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").finish_non_exhaustive()
    }
}

/// A coroutine as an I/O engine keeps it with a request: plain data, for any thread. What can be done with it, its
/// context does: [`AtHome`](crate::AtHome) and [`AioContext::schedule`](crate::AioContext::schedule).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token {
    id: CoroutineId,
}

impl Token {
    #[inline]
    pub(crate) fn of(block: &'static Control) -> Token {
        Token { id: block.id() }
    }

    #[inline]
    pub(crate) fn block(self) -> &'static Control {
        self.id.block
    }

    /// Whether it is of that context, and has not ended.
    #[inline]
    pub(crate) fn lives_in(self, shared: &Shared) -> bool {
        self.id.block.context() == shared.id() && self.id.is_live()
    }

    #[inline]
    pub(crate) fn coroutine(self) -> Coroutine {
        Coroutine { id: self.id, _home: PhantomData }
    }

    #[track_caller]
    pub(crate) fn schedule(self, shared: &Shared) {
        if self.lives_in(shared) {
            // It is on the list already: one wake does for both.
            let _ = schedule(shared, self.id);
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

#[track_caller]
fn schedule(shared: &Shared, id: CoroutineId) -> Result<(), ScheduleError> {
    let here = Location::caller();
    match id.block.schedule(id.generation, here) {
        Claim::Mine => {
            shared.wakes.push(id);
            shared.notify();
            Ok(())
        }
        Claim::Taken => Err(ScheduleError { first: id.block.scheduled_at(), second: here }),
        Claim::Ended => Ok(()),
    }
}

/// Gives control to whoever entered this coroutine last.
///
/// It comes back when somebody enters or wakes the coroutine. That may be for another reason than the one it waits for,
/// so look again, in a loop.
///
/// # Panics
///
/// Outside a coroutine; and while the coroutine holds the context's lock (rule X8).
///
/// # Control
///
/// Yields. If the context ends meanwhile it does not return, but unwinds with [`Cancelled`] as payload.
#[inline]
#[track_caller]
#[doc(alias = "qemu_coroutine_yield")]
pub fn suspend() {
    Home::expect("yield outside a coroutine: it was called").suspend();
}

/// Gives way: everything else that is ready runs first, then the loop comes back to this coroutine.
///
/// # Panics
///
/// Outside a coroutine.
///
/// # Control
///
/// Yields.
#[track_caller]
pub fn yield_now() {
    Home::expect("yield outside a coroutine: it was called").reschedule();
}

/// Whether the code that runs may be suspended: it is in a coroutine, and its stack does not unwind.
///
/// Where it may not, a wait must be met in place; waiting for another coroutine there ends the process.
///
/// # Control
///
/// Never switches.
#[inline]
pub fn can_suspend() -> bool {
    Home::current().is_some_and(Home::can_suspend)
}

/// The payload with which a coroutine unwinds whose context ended, and what its join handle reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the coroutine was unwound before it ended, because its context ended")
    }
}

impl std::error::Error for Cancelled {}

/// Why a coroutine cannot be entered (rule C5).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EnterError {
    /// It is on the stack already.
    Recursive {
        /// Whom somebody tried to enter.
        name: String,
        /// Who is on the stack, outermost first: `main > 'A' > 'B'`.
        chain: String,
    },
    /// It is scheduled, and whoever scheduled it counts on it.
    Scheduled {
        /// Whom somebody tried to enter.
        name: String,
        /// Where it was scheduled.
        at: &'static Location<'static>,
    },
    /// It has ended.
    Ended,
}

#[cold]
#[track_caller]
fn not_entered(error: &EnterError) -> ! {
    panic!("{error}")
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnterError::Recursive { name, chain } => write!(f, "recursive entry of {name}: {chain}"),
            EnterError::Scheduled { name, at } => {
                write!(f, "cannot enter {name}: it is scheduled to run already, at {at}")
            }
            EnterError::Ended => f.write_str("cannot enter a coroutine that has ended"),
        }
    }
}

impl std::error::Error for EnterError {}

/// A coroutine was scheduled twice before it ran (rule W2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduleError {
    /// Where it was scheduled first.
    pub first: &'static Location<'static>,
    /// Where it was scheduled again.
    pub second: &'static Location<'static>,
}

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the coroutine is scheduled already: first at {}, and before it ran at {}", self.first, self.second)
    }
}

impl std::error::Error for ScheduleError {}
