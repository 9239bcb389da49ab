//! Control blocks are allocated in chunks, and pass from context to context.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering, compiler_fence};

use parking_lot::Mutex;

use crate::coroutine::ControlBlock;

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
/// to find all coroutines, live or in a core file, and knows this static, `Chunk` and
/// `ControlBlock` by the names of their fields.
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

    /// Returns all blocks, free ones included. Allocates nothing and only reads.
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
