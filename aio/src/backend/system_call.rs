//! A request as a plain system call of the calling thread.

#![allow(unsafe_code)]

use std::io;

use super::{Opcode, Operation};

/// Performs the operation, and blocks meanwhile. Returns bytes, or a negative `errno`. With `nowait` a
/// read fails instead of waiting for a device: `EAGAIN`, or `EOPNOTSUPP` where the kernel cannot tell
/// or the call is forbidden. Other operations ignore `nowait`.
///
/// # Safety
///
/// The memory that `operation` names is valid, and for reads unaliased.
pub(crate) unsafe fn execute(operation: &Operation, nowait: bool) -> i64 {
    let Operation { opcode, fd, addr, len, offset } = *operation;
    // preadv2 takes the offset -1 for the descriptor's own position: use another one beyond any
    // file's end.
    let (len, offset) = (len as usize, offset.min(u64::MAX - 1) as i64);
    let memory = addr as *mut libc::c_void;
    let vectors = addr as *const libc::iovec;
    // The kernel rejects counts that large anyway, with EINVAL.
    let count = i32::try_from(len).unwrap_or(i32::MAX);
    // SAFETY: promised by the caller.
    let result = uninterrupted(|| unsafe {
        match opcode {
            Opcode::Read if nowait => {
                let vector = libc::iovec { iov_base: memory, iov_len: len };
                libc::preadv2(fd, &vector, 1, offset, libc::RWF_NOWAIT)
            }
            Opcode::ReadVectored if nowait => libc::preadv2(fd, vectors, count, offset, libc::RWF_NOWAIT),
            Opcode::Read => libc::pread(fd, memory, len, offset),
            Opcode::Write => libc::pwrite(fd, memory, len, offset),
            Opcode::ReadVectored => libc::preadv(fd, vectors, count, offset),
            Opcode::WriteVectored => libc::pwritev(fd, vectors, count, offset),
            Opcode::SyncData => libc::fdatasync(fd) as isize,
            Opcode::SyncAll => libc::fsync(fd) as isize,
        }
    });
    match (-result) as i32 {
        // A seccomp filter refuses preadv2. If the error is the file's own, the next attempt
        // without `nowait` gets it.
        libc::EPERM | libc::ENOSYS if nowait => -i64::from(libc::EOPNOTSUPP),
        _ => result,
    }
}

/// Makes a system call, retrying it on EINTR.
pub(super) fn uninterrupted(mut call: impl FnMut() -> isize) -> i64 {
    loop {
        let result = call();
        if result >= 0 {
            return result as i64;
        }
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        if errno != libc::EINTR {
            return -i64::from(errno);
        }
    }
}
