//! System calls that block until the test releases them, by means of a seccomp user-notification
//! filter.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

use crate::filter;

/// Blocks the threads that make the held system call. Dropping it releases them, and all later
/// callers.
pub struct Held {
    listener: Option<OwnedFd>,
}

impl Held {
    /// Makes this system call block in every thread started from now on. The filter lasts as long
    /// as those threads, so use a child process.
    ///
    /// # Errors
    ///
    /// The kernel lacks such filters (added in Linux 5.5), or forbids them.
    pub fn from_now_on(call: libc::c_long) -> io::Result<Held> {
        let mut filter = filter(&[(call, libc::SECCOMP_RET_USER_NOTIF)]);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program and its filter outlive the calls, which copy them; the descriptor is
        // new and owned here alone.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let [mode, flags] =
                [libc::SECCOMP_SET_MODE_FILTER.into(), libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as libc::c_long];
            let listener = libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program);
            if listener < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Held { listener: Some(OwnedFd::from_raw_fd(listener as i32)) })
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Runs until the process ends: later callers are not known in advance.
        self.listener.take().map(|listener| thread::spawn(move || while let_one_go_on(&listener) {}));
    }
}

/// Waits for a thread blocked in the held call and releases it. Returns whether there may be more.
fn let_one_go_on(listener: &OwnedFd) -> bool {
    // SAFETY: both structures are plain data for which zero is valid, and the first call requires
    // zeroes; both outlive the calls.
    unsafe {
        let mut held: libc::seccomp_notif = mem::zeroed();
        if libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut held) != 0 {
            return io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        }
        let mut answer: libc::seccomp_notif_resp = mem::zeroed();
        answer.id = held.id;
        answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) == 0
    }
}
