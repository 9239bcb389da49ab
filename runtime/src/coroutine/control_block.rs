//! The control block of a coroutine: its state, and the word with which handles distinguish it from
//! later coroutines in the same block.
//!
//! Control blocks are *type-stable*: once allocated, the memory stays a control block until the
//! process ends, and is reused by coroutine after coroutine and by context after context. So a
//! handle may point at a block, be copied and kept for ever, and can still detect safely that its
//! coroutine has ended: the block's generation has advanced.

#![allow(unsafe_code)]

use std::any::Any;
use std::borrow::Cow;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::fmt;
use std::mem::MaybeUninit;
use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::Instant;

use corosensei::Yielder;

use crate::coroutine::{CoroutineId, RunningStack, StackLease, StateWord, WaitReason};
use crate::sys::{format_fn, prefetch};

/// The command with which a coroutine is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// Continue.
    Continue,
    /// Unwind, because the context or the coroutine's scope ends.
    Unwind,
    /// Store a backtrace and continue to wait (rule C13).
    Backtrace,
}

pub(crate) type RawCoroutine = corosensei::Coroutine<Resume, (), (), RunningStack>;

/// The life of a coroutine, top to bottom.
///
/// | state     | its raw coroutine | on a list  | may be entered                      |
/// |-----------|-------------------|------------|-------------------------------------|
/// | Free      | none              | free list  | no: there is nothing to enter       |
/// | Suspended | in the block      | no         | yes; a new one is suspended too     |
/// | Scheduled | in the block      | ready list | from that list only                 |
/// | Entered   | out, on the stack | no         | no: that is recursive entry (C5)    |
/// | Finished  | none              | no         | no; its result is not yet fetched   |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Suspended,
    Scheduled,
    Entered,
    Finished,
}

/// A control block. The module docs explain why it is shared and never freed.
///
/// The order of the fields, here and in [`LocalState`], is fixed: the data that a switch touches
/// lies in the first 128 bytes, two cache lines, which are cold after I/O.
#[repr(C, align(128))]
pub(crate) struct ControlBlock {
    pub(crate) word: StateWord,
    /// The number of the context that holds the block.
    context: AtomicUsize,
    /// The location where the coroutine was last scheduled, for errors about a second enter or
    /// schedule.
    scheduled_at: AtomicPtr<Location<'static>>,
    /// The fields that only the home thread uses (*home's own*).
    local: LocalState,
}

// SAFETY: *home's own*: `word`, `scheduled_at` and `context` are atomic. `local` is reached through
// `ControlBlock::local` only, by the thread whose context holds the block; blocks pass between
// contexts under `SPARE`'s lock.
unsafe impl Sync for ControlBlock {}

/// The part of a control block that only the home thread reads and writes.
#[repr(C)]
pub(crate) struct LocalState {
    pub(crate) state: Cell<State>,
    /// The coroutine was woken while entered: it becomes ready as soon as it suspends (rule W3).
    pub(crate) woken: Cell<bool>,
    /// The coroutine has been resumed for the last time, to unwind.
    pub(crate) unwinding: Cell<bool>,
    /// The result will not be fetched.
    pub(crate) detached: Cell<bool>,
    /// A panic propagates to the enterer instead of being kept for the join handle.
    pub(crate) propagates: Cell<bool>,
    /// The stack was painted, so that its use can be measured.
    pub(crate) measured: Cell<bool>,
    /// How often the coroutine caught the unwinding and tried to wait again.
    pub(crate) swallowed: Cell<u16>,
    /// The next block on the same list.
    pub(crate) next: Cell<Option<&'static ControlBlock>>,
    /// The innermost timeout that encloses the running code.
    pub(crate) deadlines: Cell<*const Deadline>,
    pub(crate) yielder: Cell<*const Yielder<Resume, ()>>,
    pub(crate) raw: UnsafeCell<MaybeUninit<RawCoroutine>>,
    /// Where the coroutine last suspended, what it waits for, and since when, in milliseconds of
    /// the loop's clock.
    pub(crate) suspended_at: Cell<&'static Location<'static>>,
    pub(crate) wait_reason: Cell<WaitReason>,
    pub(crate) since: Cell<u32>,
    /// The number of shields that mask cancellation.
    pub(crate) shields: Cell<u32>,
    pub(crate) lease: Cell<Option<StackLease>>,
    /// The innermost coroutine-local value.
    pub(crate) local_values: Cell<*const LocalValue>,
    pub(crate) result: Cell<Option<ResultSlot>>,
    pub(crate) joiner: Cell<Option<Joiner>>,
    pub(crate) name: RefCell<Option<Cow<'static, str>>>,
    pub(crate) serial: Cell<u64>,
    pub(crate) created_at: Cell<&'static Location<'static>>,
    /// The coroutine's span; taken out while the coroutine is entered.
    #[cfg(feature = "tracing")]
    pub(crate) span: Cell<tracing::Span>,
}

/// The part of a block that a switch touches. AddressSanitizer makes a stack lease larger.
#[cfg(not(feature = "sanitizer"))]
const _: () = assert!(std::mem::offset_of!(ControlBlock, local) + std::mem::offset_of!(LocalState, lease) <= 128);

/// The party that waits for a coroutine's end.
pub(crate) enum Joiner {
    Coroutine(CoroutineId),
    /// The task that polls the join handle as a future.
    Task(std::task::Waker),
}

/// A type-erased pointer to a coroutine's outcome, which lies at the top of the coroutine's own
/// stack.
#[derive(Clone, Copy)]
pub(crate) struct ResultSlot {
    pub(crate) place: *mut u8,
    /// Takes the outcome: returns the panic payload, or drops the value.
    pub(crate) payload: unsafe fn(*mut u8) -> Option<Box<dyn Any + Send>>,
}

/// The attributes with which a coroutine is created.
#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    pub(crate) name: Option<Cow<'static, str>>,
    pub(crate) stack_size: Option<usize>,
    pub(crate) track_stack_usage: Option<bool>,
    pub(crate) created_at: &'static Location<'static>,
}

impl Attributes {
    #[track_caller]
    #[inline]
    pub(crate) fn new() -> Attributes {
        Attributes { name: None, stack_size: None, track_stack_usage: None, created_at: Location::caller() }
    }
}

/// An active [`timeout`](crate::timeout). It lies on the stack of its coroutine; no other coroutine
/// touches it.
pub(crate) struct Deadline {
    pub(crate) deadline: Instant,
    /// Whether an operation failed because of it. Set by `Scheduler::cut_short` only.
    pub(crate) hit: Cell<bool>,
    pub(crate) outer: *const Deadline,
}

/// A value set by [`CoroutineLocal::scope`](crate::CoroutineLocal::scope). It lies on the stack of
/// its coroutine; no other coroutine touches it.
pub(crate) struct LocalValue {
    /// The address of the variable.
    pub(crate) key: usize,
    pub(crate) value: *const dyn Any,
    pub(crate) outer: *const LocalValue,
}

impl ControlBlock {
    #[track_caller]
    pub(super) fn new() -> ControlBlock {
        let here = Location::caller();
        ControlBlock {
            word: StateWord::new(),
            scheduled_at: AtomicPtr::new(ptr::from_ref(here).cast_mut()),
            context: AtomicUsize::new(0),
            local: LocalState {
                state: Cell::new(State::Free),
                woken: Cell::new(false),
                unwinding: Cell::new(false),
                swallowed: Cell::new(0),
                detached: Cell::new(false),
                propagates: Cell::new(false),
                measured: Cell::new(false),
                next: Cell::new(None),
                raw: UnsafeCell::new(MaybeUninit::uninit()),
                yielder: Cell::new(ptr::null()),
                lease: Cell::new(None),
                result: Cell::new(None),
                joiner: Cell::new(None),
                name: RefCell::new(None),
                serial: Cell::new(0),
                created_at: Cell::new(here),
                suspended_at: Cell::new(here),
                wait_reason: Cell::new(WaitReason::Enter),
                since: Cell::new(0),
                deadlines: Cell::new(ptr::null()),
                shields: Cell::new(0),
                local_values: Cell::new(ptr::null()),
                #[cfg(feature = "tracing")]
                span: Cell::new(tracing::Span::none()),
            },
        }
    }

    /// Returns the home thread's part.
    ///
    /// # Safety
    ///
    /// *home's own*: the caller runs on the thread whose context holds this block.
    #[inline]
    pub(crate) unsafe fn local(&self) -> &LocalState {
        &self.local
    }

    /// Prefetches the part that a switch touches.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(ptr::from_ref(self).cast(), 128);
    }

    #[inline]
    pub(crate) fn id(&'static self) -> CoroutineId {
        CoroutineId { block: self, generation: self.word.generation() }
    }

    /// Returns the number of the context that holds the block. Callable from any thread: a hint
    /// unless the generation is live.
    #[inline]
    pub(crate) fn context(&self) -> usize {
        self.context.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_context(&self, context: usize) {
        self.context.store(context, Ordering::Relaxed);
    }

    /// Returns the location where the coroutine was last scheduled.
    pub(crate) fn scheduled_at(&self) -> &'static Location<'static> {
        // SAFETY: the pointer comes from a &'static Location, which is immutable; a stale one is
        // equally valid.
        unsafe { &*self.scheduled_at.load(Ordering::Relaxed) }
    }

    /// Records where the coroutine was scheduled, for messages.
    #[inline]
    pub(crate) fn set_scheduled_at(&self, here: &'static Location<'static>) {
        self.scheduled_at.store(ptr::from_ref(here).cast_mut(), Ordering::Relaxed);
    }
}

impl LocalState {
    /// Prepares the state for a new coroutine, which is not suspended yet.
    // Plain `inline` is not honoured, and the call would cost more than the stores.
    #[inline(always)]
    pub(crate) fn reset(&self, attributes: Attributes, serial: u64, lease: StackLease, result: ResultSlot) {
        self.woken.set(false);
        self.unwinding.set(false);
        self.detached.set(false);
        self.measured.set(false);
        self.swallowed.set(0);
        self.deadlines.set(ptr::null());
        self.yielder.set(ptr::null());
        self.shields.set(0);
        self.local_values.set(ptr::null());
        self.suspended_at.set(attributes.created_at);
        self.wait_reason.set(WaitReason::Enter);
        self.lease.set(Some(lease));
        self.result.set(Some(result));
        self.joiner.set(None);
        self.serial.set(serial);
        self.created_at.set(attributes.created_at);
        if attributes.name.is_some() || self.name.borrow().is_some() {
            self.name.replace(attributes.name);
        }
    }

    /// Returns the name as messages show it: `'A'`, or `#17`. The name is read when the label is
    /// formatted, so format it immediately, and not into a writer that could end the coroutine.
    /// Formatting allocates nothing and does not write to the block: several threads may format
    /// concurrently while the home thread is stopped or asleep.
    pub(crate) fn label(&self) -> impl fmt::Display {
        format_fn(|f| {
            // SAFETY: the name changes only in `Scheduler::create`, while the block is free, and a
            // label is formatted while its coroutine lives, into a writer of this crate, which does
            // not end the coroutine. A borrow count would not work: threads that format concurrently
            // would lose each other's counts.
            match unsafe { self.name.try_borrow_unguarded() } {
                Ok(Some(name)) => write!(f, "'{name}'"),
                _ => write!(f, "#{}", self.serial.get()),
            }
        })
    }
}

/// Four cache lines: a suspended coroutine costs little more than the page of its stack (rule
/// C12).
#[cfg(not(any(feature = "sanitizer", feature = "tracing")))]
const _: () = assert!(size_of::<ControlBlock>() <= 256);
