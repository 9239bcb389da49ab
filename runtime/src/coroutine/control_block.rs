//! The control block of a coroutine: its state, and the word with which handles distinguish it from
//! later coroutines in the same block.
//!
//! Control blocks are *type-stable*: once allocated, the memory stays a control block until the
//! process ends, and is reused by coroutine after coroutine and by context after context. So a
//! handle may point at a block, be copied and kept for ever, and can still detect safely that its
//! coroutine has ended: the block's generation has advanced.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::fmt;
use std::mem::MaybeUninit;
use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, compiler_fence};

use corosensei::Yielder;
use parking_lot::Mutex;

use crate::coroutine::stack::{RunningStack, StackLease};
use crate::coroutine::state_word::{ScheduleOutcome, StateWord};
use crate::coroutine::wait_reason::{Deadline, WaitReason};

/// The command with which a coroutine is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// Continue.
    Continue,
    /// Unwind: the context ends, or the scope does.
    Unwind,
    /// Store a backtrace and continue to wait (rule C13).
    Backtrace,
}

pub(crate) type RawCoroutine = corosensei::Coroutine<Resume, (), (), RunningStack>;

/// The life of a coroutine, top to bottom.
///
/// | state     | its machine       | on a list  | may be entered                      |
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

/// The identity of a coroutine: a control block and the coroutine's generation.
///
/// Any thread may hold one. Only the home thread may use more of the block than
/// [`BlockRef::is_live`].
#[derive(Clone, Copy)]
pub(crate) struct BlockRef {
    pub(crate) block: &'static ControlBlock,
    pub(crate) generation: u64,
}

impl BlockRef {
    /// Returns whether the coroutine has not ended, or has ended with a result that was not fetched
    /// yet.
    #[inline]
    pub(crate) fn is_live(self) -> bool {
        self.block.word.generation() == self.generation
    }
}

impl PartialEq for BlockRef {
    fn eq(&self, other: &BlockRef) -> bool {
        ptr::eq(self.block, other.block) && self.generation == other.generation
    }
}

impl Eq for BlockRef {}

/// A control block. The module docs explain why it is shared and never freed.
///
/// The order of the fields, here and in [`LocalState`], is fixed: the data that a switch touches lies in
/// the first 128 bytes, two cache lines, which are cold after I/O.
#[repr(C, align(128))]
pub(crate) struct ControlBlock {
    pub(crate) word: StateWord,
    /// The number of the context that holds the block.
    context: AtomicUsize,
    /// The rest is used by the home thread only (*home's own*).
    local: LocalState,
    /// The location where it was last scheduled, for errors about a second enter or schedule.
    scheduled_at: AtomicPtr<Location<'static>>,
}

// SAFETY: *home's own*: `word`, `scheduled_at` and `context` are atomic. `local` is reached through
// `ControlBlock::local` only, by the thread whose context holds the block; blocks pass between contexts
// under `SPARE`'s lock.
unsafe impl Sync for ControlBlock {}

/// The part of a control block that only the home thread reads and writes.
#[repr(C)]
pub(crate) struct LocalState {
    pub(crate) state: Cell<State>,
    /// Woken while it was entered: becomes ready as soon as it suspends (rule W3).
    pub(crate) woken: Cell<bool>,
    /// Resumed for the last time, to unwind.
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
    /// Where it last suspended, what it waits for, and since when, in milliseconds of the loop's
    /// clock.
    pub(crate) suspended_at: Cell<&'static Location<'static>>,
    pub(crate) wait_reason: Cell<WaitReason>,
    pub(crate) since: Cell<u32>,
    /// The number of shields that mask cancellation.
    pub(crate) shields: Cell<u32>,
    pub(crate) lease: Cell<Option<StackLease>>,
    pub(crate) result: Cell<Option<ResultSlot>>,
    pub(crate) joiner: Cell<Option<Joiner>>,
    pub(crate) name: RefCell<Option<Cow<'static, str>>>,
    pub(crate) serial: Cell<u64>,
    pub(crate) created_at: Cell<&'static Location<'static>>,
}

/// The part of a block that a switch touches. AddressSanitizer makes a stack lease larger.
#[cfg(not(feature = "sanitizer"))]
const _: () = assert!(std::mem::offset_of!(ControlBlock, local) + std::mem::offset_of!(LocalState, lease) <= 128);

/// The party that waits for a coroutine's end.
pub(crate) enum Joiner {
    Coroutine(BlockRef),
    /// The task that polls the join handle as a future.
    Task(std::task::Waker),
}

/// A type-erased pointer to a coroutine's outcome, which lies at the top of the coroutine's own
/// stack.
#[derive(Clone, Copy)]
pub(crate) struct ResultSlot {
    pub(crate) place: *mut u8,
    /// Takes the outcome: returns the panic payload, or drops the value.
    pub(crate) payload: unsafe fn(*mut u8) -> Option<Box<dyn std::any::Any + Send>>,
}

impl ControlBlock {
    #[track_caller]
    fn new() -> ControlBlock {
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

    #[inline]
    pub(crate) fn id(&'static self) -> BlockRef {
        BlockRef { block: self, generation: self.word.generation() }
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

    /// Marks this generation as scheduled, at most once, and records the location. Callable from
    /// any thread.
    pub(crate) fn schedule(&self, generation: u64, here: &'static Location<'static>) -> ScheduleOutcome {
        let claim = self.word.claim(generation);
        if claim == ScheduleOutcome::Claimed {
            self.set_scheduled_at(here);
        }
        claim
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
    /// Returns the name for messages. The name is read when the label is formatted, so format it
    /// immediately, and not into a writer that could end the coroutine.
    pub(crate) fn label(&self) -> Label<'_> {
        Label(self)
    }
}

/// Four cache lines: a suspended coroutine costs little more than the page of its stack (rule
/// C12).
#[cfg(not(feature = "sanitizer"))]
const _: () = assert!(size_of::<ControlBlock>() <= 256);

/// A coroutine's name as messages show it: `'A'`, or `#17`. Formatting allocates nothing and does
/// not write to the block: several threads may format concurrently while the home thread is stopped
/// or asleep.
pub(crate) struct Label<'a>(&'a LocalState);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: the name changes only in `Home::create`, while the block is free, and a label is
        // formatted while its coroutine lives, into a writer of this crate, which does not end the
        // coroutine. A borrow count would not work: threads that format concurrently would lose
        // each other's counts.
        match unsafe { self.0.name.try_borrow_unguarded() } {
            Ok(Some(name)) => write!(f, "'{name}'"),
            _ => write!(f, "#{}", self.0.serial.get()),
        }
    }
}

const BLOCKS: usize = 64;

/// The unit in which blocks are allocated.
struct Chunk {
    blocks: [ControlBlock; BLOCKS],
    /// The chunk allocated before this one.
    next: AtomicPtr<Chunk>,
    /// The next chunk of the same context, or the next spare one. Relaxed: written by the context's
    /// home thread, or under the lock of `SPARE`.
    beside: AtomicPtr<Chunk>,
}

impl Chunk {
    fn beside(&self) -> Option<&'static Chunk> {
        // SAFETY: the pointer comes from a &'static Chunk.
        unsafe { self.beside.load(Ordering::Relaxed).as_ref() }
    }

    fn set_beside(&self, chunk: Option<&'static Chunk>) {
        self.beside.store(chunk.map_or(ptr::null_mut(), |chunk| ptr::from_ref(chunk).cast_mut()), Ordering::Relaxed);
    }

    /// Allocates a chunk that is never freed.
    fn leak() -> &'static Chunk {
        // Initialized in place: a chunk is larger than the smallest stack, and this runs on a
        // coroutine's stack.
        let chunk = Box::leak(Box::<Chunk>::new_uninit());
        let place = chunk.as_mut_ptr();
        // SAFETY: each field is written once, in memory that is owned here.
        let chunk = unsafe {
            let first = (&raw mut (*place).blocks).cast::<ControlBlock>();
            (0..BLOCKS).for_each(|index| first.add(index).write(ControlBlock::new()));
            (&raw mut (*place).next).write(AtomicPtr::new(ptr::null_mut()));
            (&raw mut (*place).beside).write(AtomicPtr::new(ptr::null_mut()));
            chunk.assume_init_ref()
        };
        let mut newest = CHUNKS.load(Ordering::Relaxed);
        loop {
            chunk.next.store(newest, Ordering::Relaxed);
            // Release, for a debugger that stops the process: a chunk on the list is initialized,
            // and its `next` is set.
            match CHUNKS.compare_exchange_weak(newest, place, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return chunk,
                Err(newer) => newest = newer,
            }
        }
    }
}

/// All chunks ever allocated, newest first. No code here reads the list: `gdb/coralio.py` uses it
/// to find all coroutines, live or in a core file, and knows this static, `Chunk` and `ControlBlock` by
/// the names of their fields.
#[used]
static CHUNKS: AtomicPtr<Chunk> = AtomicPtr::new(ptr::null_mut());

/// The first of the chunks that no context holds.
static SPARE: Mutex<Option<&'static Chunk>> = Mutex::new(None);

/// The blocks that one context holds. They are returned when it ends.
///
/// The head of the chunk list is one word, so it changes atomically: a thread that stops this one
/// always finds a consistent list.
pub(crate) struct BlockPool {
    newest: Cell<Option<&'static Chunk>>,
    free: Cell<Option<&'static ControlBlock>>,
}

impl BlockPool {
    pub(crate) fn new() -> BlockPool {
        BlockPool { newest: Cell::new(None), free: Cell::new(None) }
    }

    /// Takes a block off the free list.
    #[inline]
    pub(crate) fn take(&self) -> &'static ControlBlock {
        if self.free.get().is_none() {
            self.grow();
        }
        let block = self.free.get().expect("grow puts blocks on the free list");
        // SAFETY: *home's own*: blocks on this list are held by this context.
        self.free.set(unsafe { block.local() }.next.take());
        block
    }

    /// Puts a block, whose generation was retired, back on the free list.
    #[inline]
    pub(crate) fn give_back(&self, block: &'static ControlBlock) {
        // SAFETY: *home's own*: the block came from `take`.
        unsafe { block.local() }.next.set(self.free.replace(Some(block)));
    }

    #[cold]
    fn grow(&self) {
        let spare = {
            let mut first = SPARE.lock();
            let spare = *first;
            *first = spare.and_then(Chunk::beside);
            spare
        };
        let chunk = spare.unwrap_or_else(Chunk::leak);
        chunk.set_beside(self.newest.get());
        // For a thread that stops this one: a chunk on the list links to the rest of the list.
        compiler_fence(Ordering::SeqCst);
        self.newest.set(Some(chunk));
        for block in chunk.blocks.iter().rev() {
            self.give_back(block);
        }
    }

    /// Returns all blocks, free ones included. Allocates nothing and only reads, like [`Label`].
    pub(crate) fn all(&self) -> impl Iterator<Item = &'static ControlBlock> + use<> {
        std::iter::successors(self.newest.get(), |chunk| chunk.beside()).flat_map(|chunk| chunk.blocks.iter())
    }
}

impl Drop for BlockPool {
    fn drop(&mut self) {
        let Some(oldest) = std::iter::successors(self.newest.get(), |chunk| chunk.beside()).last() else { return };
        let mut first = SPARE.lock();
        oldest.set_beside(*first);
        *first = self.newest.get();
    }
}

/// A first-in, first-out list of blocks, linked through the blocks themselves: it allocates
/// nothing, and a block is on at most one list. Used by the home thread only.
pub(crate) struct RunQueue {
    head: Cell<Option<&'static ControlBlock>>,
    tail: Cell<Option<&'static ControlBlock>>,
}

impl RunQueue {
    pub(crate) const fn new() -> RunQueue {
        RunQueue { head: Cell::new(None), tail: Cell::new(None) }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.get().is_none()
    }

    #[inline]
    pub(crate) fn push(&self, block: &'static ControlBlock) {
        // SAFETY: *home's own*: lists belong to the home thread, which pushes only its own blocks.
        let local = unsafe { block.local() };
        debug_assert!(local.next.get().is_none());
        match self.tail.replace(Some(block)) {
            // SAFETY: as above.
            Some(last) => unsafe { last.local() }.next.set(Some(block)),
            None => self.head.set(Some(block)),
        }
    }

    #[inline]
    pub(crate) fn pop(&self) -> Option<&'static ControlBlock> {
        let block = self.head.get()?;
        // SAFETY: *home's own*, as in `push`.
        let next = unsafe { block.local() }.next.take();
        self.head.set(next);
        if next.is_none() {
            self.tail.set(None);
        }
        Some(block)
    }

    /// Removes `block` from any position. Returns whether it was on this list.
    pub(crate) fn remove(&self, block: &'static ControlBlock) -> bool {
        let mut before: Option<&'static ControlBlock> = None;
        let mut next = self.head.get();
        while let Some(here) = next {
            // SAFETY: *home's own*, as in `push`.
            let local = unsafe { here.local() };
            next = local.next.get();
            if ptr::eq(here, block) {
                local.next.set(None);
                match before {
                    // SAFETY: as above.
                    Some(before) => unsafe { before.local() }.next.set(next),
                    None => self.head.set(next),
                }
                if next.is_none() {
                    self.tail.set(before);
                }
                return true;
            }
            before = Some(here);
        }
        false
    }

    /// Moves all blocks of `other` to the end of this list.
    #[inline]
    pub(crate) fn append(&self, other: &RunQueue) {
        let Some(first) = other.head.take() else { return };
        let last = other.tail.take();
        match self.tail.replace(last) {
            // SAFETY: *home's own*, as in `push`.
            Some(before) => unsafe { before.local() }.next.set(Some(first)),
            None => self.head.set(Some(first)),
        }
    }
}
