//! An aligned buffer that can be given to each runtime and comes back from it.

use std::mem::MaybeUninit;
use std::slice;

pub const BLOCK: usize = 4096;

#[repr(align(4096))]
struct Page([u8; BLOCK]);

/// One block, aligned for direct I/O. All of it is initialized.
pub struct Block(Box<Page>);

impl Block {
    /// Returns a block whose memory is mapped.
    pub fn new() -> Block {
        Block(Box::new(Page([0xc5; BLOCK])))
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.0.0
    }
}

// SAFETY: the address of a box does not change when the box moves.
unsafe impl monoio::buf::IoBufMut for Block {
    fn write_ptr(&mut self) -> *mut u8 {
        self.0.0.as_mut_ptr()
    }

    fn bytes_total(&mut self) -> usize {
        BLOCK
    }

    unsafe fn set_init(&mut self, _pos: usize) {}
}

// SAFETY: as above.
unsafe impl tokio_uring::buf::IoBuf for Block {
    fn stable_ptr(&self) -> *const u8 {
        self.0.0.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        BLOCK
    }

    fn bytes_total(&self) -> usize {
        BLOCK
    }
}

// SAFETY: as above.
unsafe impl tokio_uring::buf::IoBufMut for Block {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.0.as_mut_ptr()
    }

    unsafe fn set_init(&mut self, _pos: usize) {}
}

impl compio::buf::IoBuf for Block {
    fn as_init(&self) -> &[u8] {
        &self.0.0
    }
}

impl compio::buf::SetLen for Block {
    unsafe fn set_len(&mut self, _len: usize) {}
}

impl compio::buf::IoBufMut for Block {
    fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: initialized bytes are valid as bytes that may not be; compio writes only bytes.
        unsafe { slice::from_raw_parts_mut(self.0.0.as_mut_ptr().cast(), BLOCK) }
    }
}
