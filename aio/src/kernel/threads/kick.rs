//! What ends a sleep: an eventfd beside the loop's own descriptor. And the system calls of the
//! workers.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use coralio_runtime::explained;

use crate::kernel::{Opcode, Operation};

/// An eventfd that a worker writes when the home thread sleeps.
pub(super) struct Kick(OwnedFd);

impl Kick {
    pub(super) fn new() -> io::Result<Kick> {
        // SAFETY: takes no pointers; on success the descriptor is new and ours alone.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            let message = format!(
                "no descriptor to wake the loop with: {error}; close some, or raise the limit on open files (ulimit -n)"
            );
            return Err(explained(error.kind(), message, error));
        }
        // SAFETY: as above.
        Ok(Kick(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Ends the sleep, or the next one.
    pub(super) fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes, as an eventfd wants. It fails only if it has been signalled 2^64
        // times.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Sleeps until it was signalled, `other` is readable, or `timeout` is over. Returns whether it
    /// was the signal alone; that one is over then.
    pub(super) fn sleep(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<bool> {
        let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // The kernel passes negative descriptors over.
        let mut watched = [watch(self.0.as_raw_fd()), watch(other.map_or(-1, |other| other.as_raw_fd()))];
        let time = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: two structures, and a time that is null or outlives the call.
        let count = unsafe { libc::ppoll(watched.as_mut_ptr(), 2, time, ptr::null()) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) };
        }
        let signalled = watched[0].revents != 0;
        if signalled {
            let mut count = [0u8; 8];
            // SAFETY: room for eight bytes.
            unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), 8) };
        }
        Ok(signalled && watched[1].revents == 0)
    }
}

/// Does what the request says, blocking. Bytes, or a negative `errno`.
///
/// # Safety
///
/// The memory that it names is valid, and for reads unaliased.
pub(super) unsafe fn perform(operation: &Operation) -> i64 {
    let Operation { opcode, fd, addr, len, offset } = *operation;
    let (len, offset) = (len as usize, offset as i64);
    let memory = addr as *mut libc::c_void;
    let vectors = addr as *const libc::iovec;
    // No more than one call takes, and more than that is EINVAL.
    let count = i32::try_from(len).unwrap_or(i32::MAX);
    // SAFETY: the caller's promise.
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

/// Makes a system call, again if a signal came in between.
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
