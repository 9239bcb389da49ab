//! A bounded cache of table slices: each is read once, and written by a flush.
//!
//! ```text
//!   clean ---- modify ----> dirty ---- take_dirty ----> writing ---- written ----> clean
//!     |                       ^                            |
//!   evicted                   '---- modified, or failed ---'
//! ```
//!
//! Only clean slices are evicted, so the disk has the latest version of any slice that is not
//! cached: reading a slice again never returns stale data. When too many slices are dirty, the
//! request that made them dirty flushes at its end; until then the cache exceeds its bound.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use coralio::sync::CoMutex;
use coralio::{AlignedBuf, File};
use rustc_hash::FxHashMap;

use super::top::{PAGE, read_padded};
use crate::error::damaged;

/// Maximum number of concurrent reads, each of a different slice.
const LANES: usize = 16;
/// Adjacent slices are written together, up to this number of bytes.
const MAX_AT_ONCE: usize = 1 << 20;

struct Slot {
    offset: u64,
    bytes: AlignedBuf,
    dirty: bool,
    writing: bool,
    /// Set if the slice was used since the clock hand last passed it.
    used: Cell<bool>,
}

struct Slots {
    all: Vec<Slot>,
    /// Maps offsets in the file to slots.
    at: FxHashMap<u64, usize>,
    hand: usize,
    capacity: usize,
    dirty: usize,
}

/// The cache of one kind of table.
pub(crate) struct Cache {
    file: Rc<File>,
    slice: usize,
    slots: RefCell<Slots>,
    lanes: [CoMutex<()>; LANES],
}

/// Copies of dirty slices and their file offsets; each copy may have several adjacent slices.
pub(crate) type Taken = Vec<(u64, AlignedBuf)>;

impl Cache {
    pub(crate) fn new(file: Rc<File>, slice: u64, bytes: u64) -> Cache {
        let capacity = (bytes / slice).max(16) as usize;
        let slots = Slots { all: Vec::new(), at: FxHashMap::default(), hand: 0, capacity, dirty: 0 };
        let lanes = [const { CoMutex::new(()) }; LANES];
        Cache { file, slice: slice as usize, slots: RefCell::new(slots), lanes }
    }

    /// Passes the slice at `offset` to `f` if it is cached.
    #[inline]
    pub(crate) fn peek<T>(&self, offset: u64, f: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let slots = self.slots.borrow();
        let slot = &slots.all[*slots.at.get(&offset)?];
        slot.used.set(true);
        Some(f(&slot.bytes))
    }

    /// Like [`peek`](Cache::peek), but loads the slice if it is not cached.
    pub(crate) fn with<T>(&self, offset: u64, f: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        self.load(offset)?;
        Ok(self.peek(offset, f).expect("the slice was just loaded, without a yield since"))
    }

    /// Modifies the slice with `f`, loading it first if it is not cached.
    pub(crate) fn modify<T>(&self, offset: u64, f: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        self.load(offset)?;
        let mut slots = self.slots.borrow_mut();
        let at = slots.at[&offset];
        let slot = &mut slots.all[at];
        slot.used.set(true);
        let before = std::mem::replace(&mut slot.dirty, true);
        let value = f(&mut slot.bytes);
        slots.dirty += usize::from(!before);
        Ok(value)
    }

    /// Loads the slice if it is not cached. No other coroutine runs between insertion and return.
    fn load(&self, offset: u64) -> io::Result<()> {
        if self.slots.borrow().at.contains_key(&offset) {
            return Ok(());
        }
        let _lane = self.lanes[offset as usize / self.slice % LANES].lock();
        if self.slots.borrow().at.contains_key(&offset) {
            return Ok(());
        }
        let mut bytes = AlignedBuf::new(self.slice, PAGE);
        if read_padded(&self.file, &mut bytes, offset)? < self.slice {
            return Err(damaged(format!("a table at {offset:#x} lies beyond the end of the file")));
        }
        self.slots.borrow_mut().insert(offset, bytes);
        Ok(())
    }

    /// Returns whether enough slices are dirty that the caller should flush.
    pub(crate) fn is_full(&self) -> bool {
        let slots = self.slots.borrow();
        slots.dirty > slots.capacity / 2
    }

    /// Copies the dirty slices for writing. Calls must not overlap.
    pub(crate) fn take_dirty(&self) -> Taken {
        let mut slots = self.slots.borrow_mut();
        slots.dirty = 0;
        let mut dirty: Vec<_> = slots.all.iter_mut().filter(|slot| slot.dirty).collect();
        dirty.sort_unstable_by_key(|slot| slot.offset);
        let most = MAX_AT_ONCE / self.slice;
        let follows = |a: &&mut Slot, b: &&mut Slot| a.offset + self.slice as u64 == b.offset;
        let copy = |slots: &mut [&mut Slot]| {
            let mut bytes = AlignedBuf::new(slots.len() * self.slice, PAGE);
            for (slot, room) in slots.iter_mut().zip(bytes.chunks_exact_mut(self.slice)) {
                room.copy_from_slice(&slot.bytes);
                (slot.dirty, slot.writing) = (false, true);
            }
            (slots[0].offset, bytes)
        };
        dirty.chunk_by_mut(follows).flat_map(|chunk| chunk.chunks_mut(most)).map(copy).collect()
    }

    /// Completes the write of `taken`. If the write failed, the slices become dirty again.
    pub(crate) fn written(&self, taken: &Taken, well: bool) {
        let mut slots = self.slots.borrow_mut();
        let offsets = taken
            .iter()
            .flat_map(|(offset, bytes)| (0..bytes.len() / self.slice).map(move |n| offset + (n * self.slice) as u64));
        for offset in offsets {
            let at = slots.at[&offset];
            let slot = &mut slots.all[at];
            slot.writing = false;
            if !well && !std::mem::replace(&mut slot.dirty, true) {
                slots.dirty += 1;
            }
        }
    }
}

impl Slots {
    fn insert(&mut self, offset: u64, bytes: AlignedBuf) {
        let slot = Slot { offset, bytes, dirty: false, writing: false, used: Cell::new(true) };
        let at = match (self.all.len() >= self.capacity).then(|| self.victim()).flatten() {
            Some(at) => {
                self.at.remove(&self.all[at].offset);
                self.all[at] = slot;
                at
            }
            None => {
                self.all.push(slot);
                self.all.len() - 1
            }
        };
        self.at.insert(offset, at);
    }

    /// Finds a clean slot that was not used recently (clock algorithm: the hand skips slots used
    /// since its last pass).
    fn victim(&mut self) -> Option<usize> {
        for _ in 0..self.all.len() * 2 {
            let at = self.hand % self.all.len();
            self.hand = at + 1;
            let slot = &self.all[at];
            if !slot.dirty && !slot.writing && !slot.used.replace(false) {
                return Some(at);
            }
        }
        None
    }
}
