//! Coroutines: creation, entry, suspension, wake.
//!
//! A [`Coroutine`] is a handle, in effect a number: it can be copied, stored and compared, and
//! never keeps anything alive. The coroutine itself belongs to its context, which ends it.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::panic::Location;
use std::sync::Arc;

use crate::context::{HomeRef, LocalContext};
use crate::coroutine::{Attributes, Cancelled, CoroutineId, EnterError, ScheduleError, State, WaitReason, not_entered};
use crate::scheduler::Scheduler;
use crate::sys::refuse_in_child;
use crate::task::{Waker, expect_spawned};

/// Creates coroutines with a name or a custom stack size.
///
/// ```
/// use coralio::coroutine::Coroutine;
///
/// coralio::run(|| {
///     let co = Coroutine::builder().name("reader").stack_size(64 * 1024).create(|| {}).unwrap();
///     assert_eq!(co.to_string(), "'reader'");
///     co.enter();
/// });
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct CoroutineBuilder {
    pub(crate) attributes: Attributes,
}

impl CoroutineBuilder {
    /// Sets the name shown in messages. An unnamed coroutine is shown by its number, as `#17`.
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> CoroutineBuilder {
        self.attributes.name = Some(name.into());
        self
    }

    /// Sets the stack size in bytes, guard page included: at least
    /// [`MIN_STACK_SIZE`](crate::MIN_STACK_SIZE), rounded up to whole pages. The default is that of
    /// the context.
    ///
    /// A large stack costs address space, not memory: only touched pages are resident, mostly one
    /// of 4 KiB. A million suspended coroutines take 4.3 GiB, guard pages included. Before Linux
    /// 6.13 each guard splits a mapping, and `vm.max_map_count` (65530) limits a process to about
    /// 30,000 stacks; raise it for more.
    ///
    /// Stack overflow hits the guard page: the process is aborted with a message that names the
    /// coroutine. Code compiled by rustc touches every page of a large frame and so cannot step
    /// over the guard; C code with frames of more than 4 KiB can, unless it was compiled with
    /// `-fstack-clash-protection`.
    pub fn stack_size(mut self, bytes: usize) -> CoroutineBuilder {
        self.attributes.stack_size = Some(bytes);
        self
    }

    /// Creates a coroutine that runs `f` when first entered. A panic in `f` propagates to the
    /// enterer.
    ///
    /// # Errors
    ///
    /// No memory for a stack, or the context is ending.
    ///
    /// # Panics
    ///
    /// Outside a context.
    #[doc(alias = "qemu_coroutine_create")]
    #[track_caller]
    pub fn create(self, f: impl FnOnce() + 'static) -> io::Result<Coroutine> {
        // SAFETY: `f` is 'static.
        let id = unsafe { Scheduler::expect("creating a coroutine").create(self.attributes, true, f) }?;
        Ok(Coroutine::of(id))
    }
}

/// A handle to a coroutine of this thread.
///
/// The handle is `Copy`, and cannot leave its home thread: other threads can only wake or cancel
/// the coroutine, through its [`Waker`].
///
/// ```
/// use coralio::coroutine::{Coroutine, suspend};
///
/// coralio::run(|| {
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
    pub(crate) id: CoroutineId,
    _home: PhantomData<*const ()>,
}

impl Coroutine {
    #[inline]
    pub(crate) fn of(id: CoroutineId) -> Coroutine {
        Coroutine { id, _home: PhantomData }
    }

    /// Creates a coroutine that runs `f` when first entered. A panic in `f` propagates to the
    /// enterer.
    ///
    /// # Panics
    ///
    /// Outside a context, and where [`CoroutineBuilder::create`] returns an error.
    #[track_caller]
    #[doc(alias = "qemu_coroutine_create")]
    pub fn new(f: impl FnOnce() + 'static) -> Coroutine {
        expect_spawned(Coroutine::builder().create(f))
    }

    /// Returns a builder, to set a name or a stack size.
    #[inline]
    #[track_caller]
    pub fn builder() -> CoroutineBuilder {
        CoroutineBuilder { attributes: Attributes::new() }
    }

    /// Returns the running coroutine; `None` on the thread's own stack and in the loop.
    #[inline]
    #[doc(alias = "qemu_coroutine_self")]
    pub fn current() -> Option<Coroutine> {
        let block = Scheduler::current()?.running()?;
        Some(Coroutine::of(block.id()))
    }

    /// Runs the coroutine until it yields or ends, then the coroutines that it woke.
    ///
    /// # Panics
    ///
    /// Where [`try_enter`](Self::try_enter) returns an error.
    ///
    /// # Control
    ///
    /// Enters the coroutine.
    #[inline]
    #[track_caller]
    #[doc(alias = "qemu_coroutine_enter")]
    pub fn enter(self) {
        if let Err(error) = self.try_enter() {
            not_entered(&error);
        }
    }

    /// Runs the coroutine until it yields or ends, then the coroutines that it woke. On error
    /// nothing has changed.
    ///
    /// # Errors
    ///
    /// The coroutine is entered already, is scheduled, or has ended.
    ///
    /// # Control
    ///
    /// Enters the coroutine.
    #[inline]
    pub fn try_enter(self) -> Result<(), EnterError> {
        match LocalContext::current() {
            Some(home) => {
                let _heartbeat = home.heartbeat();
                home.scheduler.try_enter(self.id)
            }
            None => {
                refuse_in_child("entering a coroutine");
                Err(EnterError::Ended)
            }
        }
    }

    /// Runs the coroutine, unless it is entered already: then does nothing and returns false.
    ///
    /// # Panics
    ///
    /// If the coroutine has ended or is scheduled.
    ///
    /// # Control
    ///
    /// May enter the coroutine.
    #[track_caller]
    pub fn enter_unless_entered(self) -> bool {
        if self.is_entered() {
            Scheduler::expect("entering a coroutine").left_entered(self.id.block);
            return false;
        }
        self.enter();
        true
    }

    /// Returns whether the coroutine is on the stack: running, or below coroutines that it entered.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use coralio::coroutine::{Coroutine, suspend};
    ///
    /// AioContext::run(|_ctx| {
    ///     let coroutine = Coroutine::builder()
    ///         .create(|| {
    ///             assert!(Coroutine::current().unwrap().is_entered());
    ///             suspend();
    ///         })
    ///         .unwrap();
    ///     coroutine.enter();
    ///     assert!(!coroutine.is_entered()); // suspended
    ///     coroutine.enter();
    /// });
    /// ```
    #[inline]
    #[doc(alias = "qemu_coroutine_entered")]
    pub fn is_entered(self) -> bool {
        self.state() == Some(State::Entered)
    }

    /// Returns whether the coroutine has ended: by returning, by a panic or with its context.
    #[inline]
    pub fn has_ended(self) -> bool {
        matches!(self.state(), None | Some(State::Finished))
    }

    fn state(self) -> Option<State> {
        self.id
            .is_live()
            .then(|| Scheduler::current().map(|scheduler| scheduler.local(self.id.block).state.get()))
            .flatten()
    }

    /// Resumes the coroutine: now, if no coroutine is running; otherwise when the running one
    /// yields or ends. Woken twice, it runs once. Woken while entered, it becomes ready as soon as
    /// it suspends. Does nothing if the coroutine has ended.
    ///
    /// # Control
    ///
    /// May enter the coroutine.
    #[inline]
    #[track_caller]
    #[doc(alias = "aio_co_wake")]
    pub fn wake(self) {
        if let Some(scheduler) = Scheduler::current() {
            scheduler.wake(self.id);
        }
    }

    /// Schedules the coroutine for the loop's next iteration.
    ///
    /// # Errors
    ///
    /// The coroutine is scheduled already.
    #[track_caller]
    #[doc(alias = "aio_co_schedule")]
    pub fn schedule(self) -> Result<(), ScheduleError> {
        match Scheduler::current() {
            Some(scheduler) => match self.state() {
                // Woken: the coroutine runs when the running one yields.
                Some(State::Scheduled) => {
                    Err(ScheduleError { first: self.id.block.scheduled_at(), second: Location::caller() })
                }
                // It was scheduled while it ran, and ended; only its result is left.
                Some(State::Finished) => Ok(()),
                _ => scheduler.shared.schedule(self.id),
            },
            None => Ok(()),
        }
    }

    /// Cancels the coroutine: from now on its waits for events and its I/O return [`Cancelled`],
    /// including a wait in progress. A suspended coroutine is woken for that.
    ///
    /// Cancelling only sets a flag: the coroutine's functions return as after any error. See
    /// [`shield`](crate::shield) and [`check_cancelled`](crate::check_cancelled).
    ///
    /// # Control
    ///
    /// May enter the coroutine, as [`wake`](Self::wake).
    #[track_caller]
    pub fn cancel(self) {
        if self.id.block.word.cancel(self.id.generation) {
            self.wake();
        }
    }

    /// Cancels the coroutine like [`cancel`](Self::cancel), but never enters it: for destructors.
    #[track_caller]
    pub(crate) fn cancel_later(self) {
        if self.id.block.word.cancel(self.id.generation) {
            if let Some(scheduler) = Scheduler::current() {
                scheduler.wake_later(self.id);
            }
        }
    }

    /// Returns whether waits of this coroutine end early.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.id.is_live() && Scheduler::current().is_some_and(|scheduler| scheduler.is_cancelled(self.id.block))
    }

    /// Calls `Scheduler::cut_short` for the running coroutine.
    pub(crate) fn cut_short(&self) -> Cancelled {
        Scheduler::expect("suspending a coroutine").cut_short(self.id.block)
    }

    /// Returns the coroutine as plain data. For authors of engines.
    #[inline]
    pub fn token(self) -> CoroutineId {
        self.id
    }

    /// Returns a handle for other threads and contexts, which can wake or cancel the coroutine.
    ///
    /// # Panics
    ///
    /// Outside a context.
    #[track_caller]
    pub fn waker(self) -> Waker {
        Waker { id: self.id, shared: Arc::clone(&Scheduler::expect("a waker").shared) }
    }
}

impl HomeRef<'_> {
    /// Returns the coroutine behind `token`, if it is alive.
    #[inline]
    pub fn coroutine(self, token: CoroutineId) -> Option<Coroutine> {
        token.lives_in(self.home.scheduler.shared.id()).then(|| Coroutine::of(token))
    }
}

impl fmt::Display for Coroutine {
    /// Writes the name in quotes, or the number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Scheduler::current() {
            Some(scheduler) if self.id.is_live() => {
                // The writer is foreign code and might end the coroutine, so the label is copied
                // first.
                let label = scheduler.local(self.id.block).label().to_string();
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

/// Suspends the running coroutine and returns control to its latest enterer.
///
/// Returns when the coroutine is entered or woken. Wake-ups may be spurious: recheck the condition
/// in a loop.
///
/// # Panics
///
/// While the coroutine holds the context's lock.
///
/// # Control
///
/// Yields. If the context, or the coroutine's scope, ends meanwhile, this does not return but
/// unwinds with [`Cancelled`] as payload.
// Always: see `Scheduler::suspend_if_possible`.
#[inline(always)]
#[track_caller]
#[doc(alias = "qemu_coroutine_yield")]
pub fn suspend() {
    Scheduler::expect("yield outside a coroutine, and").suspend_for(WaitReason::Enter);
}

/// Yields to the event loop; resumes after every other ready coroutine has run.
///
/// # Control
///
/// Yields.
#[inline(always)]
#[track_caller]
pub fn yield_now() {
    Scheduler::expect("yield outside a coroutine, and").reschedule();
}

/// Returns whether the running code can be suspended: it runs in a coroutine whose stack is not
/// unwinding.
///
/// A destructor that runs while its stack unwinds, after a panic or at the end of the context, cannot
/// be suspended. There, file I/O is waited for in place; waits that can fail with [`Cancelled`]
/// ([`sleep`](crate::sleep), `recv`, `join`, the `_cancellable` ones) do so immediately; and waits that
/// cannot fail ([`suspend`], [`yield_now`], `lock`, `acquire`) abort the process with a message.
///
/// A destructor may run the loop, or a context of its own, while its thread unwinds. The unwinding
/// stack lies below, so coroutines that run in that loop can be suspended. Their I/O is waited for
/// in place, so a destructor of such a coroutine may do I/O even if the coroutine itself panics. A
/// panic above an unwinding stack cannot be distinguished from the one below, and this function
/// does not count it: a destructor that waits for another coroutine then is suspended while its
/// stack unwinds, and [`std::thread::panicking`] stays true on the thread until the coroutine has
/// ended.
///
/// ```
/// use coralio::spawn;
/// use coralio::context::AioContext;
/// use coralio::task::can_suspend;
///
/// AioContext::run(|_ctx| {
///     assert!(!can_suspend()); // on the thread's own stack
///     assert!(spawn(can_suspend).join().unwrap());
/// });
/// ```
#[inline]
pub fn can_suspend() -> bool {
    Scheduler::current().is_some_and(Scheduler::can_suspend)
}
