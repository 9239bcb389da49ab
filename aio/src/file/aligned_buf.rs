//! Aligned buffers for direct I/O: fixed length, initially zeroed.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::slice;

use crate::backend::arena;

/// A byte buffer with a given alignment. It does not grow.
///
/// ```
/// use coralio::AlignedBuf;
///
/// let mut buf = AlignedBuf::new(8192, 4096);
/// assert_eq!(buf.as_ptr() as usize % 4096, 0);
/// buf[..5].copy_from_slice(b"hello");
/// assert_eq!(&buf[..6], b"hello\0");
/// ```
///
/// Buffers of up to 1 MiB with an alignment of 512 to 4096 come from a range of 64 MiB, as long as
/// it has room; each takes whole pages of 4 KiB, and the range does not shrink. Requests on them cost
/// less CPU time on io_uring and a disk: a ring registers each mebibyte that is used often with the
/// kernel, where it counts towards the user's limit on locked memory, if that permits.
pub struct AlignedBuf {
    start: NonNull<u8>,
    layout: Layout,
    memory: Memory,
}

/// The allocation of a buffer.
enum Memory {
    /// None: the buffer is empty.
    Empty,
    Arena,
    /// From the allocator. For large buffers the allocation exceeds the used part.
    Heap {
        base: NonNull<u8>,
        allocated: Layout,
    },
}

/// From this size on, the system hands out zero pages, which cost nothing until they are written.
/// This works only for allocations without alignment: aligned ones are zeroed by writing.
const LARGE: usize = 128 << 10;

// SAFETY: it owns its memory, as a Vec<u8> does.
unsafe impl Send for AlignedBuf {}
// SAFETY: as above.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Creates a buffer of `len` zero bytes at a multiple of `align`. Buffers beyond 1 MiB take memory
    /// page by page, as they are written.
    ///
    /// # Panics
    ///
    /// If `align` is not a power of two, or `len` exceeds `isize::MAX`.
    pub fn new(len: usize, align: usize) -> AlignedBuf {
        let layout = Layout::from_size_align(len, align).unwrap_or_else(|_| {
            panic!("invalid buffer of {len} bytes aligned to {align}: align must be a power of two")
        });
        if len == 0 {
            let start = NonNull::new(ptr::without_provenance_mut(layout.align())).expect("an alignment is not 0");
            return AlignedBuf { start, layout, memory: Memory::Empty };
        }
        if (512..=arena::PAGE).contains(&align) {
            if let Some(start) = arena::allocate(len) {
                return AlignedBuf { start, layout, memory: Memory::Arena };
            }
        }
        let allocated = match Layout::from_size_align(len.saturating_add(align), 1) {
            Ok(loose) if len >= LARGE => loose,
            _ => layout,
        };
        // SAFETY: the layout's size is not 0.
        let base = unsafe { alloc_zeroed(allocated) };
        let base = NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout));
        // SAFETY: the offset is less than `align`, which was allocated in addition to `len`; or 0,
        // because the layout has the alignment.
        let start = unsafe { base.add(base.align_offset(align)) };
        AlignedBuf { start, layout, memory: Memory::Heap { base, allocated } }
    }

    /// Returns the alignment of the buffer in bytes.
    pub fn align(&self) -> usize {
        self.layout.align()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        match self.memory {
            Memory::Empty => {}
            // SAFETY: allocated by `new` with this length.
            Memory::Arena => unsafe { arena::free(self.start, self.layout.size()) },
            // SAFETY: allocated by `new` with this layout.
            Memory::Heap { base, allocated } => unsafe { dealloc(base.as_ptr(), allocated) },
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the allocation has at least this many bytes, initialised to zero; an empty buffer
        // reads none.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes, aligned to {})", self.len(), self.align())
    }
}
