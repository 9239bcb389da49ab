//! The control block of a coroutine: what is known of it, and the word by which handles tell it from its successors.
//!
//! Control blocks are *type-stable*: once made, the memory stays a control block until the process ends, and passes
//! from coroutine to coroutine and from context to context. So a handle may point at one, be copied, be kept for ever,
//! and still find out safely that its coroutine has ended: the block's generation has moved on.

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

use super::stack::{RunningStack, StackLease};
use super::ticket::{Claim, Ticket};
use super::waiting::{Limit, Waiting};

/// How a coroutine is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// Go on.
    Go,
    /// Unwind: the context ends, or the coroutine was cancelled.
    Unwind,
    /// Leave a backtrace, and wait on (rule C13).
    Trace,
}

pub(crate) type Machine = corosensei::Coroutine<Resume, (), (), RunningStack>;

/// The life of a coroutine, top to bottom.
///
/// | state     | its machine       | on a list  | may be entered                     |
/// |-----------|-------------------|------------|------------------------------------|
/// | Free      | none              | free list  | no: there is nothing to enter      |
/// | Suspended | in the block      | no         | yes; a new one is suspended too    |
/// | Scheduled | in the block      | ready list | by that list alone                 |
/// | Entered   | out, on the stack | no         | no: that is recursive entry (C5)   |
/// | Finished  | none              | no         | no; its result waits to be fetched |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Free,
    Suspended,
    Scheduled,
    Entered,
    Finished,
}

/// Which coroutine: a control block and the generation that it had.
///
/// Any thread may have one. Only the home thread may look beyond [`CoroutineId::is_live`].
#[derive(Clone, Copy)]
pub(crate) struct CoroutineId {
    pub(crate) block: &'static Control,
    pub(crate) generation: u64,
}

impl CoroutineId {
    /// Whether the coroutine has not ended, or ended with a result that nobody has fetched yet.
    #[inline]
    pub(crate) fn is_live(self) -> bool {
        self.block.ticket.generation() == self.generation
    }
}

impl PartialEq for CoroutineId {
    fn eq(&self, other: &CoroutineId) -> bool {
        ptr::eq(self.block, other.block) && self.generation == other.generation
    }
}

impl Eq for CoroutineId {}

/// A control block. See the module for why it is shared and never freed.
///
/// In this order, as [`Own`] is: what a switch touches lies in the first 128 bytes, which is two cache lines. After I/O they are
/// cold.
#[repr(C, align(128))]
pub(crate) struct Control {
    pub(crate) ticket: Ticket,
    /// The context that holds the block, as a number.
    context: AtomicUsize,
    /// The rest is the home thread's alone (*home's own*).
    own: Own,
    /// Where it was scheduled last; told when somebody tries to enter or schedule it in spite of that.
    scheduled_at: AtomicPtr<Location<'static>>,
}

// SAFETY: *home's own*: `ticket`, `scheduled_at` and `context` are atomic. `own` is reached through `Control::own` alone, by the thread whose context
// holds the block; blocks pass between contexts under `SPARE`'s lock.
unsafe impl Sync for Control {}

/// What only the home thread reads and writes.
#[repr(C)]
pub(crate) struct Own {
    pub(crate) state: Cell<State>,
    /// Woken while it was entered: it goes on at once when it suspends (rule W3).
    pub(crate) woken: Cell<bool>,
    /// Resumed for the last time, to unwind.
    pub(crate) unwinding: Cell<bool>,
    /// Nobody will fetch the result.
    pub(crate) detached: Cell<bool>,
    /// A panic goes on in the enterer instead of being kept for the join handle.
    pub(crate) propagates: Cell<bool>,
    /// Its stack was painted, so that its use can be read.
    pub(crate) measured: Cell<bool>,
    /// How often the unwinding was caught and a wait attempted again.
    pub(crate) swallowed: Cell<u16>,
    /// The next one on the list that this one is on.
    pub(crate) next: Cell<Option<&'static Control>>,
    /// The innermost timeout that it runs in.
    pub(crate) limits: Cell<*const Limit>,
    pub(crate) yielder: Cell<*const Yielder<Resume, ()>>,
    pub(crate) machine: UnsafeCell<MaybeUninit<Machine>>,
    /// Where it was suspended last, what it waits for, and since when: the loop's clock in milliseconds.
    pub(crate) suspended_at: Cell<&'static Location<'static>>,
    pub(crate) waiting: Cell<Waiting>,
    pub(crate) since: Cell<u32>,
    /// How often it put cancellation off.
    pub(crate) shields: Cell<u32>,
    pub(crate) lease: Cell<Option<StackLease>>,
    pub(crate) packet: Cell<Option<Packet>>,
    pub(crate) joiner: Cell<Option<Joiner>>,
    pub(crate) name: RefCell<Option<Cow<'static, str>>>,
    pub(crate) serial: Cell<u64>,
    pub(crate) created_at: Cell<&'static Location<'static>>,
}

/// Of a block, what a switch touches. For AddressSanitizer a stack has more to carry.
#[cfg(not(feature = "sanitizer"))]
const _: () = assert!(std::mem::offset_of!(Control, own) + std::mem::offset_of!(Own, lease) <= 128);

/// Who waits for a coroutine's end.
pub(crate) enum Joiner {
    Coroutine(CoroutineId),
    /// Whoever polls its join handle as a future.
    Task(std::task::Waker),
}

/// Where a coroutine's outcome lies, at the top of its own stack, without its type.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) place: *mut u8,
    /// Takes the panic payload out, if the outcome is a panic; drops the value otherwise.
    pub(crate) payload: unsafe fn(*mut u8) -> Option<Box<dyn std::any::Any + Send>>,
}

impl Control {
    #[track_caller]
    fn new() -> Control {
        let here = Location::caller();
        Control {
            ticket: Ticket::new(),
            scheduled_at: AtomicPtr::new(ptr::from_ref(here).cast_mut()),
            context: AtomicUsize::new(0),
            own: Own {
                state: Cell::new(State::Free),
                woken: Cell::new(false),
                unwinding: Cell::new(false),
                swallowed: Cell::new(0),
                detached: Cell::new(false),
                propagates: Cell::new(false),
                measured: Cell::new(false),
                next: Cell::new(None),
                machine: UnsafeCell::new(MaybeUninit::uninit()),
                yielder: Cell::new(ptr::null()),
                lease: Cell::new(None),
                packet: Cell::new(None),
                joiner: Cell::new(None),
                name: RefCell::new(None),
                serial: Cell::new(0),
                created_at: Cell::new(here),
                suspended_at: Cell::new(here),
                waiting: Cell::new(Waiting::Enter),
                since: Cell::new(0),
                limits: Cell::new(ptr::null()),
                shields: Cell::new(0),
            },
        }
    }

    /// The home thread's part.
    ///
    /// # Safety
    ///
    /// *home's own*: the caller runs on the thread whose context holds this block.
    #[inline]
    pub(crate) unsafe fn own(&self) -> &Own {
        &self.own
    }

    #[inline]
    pub(crate) fn id(&'static self) -> CoroutineId {
        CoroutineId { block: self, generation: self.ticket.generation() }
    }

    /// The number of the context that holds the block. Any thread: a hint unless the generation is live.
    #[inline]
    pub(crate) fn context(&self) -> usize {
        self.context.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set_context(&self, context: usize) {
        self.context.store(context, Ordering::Relaxed);
    }

    /// Marks this generation as scheduled, once, and says where. Any thread.
    pub(crate) fn schedule(&self, generation: u64, here: &'static Location<'static>) -> Claim {
        let claim = self.ticket.claim(generation);
        if claim == Claim::Mine {
            self.set_scheduled_at(here);
        }
        claim
    }

    /// Where it was scheduled last.
    pub(crate) fn scheduled_at(&self) -> &'static Location<'static> {
        // SAFETY: the pointer was made of a &'static Location, which is immutable; a stale one is as good.
        unsafe { &*self.scheduled_at.load(Ordering::Relaxed) }
    }

    /// Notes where it was scheduled, for messages.
    #[inline]
    pub(crate) fn set_scheduled_at(&self, here: &'static Location<'static>) {
        self.scheduled_at.store(ptr::from_ref(here).cast_mut(), Ordering::Relaxed);
    }
}

impl Own {
    /// How messages call the coroutine. The name is read when the label is formatted, so format it at once, and not into a
    /// writer that could end the coroutine.
    pub(crate) fn label(&self) -> Label<'_> {
        Label(self)
    }
}

/// Four cache lines: a suspended coroutine costs little more than the page of its stack (rule C12).
#[cfg(not(feature = "sanitizer"))]
const _: () = assert!(size_of::<Control>() <= 256);

/// A coroutine's name as messages show it: `'A'`, or `#17`. Formatting it allocates nothing and writes nothing to the block:
/// several threads may do so at once while the home thread is stopped or asleep.
pub(crate) struct Label<'a>(&'a Own);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: the name changes in `Home::create` alone, while the block is free, and a label is formatted while its
        // coroutine lives, into a writer of this crate, which does not end the coroutine. A count of borrows would not do:
        // threads that format at once would lose one another's counts.
        match unsafe { self.0.name.try_borrow_unguarded() } {
            Ok(Some(name)) => write!(f, "'{name}'"),
            _ => write!(f, "#{}", self.0.serial.get()),
        }
    }
}

const BLOCKS: usize = 64;

/// What blocks are made in.
struct Chunk {
    blocks: [Control; BLOCKS],
    /// The one made before this.
    next: AtomicPtr<Chunk>,
    /// The next chunk of the same context, or the next spare one. Relaxed: written by the context's home thread, or under
    /// the lock of `SPARE`.
    beside: AtomicPtr<Chunk>,
}

impl Chunk {
    fn beside(&self) -> Option<&'static Chunk> {
        // SAFETY: made of a &'static Chunk.
        unsafe { self.beside.load(Ordering::Relaxed).as_ref() }
    }

    fn set_beside(&self, chunk: Option<&'static Chunk>) {
        self.beside.store(chunk.map_or(ptr::null_mut(), |chunk| ptr::from_ref(chunk).cast_mut()), Ordering::Relaxed);
    }

    /// A new one, for ever.
    fn leak() -> &'static Chunk {
        // Written in its place: a chunk is larger than the smallest stack, and this runs on a coroutine's.
        let chunk = Box::leak(Box::<Chunk>::new_uninit());
        let place = chunk.as_mut_ptr();
        // SAFETY: each field is written once, in memory that is this one's.
        let chunk = unsafe {
            let first = (&raw mut (*place).blocks).cast::<Control>();
            (0..BLOCKS).for_each(|index| first.add(index).write(Control::new()));
            (&raw mut (*place).next).write(AtomicPtr::new(ptr::null_mut()));
            (&raw mut (*place).beside).write(AtomicPtr::new(ptr::null_mut()));
            chunk.assume_init_ref()
        };
        let mut newest = CHUNKS.load(Ordering::Relaxed);
        loop {
            chunk.next.store(newest, Ordering::Relaxed);
            // Release, for whoever stops the process and looks: what is on the list has been made, and its `next` set.
            match CHUNKS.compare_exchange_weak(newest, place, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return chunk,
                Err(newer) => newest = newer,
            }
        }
    }
}

/// All chunks that were ever made, newest first. Nothing here reads it: `gdb/coralio.py` finds all coroutines by it, live
/// or in a core file, and knows it, `Chunk` and `Control` by the names of their fields.
#[used]
static CHUNKS: AtomicPtr<Chunk> = AtomicPtr::new(ptr::null_mut());

/// The first of the chunks that no context holds.
static SPARE: Mutex<Option<&'static Chunk>> = Mutex::new(None);

/// The blocks that one context holds. They go back when it ends.
///
/// The list of chunks is one word, which changes at once: a thread that stops this one finds a whole list at any moment.
pub(crate) struct Blocks {
    newest: Cell<Option<&'static Chunk>>,
    free: Cell<Option<&'static Control>>,
}

impl Blocks {
    pub(crate) fn new() -> Blocks {
        Blocks { newest: Cell::new(None), free: Cell::new(None) }
    }

    /// A free block, taken off the free list.
    #[inline]
    pub(crate) fn take(&self) -> &'static Control {
        if self.free.get().is_none() {
            self.grow();
        }
        let block = self.free.get().expect("grow puts blocks on the free list");
        // SAFETY: *home's own*: blocks on this list are held by this context.
        self.free.set(unsafe { block.own() }.next.take());
        block
    }

    /// Puts a block back whose generation was retired.
    #[inline]
    pub(crate) fn give_back(&self, block: &'static Control) {
        // SAFETY: *home's own*: the block came from `take`.
        unsafe { block.own() }.next.set(self.free.replace(Some(block)));
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
        // For a thread that stops this one and looks: what is on the list leads on to the rest of it.
        compiler_fence(Ordering::SeqCst);
        self.newest.set(Some(chunk));
        for block in chunk.blocks.iter().rev() {
            self.give_back(block);
        }
    }

    /// All blocks, free ones too. Allocates nothing and only reads, as [`Label`].
    pub(crate) fn all(&self) -> impl Iterator<Item = &'static Control> + use<> {
        std::iter::successors(self.newest.get(), |chunk| chunk.beside()).flat_map(|chunk| chunk.blocks.iter())
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        let Some(oldest) = std::iter::successors(self.newest.get(), |chunk| chunk.beside()).last() else { return };
        let mut first = SPARE.lock();
        oldest.set_beside(*first);
        *first = self.newest.get();
    }
}

/// A first-in, first-out list of blocks, linked through the blocks themselves: it allocates nothing, and a block is on
/// at most one list. The home thread's alone.
pub(crate) struct ControlList {
    head: Cell<Option<&'static Control>>,
    tail: Cell<Option<&'static Control>>,
}

impl ControlList {
    pub(crate) const fn new() -> ControlList {
        ControlList { head: Cell::new(None), tail: Cell::new(None) }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.get().is_none()
    }

    #[inline]
    pub(crate) fn push(&self, block: &'static Control) {
        // SAFETY: *home's own*: lists are the home thread's, and it pushes its own blocks alone.
        let own = unsafe { block.own() };
        debug_assert!(own.next.get().is_none());
        match self.tail.replace(Some(block)) {
            // SAFETY: as above.
            Some(last) => unsafe { last.own() }.next.set(Some(block)),
            None => self.head.set(Some(block)),
        }
    }

    #[inline]
    pub(crate) fn pop(&self) -> Option<&'static Control> {
        let block = self.head.get()?;
        // SAFETY: *home's own*, as in `push`.
        let next = unsafe { block.own() }.next.take();
        self.head.set(next);
        if next.is_none() {
            self.tail.set(None);
        }
        Some(block)
    }

    /// Takes `block` off, wherever it stands. Returns whether it was on this list.
    pub(crate) fn remove(&self, block: &'static Control) -> bool {
        let mut before: Option<&'static Control> = None;
        let mut next = self.head.get();
        while let Some(here) = next {
            // SAFETY: *home's own*, as in `push`.
            let own = unsafe { here.own() };
            next = own.next.get();
            if ptr::eq(here, block) {
                own.next.set(None);
                match before {
                    // SAFETY: as above.
                    Some(before) => unsafe { before.own() }.next.set(next),
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

    /// Moves all of `other` to the end of this list.
    #[inline]
    pub(crate) fn append(&self, other: &ControlList) {
        let Some(first) = other.head.take() else { return };
        let last = other.tail.take();
        match self.tail.replace(last) {
            // SAFETY: *home's own*, as in `push`.
            Some(before) => unsafe { before.own() }.next.set(Some(first)),
            None => self.head.set(Some(first)),
        }
    }
}
