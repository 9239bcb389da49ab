//! Sleeping until a descriptor is readable.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

/// Converts a timeout. The kernel treats anything above 292 years as no timeout.
pub(super) fn timespec(timeout: Duration) -> libc::timespec {
    let tv_sec = libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX);
    libc::timespec { tv_sec, tv_nsec: timeout.subsec_nanos().into() }
}

/// Sleeps until a descriptor is readable or `timeout` expires; a signal ends the sleep early.
/// Returns which descriptors are readable.
pub(super) fn poll(fds: [Option<BorrowedFd<'_>>; 2], timeout: Option<Duration>) -> io::Result<[bool; 2]> {
    // The kernel ignores negative descriptors.
    let number = |fd: Option<BorrowedFd<'_>>| fd.map_or(-1, |fd| fd.as_raw_fd());
    let mut polled = fds.map(|fd| libc::pollfd { fd: number(fd), events: libc::POLLIN, revents: 0 });
    let timeout = timeout.map(timespec);
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: two structures, and a timeout that is null or outlives the call; no signal mask.
    if unsafe { libc::ppoll(polled.as_mut_ptr(), 2, timeout, ptr::null()) } < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok([false; 2]) } else { Err(error) };
    }
    Ok(polled.map(|polled| polled.revents != 0))
}
