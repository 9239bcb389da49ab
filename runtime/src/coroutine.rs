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

use crate::home::Home;
use crate::home::fork::refuse_in_child;

pub(crate) mod backtrace;
pub(crate) mod cancel;
pub(crate) mod control;
mod error;
pub(crate) mod measure;
pub(crate) mod overflow;
pub(crate) mod stack;
pub(crate) mod ticket;
pub(crate) mod waiting;
mod waker;

pub use cancel::{TimedOut, check_cancelled, is_cancelled, shield, sleep, timeout};
pub use error::{Cancelled, EnterError, ScheduleError};
pub use waker::{Token, Waker};

use control::{CoroutineId, State};
use error::not_entered;
use waiting::Waiting;
use waker::schedule;

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
    pub(crate) measure_stack: Option<bool>,
    pub(crate) created_at: &'static Location<'static>,
}

impl Attributes {
    #[track_caller]
    #[inline]
    pub(crate) fn new() -> Attributes {
        Attributes { name: None, stack_size: None, measure_stack: None, created_at: Location::caller() }
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
    ///
    /// A large one costs address space, not memory: only pages that are touched take any, mostly one of 4 KiB. A million
    /// suspended coroutines take 4.3 GiB, guard pages included. Before Linux 6.13 each guard splits a mapping, and
    /// `vm.max_map_count` (65530) ends at about 30,000 stacks; raise it for more.
    ///
    /// Running off it hits the guard page: the process is aborted with a message that names the coroutine. Code that
    /// rustc compiled touches every page of a large frame and so cannot step over the guard; C code with frames of more
    /// than 4 KiB can, unless it was compiled with `-fstack-clash-protection`.
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
    #[track_caller]
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
        match Coroutine::builder().create(f) {
            Ok(coroutine) => coroutine,
            Err(error) => panic!("cannot make a coroutine: {error}"),
        }
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
            Some(home) => {
                let _beat = home.beat();
                home.try_enter(self.id)
            }
            None => {
                refuse_in_child("entering a coroutine");
                Err(EnterError::Ended)
            }
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
            Home::expect("entering a coroutine").left_entered(self.id.block);
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
                // Scheduled while it ran, it ended all the same: its result waits, and that is all.
                Some(State::Finished) => Ok(()),
                _ => schedule(&home.shared, self.id),
            },
            None => Ok(()),
        }
    }

    /// Asks it to end soon: from here on its waits for events and its I/O return [`Cancelled`], also the one it is in. It
    /// is woken for that, if it is suspended.
    ///
    /// A flag, nothing more: what is on its stack ends as after any error. See [`shield`] and [`check_cancelled`].
    ///
    /// # Panics
    ///
    /// With its panic, if it is entered here and panics.
    ///
    /// # Control
    ///
    /// May enter it, as [`wake`](Self::wake).
    #[track_caller]
    pub fn cancel(self) {
        if self.id.block.ticket.cancel(self.id.generation) {
            self.wake();
        }
    }

    /// Whether this one's waits end early.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.id.is_live() && Home::current().is_some_and(|home| home.is_cancelled(self.id.block))
    }

    /// As [`Home::cut_short`], for the running coroutine.
    pub(crate) fn cut_short(&self) -> Cancelled {
        Home::expect("a wait of a coroutine").cut_short(self.id.block)
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
    #[track_caller]
    pub fn waker(self) -> Waker {
        Waker { id: self.id, shared: Arc::clone(&Home::expect("a waker").shared) }
    }
}

impl fmt::Display for Coroutine {
    /// Its name in quotes, or its number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Home::current() {
            Some(home) if self.id.is_live() => {
                // The writer is foreign code, and might end the coroutine.
                let label = home.own(self.id.block).label().to_string();
                f.write_str(&label)
            }
            _ => f.write_str("(ended)"),
        }
    }
}

impl fmt::Debug for Coroutine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Coroutine({self})")
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
    Home::expect("yield outside a coroutine: it was called").suspend_for(Waiting::Enter);
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
#[inline]
#[track_caller]
pub fn yield_now() {
    Home::expect("yield outside a coroutine: it was called").reschedule();
}

/// Whether the code that runs may be suspended: it is in a coroutine, and its stack does not unwind.
///
/// Where it may not, a wait must be met in place; waiting for another coroutine there ends the process.
///
/// A destructor may run the loop while its thread unwinds, or a context of its own: what unwinds lies beneath, and the coroutines
/// that run there may be suspended. Their I/O is waited for in place, so that a destructor of such a coroutine may do I/O
/// although the coroutine itself panics. A panic above a stack that unwinds cannot be told from the one beneath, and this
/// function does not count it: a destructor that waits for another coroutine then is suspended in the midst of the unwinding,
/// and [`std::thread::panicking`] stays true on the thread until the coroutine has ended.
///
/// # Control
///
/// Never switches.
#[inline]
pub fn can_suspend() -> bool {
    Home::current().is_some_and(Home::can_suspend)
}
