//! Memory for payloads: aligned for direct I/O, reused and bounded.
//!
//! Each thread keeps its own free lists by size, in powers of two. This module bounds the free
//! memory; the [budget](crate::budget) bounds the memory in use.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};

use coralio::AlignedBuf;

/// Page alignment suits every device.
const PAGE: usize = 4096;
/// The largest class is as long as the largest request.
const CLASSES: usize = 14;
/// The maximum amount of free memory that a thread keeps, in bytes.
const MAX_KEPT: usize = 64 << 20;

thread_local! {
    static KEPT: RefCell<[Vec<AlignedBuf>; CLASSES]> = const { RefCell::new([const { Vec::new() }; CLASSES]) };
    static KEPT_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// A page-aligned buffer of `len` bytes, returned to its thread's free list when dropped. The
/// initial content is unspecified but comes from this process only.
pub struct Buffer {
    memory: Option<AlignedBuf>,
    len: usize,
}

fn class(len: usize) -> usize {
    len.div_ceil(PAGE).next_power_of_two().trailing_zeros() as usize
}

impl Buffer {
    /// Returns the size of the allocation for a buffer of `len` bytes.
    pub fn room(len: usize) -> usize {
        PAGE << class(len)
    }

    pub fn new(len: usize) -> Buffer {
        let class = class(len);
        let kept = KEPT.with_borrow_mut(|kept| kept[class].pop());
        let memory = match kept {
            Some(memory) => {
                KEPT_BYTES.set(KEPT_BYTES.get() - memory.len());
                memory
            }
            None => AlignedBuf::new(Buffer::room(len), PAGE),
        };
        Buffer { memory: Some(memory), len }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let total = KEPT_BYTES.get() + memory.len();
        if total <= MAX_KEPT {
            KEPT_BYTES.set(total);
            KEPT.with_borrow_mut(|kept| kept[class(memory.len())].push(memory));
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory.as_ref().expect("the buffer exists until it is dropped")[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory.as_mut().expect("the buffer exists until it is dropped")[..self.len]
    }
}
