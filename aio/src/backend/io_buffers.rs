//! Access to a request's memory for backends that move the bytes themselves: one or several
//! buffers.

#![allow(unsafe_code)]

use std::slice;

use super::{Opcode, Operation};

/// The buffers of one request, as addresses and lengths.
pub(super) struct IoBuffers(Vec<(usize, usize)>);

impl IoBuffers {
    /// # Safety
    ///
    /// *Lent to the kernel*: until its completion is on the ring, the memory that the operation
    /// names is valid and not otherwise accessed; no method is called after that.
    pub(super) unsafe fn of(operation: &Operation) -> IoBuffers {
        let Operation { opcode, addr, len, .. } = *operation;
        IoBuffers(match opcode {
            Opcode::Read | Opcode::Write => vec![(addr as usize, len as usize)],
            Opcode::ReadVectored | Opcode::WriteVectored => {
                // SAFETY: promised by the caller; the array is part of that memory.
                let vectors = unsafe { slice::from_raw_parts(addr as *const libc::iovec, len as usize) };
                vectors.iter().map(|vector| (vector.iov_base.expose_provenance(), vector.iov_len)).collect()
            }
            Opcode::SyncData | Opcode::SyncAll => Vec::new(),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|&(_, len)| len).sum()
    }

    /// Whether any address or length has a bit of `mask` set.
    pub(super) fn touches(&self, mask: usize) -> bool {
        self.0.iter().any(|&(addr, len)| (addr | len) & mask != 0)
    }

    pub(super) fn gather(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        for &(addr, len) in &self.0 {
            // SAFETY: *lent to the kernel*, promised to `of`.
            bytes.extend_from_slice(unsafe { slice::from_raw_parts(addr as *const u8, len) });
        }
        bytes
    }

    /// Stores `bytes`, from the front; the rest of the memory is unchanged.
    pub(super) fn scatter(&self, mut bytes: &[u8]) {
        for &(addr, len) in &self.0 {
            let (here, rest) = bytes.split_at(len.min(bytes.len()));
            // SAFETY: *lent to the kernel*, promised to `of`; the borrowed `bytes` do not overlap
            // it.
            unsafe { here.as_ptr().copy_to_nonoverlapping(addr as *mut u8, here.len()) };
            bytes = rest;
        }
    }
}
