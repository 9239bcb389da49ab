//! Slices of tables in memory: bounded, read once, written when a flush says so.
//!
//! ```text
//!   clean ---- modify ----> dirty ---- take_dirty ----> writing ---- written ----> clean
//!     |                       ^                            |
//!   evicted                   '---- modified, or failed ---'
//! ```
//!
//! Only clean slices are evicted, so what is not here is on disk as it was last seen: a slice that is read again is never an
//! old one. When many are dirty, whoever made them so flushes; until then the bound is exceeded.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use coralio_aio::{AlignedBuf, CoMutex, File};
use rustc_hash::FxHashMap;

use super::top::{PAGE, read_padded};
use crate::error::damaged;

/// Reads that may be under way at once, each of different slices.
const LANES: usize = 16;
/// Adjacent slices are written together, up to so many bytes.
const MOST_AT_ONCE: usize = 1 << 20;

struct Slot {
    offset: u64,
    bytes: AlignedBuf,
    dirty: bool,
    writing: bool,
    /// Used since the hand came by last.
    used: Cell<bool>,
}

struct Slots {
    all: Vec<Slot>,
    /// By offset in the file.
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

/// Copies of dirty slices: where they go, and how many slices each is.
pub(crate) type Taken = Vec<(u64, AlignedBuf)>;

impl Cache {
    pub(crate) fn new(file: Rc<File>, slice: u64, bytes: u64) -> Cache {
        let capacity = (bytes / slice).max(16) as usize;
        let slots = Slots { all: Vec::new(), at: FxHashMap::default(), hand: 0, capacity, dirty: 0 };
        let lanes = [const { CoMutex::new(()) }; LANES];
        Cache { file, slice: slice as usize, slots: RefCell::new(slots), lanes }
    }

    /// Shows the slice at `offset` to `f`, if it is here.
    #[inline]
    pub(crate) fn peek<T>(&self, offset: u64, f: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let slots = self.slots.borrow();
        let slot = &slots.all[*slots.at.get(&offset)?];
        slot.used.set(true);
        Some(f(&slot.bytes))
    }

    /// As [`peek`](Cache::peek), read from the file if need be.
    pub(crate) fn with<T>(&self, offset: u64, f: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        self.load(offset)?;
        Ok(self.peek(offset, f).expect("just loaded, and nobody ran since"))
    }

    /// Lets `f` change the slice.
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

    /// Has the slice read, if it is not here. Nobody runs between its coming and the return.
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

    /// Whether so much is dirty that one should flush.
    pub(crate) fn is_full(&self) -> bool {
        let slots = self.slots.borrow();
        slots.dirty > slots.capacity / 2
    }

    /// Copies what is dirty, to be written. One at a time may do so.
    pub(crate) fn take_dirty(&self) -> Taken {
        let mut slots = self.slots.borrow_mut();
        slots.dirty = 0;
        let mut dirty: Vec<_> = slots.all.iter_mut().filter(|slot| slot.dirty).collect();
        dirty.sort_unstable_by_key(|slot| slot.offset);
        let most = MOST_AT_ONCE / self.slice;
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

    /// What was taken is written, or else is to be written again.
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

    /// One that is clean and was not used for long: the hand goes round, and passes by those that were used since.
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
