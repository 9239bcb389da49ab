//! System calls that wait until the test lets them go on, by a seccomp filter that asks this process.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

use crate::filter;

/// Threads that call what is held stand still in it. Dropped, it lets them go on, and those that come later.
pub struct Held {
    listener: Option<OwnedFd>,
}

impl Held {
    /// From now on threads that are started wait before this call does anything. The filter stays as long as they live: for a
    /// process of its own.
    ///
    /// # Errors
    ///
    /// The kernel's: it has no such filters (they came with Linux 5.5), or they are forbidden.
    pub fn from_now_on(call: libc::c_long) -> io::Result<Held> {
        let mut filter = filter(&[(call, libc::SECCOMP_RET_USER_NOTIF)]);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program and its filter outlive the calls, which copy them; the descriptor is new, and nobody else's.
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
        // As long as the process lives: who else calls it is not known.
        self.listener.take().map(|listener| thread::spawn(move || while let_one_go_on(&listener) {}));
    }
}

/// Waits for a thread that calls what is held. Returns whether there may be more.
fn let_one_go_on(listener: &OwnedFd) -> bool {
    // SAFETY: both structures are plain data for which zero is valid, as the first call wants it; both outlive the calls.
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
