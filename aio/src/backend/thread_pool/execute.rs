//! The eventfd that ends a sleep, and the workers' system calls.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use coralio_runtime::explained;

use crate::backend::{Opcode, Operation};

/// An eventfd that a worker writes to when the home thread sleeps.
pub(super) struct EventFd(OwnedFd);

impl EventFd {
    pub(super) fn new() -> io::Result<EventFd> {
        // SAFETY: takes no pointers; on success the descriptor is new and has no other owner.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            let message = format!(
                "no descriptor left to wake the loop: {error}; close some, or raise the limit on open files (ulimit -n)"
            );
            return Err(explained(error.kind(), message, error));
        }
        // SAFETY: as above.
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Ends the current sleep, or the next one.
    pub(super) fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes, as an eventfd requires. Fails only after 2^64 signals.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Sleeps until signalled, `other` is readable, or `timeout` expires. Resets the signal.
    /// Returns whether it was the only reason.
    pub(super) fn sleep(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<bool> {
        let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // The kernel ignores negative descriptors.
        let mut watched = [watch(self.0.as_raw_fd()), watch(other.map_or(-1, |other| other.as_raw_fd()))];
        let time = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: two structures, and a timeout that is null or outlives the call.
        let count = unsafe { libc::ppoll(watched.as_mut_ptr(), 2, time, ptr::null()) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
        }
        let signalled = watched[0].revents != 0;
        if signalled {
            let mut count = [0u8; 8];
            // SAFETY: the buffer has room for eight bytes.
            unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
        }
        Ok(signalled && watched[1].revents == 0)
    }
}

/// Performs the operation, blocking. Returns bytes, or a negative `errno`.
///
/// # Safety
///
/// The memory that `operation` names is valid, and for reads unaliased.
pub(super) unsafe fn execute_blocking(operation: &Operation) -> i64 {
    let Operation { opcode, fd, addr, len, offset } = *operation;
    let (len, offset) = (len as usize, offset as i64);
    let memory = addr as *mut libc::c_void;
    let vectors = addr as *const libc::iovec;
    // The kernel rejects counts that large anyway, with EINVAL.
    let count = i32::try_from(len).unwrap_or(i32::MAX);
    // SAFETY: promised by the caller.
    uninterrupted(|| unsafe {
        match opcode {
            Opcode::Read => libc::pread(fd, memory, len, offset),
            Opcode::Write => libc::pwrite(fd, memory, len, offset),
            Opcode::ReadVectored => libc::preadv(fd, vectors, count, offset),
            Opcode::WriteVectored => libc::pwritev(fd, vectors, count, offset),
            Opcode::SyncData => libc::fdatasync(fd) as isize,
            Opcode::SyncAll => libc::fsync(fd) as isize,
        }
    })
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
