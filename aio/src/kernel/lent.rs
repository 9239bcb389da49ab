//! The memory that a request lends to a kernel which moves the bytes itself: one buffer, or several
//! in turn.

#![allow(unsafe_code)]

use std::slice;

use super::{Opcode, Operation};

impl Opcode {
    /// Whether it takes bytes out of memory.
    #[inline]
    pub(crate) fn is_write(self) -> bool {
        matches!(self, Opcode::Write | Opcode::WriteVectored)
    }

    /// Whether it names no memory.
    pub(super) fn is_sync(self) -> bool {
        matches!(self, Opcode::SyncData | Opcode::SyncAll)
    }
}

/// The buffers of one request, as addresses and lengths.
pub(super) struct Lent(Vec<(usize, usize)>);

impl Lent {
    /// # Safety
    ///
    /// *Lent to the kernel*: until its completion is on the ring, the memory that the operation
    /// names is valid and nobody else's, and no method is called after that.
    pub(super) unsafe fn of(operation: &Operation) -> Lent {
        let Operation { opcode, addr, len, .. } = *operation;
        Lent(match opcode {
            Opcode::Read | Opcode::Write => vec![(addr as usize, len as usize)],
            Opcode::ReadVectored | Opcode::WriteVectored => {
                // SAFETY: the caller's promise; the array is part of that memory.
                let vectors = unsafe { slice::from_raw_parts(addr as *const libc::iovec, len as usize) };
                vectors.iter().map(|vector| (vector.iov_base.expose_provenance(), vector.iov_len)).collect()
            }
            Opcode::SyncData | Opcode::SyncAll => Vec::new(),
        })
    }

    /// Bytes in all.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|&(_, len)| len).sum()
    }

    /// Whether an address or a length has a bit of `mask`.
    pub(super) fn touches(&self, mask: usize) -> bool {
        self.0.iter().any(|&(addr, len)| (addr | len) & mask != 0)
    }

    /// What is in it.
    pub(super) fn gather(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        for &(addr, len) in &self.0 {
            // SAFETY: *lent to the kernel*, by the promise to `of`.
            bytes.extend_from_slice(unsafe { slice::from_raw_parts(addr as *const u8, len) });
        }
        bytes
    }

    /// Puts `bytes` in, from the front; what they do not reach stays.
    pub(super) fn scatter(&self, mut bytes: &[u8]) {
        for &(addr, len) in &self.0 {
            let (here, rest) = bytes.split_at(len.min(bytes.len()));
            // SAFETY: *lent to the kernel*, by the promise to `of`; what the caller borrows does
            // not overlap it.
            unsafe { here.as_ptr().copy_to_nonoverlapping(addr as *mut u8, here.len()) };
            bytes = rest;
        }
    }
}
