//! The descriptors that the loop sleeps on, as safe values: an eventfd to wake it, a timer, an
//! epoll set to sleep in.
//!
//! The module confines the unsafe code; its types close themselves.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::sockopt::Timeout;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

use crate::sys::in_child;

/// Turns the -1 of a libc call into its `errno`.
fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sets `O_NONBLOCK`. The flag belongs to the open file description, which duplicates share.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: neither call takes a pointer.
    unsafe {
        let flags = checked(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        checked(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

/// Returns the timeout that a socket option sets for blocking calls; `None` is no limit. `rustix` panics
/// if the kernel returns another length than that of the structure, as QEMU's user-mode emulation does,
/// in which container images for other architectures are built.
pub(crate) fn socket_timeout(socket: RawFd, option: Timeout) -> io::Result<Option<Duration>> {
    let name = match option {
        Timeout::Recv => libc::SO_RCVTIMEO,
        Timeout::Send => libc::SO_SNDTIMEO,
    };
    let mut limit = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut len = size_of_val(&limit) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `limit`, for which any bytes are valid.
    checked(unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, name, (&raw mut limit).cast(), &mut len) })?;
    let duration = Duration::from_secs(limit.tv_sec as u64) + Duration::from_micros(limit.tv_usec as u64);
    Ok(Some(duration).filter(|duration| !duration.is_zero()))
}

/// An eventfd, with which another thread wakes a sleeping loop.
pub(crate) struct EventFd(OwnedFd);

impl EventFd {
    pub(crate) fn new() -> io::Result<EventFd> {
        Ok(EventFd(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Adds one. Edge-triggered, so the counter need not be read.
    pub(crate) fn signal(&self) {
        let written = rustix::io::write(&self.0, &1u64.to_ne_bytes());
        // The counter is full: there were 2^64 edges, and the sleeper cannot have missed them all.
        debug_assert!(matches!(written, Ok(8) | Err(Errno::AGAIN)));
    }

    /// Resets the counter to 0. Returns whether it was nonzero.
    pub(crate) fn clear(&self) -> bool {
        let read = rustix::io::read(&self.0, &mut [0; 8]);
        debug_assert!(matches!(read, Ok(8) | Err(Errno::AGAIN)), "{read:?}");
        read.is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A timerfd, which becomes readable when its deadline passes.
pub(crate) struct TimerFd(OwnedFd);

impl TimerFd {
    pub(crate) fn new() -> io::Result<TimerFd> {
        Ok(TimerFd(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?))
    }

    /// Arms the timer once, `after` from now. Edge-triggered, so the counter is never read.
    pub(crate) fn arm(&self, after: Duration) -> io::Result<()> {
        let after = after.max(Duration::from_nanos(1));
        let it_value = Timespec::try_from(after).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let time = Itimerspec { it_interval: Timespec::default(), it_value };
        Ok(timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &time).map(drop)?)
    }
}

impl AsFd for TimerFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// A readiness event: the registration's token, and the raw epoll bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    pub(crate) token: u64,
    pub(crate) events: u32,
}

/// An epoll set.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    /// The maximum number of events per call; further ones stay for the next call.
    pub(crate) const BATCH: usize = 128;

    pub(crate) fn new() -> io::Result<Epoll> {
        Ok(Epoll(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    fn control(&self, op: libc::c_int, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        if in_child() {
            return Err(io::Error::other(
                "cannot change the epoll set after fork: it belongs to the parent; call exec in the child, or fork \
                 before `run`",
            ));
        }
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: `event` is alive during the call. The kernel rejects a number that is not an open
        // descriptor.
        unsafe { checked(libc::epoll_ctl(self.0.as_raw_fd(), op, fd, &mut event)) }.map(drop)
    }

    pub(crate) fn add(&self, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    pub(crate) fn modify(&self, fd: RawFd, events: u32, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    pub(crate) fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, fd, 0, 0)
    }

    /// Makes the system call. The timeout has nanosecond resolution where the kernel supports it
    /// (Linux 5.11), else milliseconds.
    fn wait_for(
        &self,
        timeout: Option<Duration>,
        events: &mut [MaybeUninit<libc::epoll_event>; Self::BATCH],
    ) -> io::Result<libc::c_int> {
        static NO_NANOSECONDS: AtomicBool = AtomicBool::new(false);
        let fine = timeout.filter(|timeout| !timeout.is_zero() && !NO_NANOSECONDS.load(Ordering::Relaxed));
        let (fd, room) = (self.0.as_raw_fd(), Self::BATCH as libc::c_int);
        let events = events.as_mut_ptr().cast::<libc::epoll_event>();
        if let Some(timeout) = fine {
            let time = timespec(timeout);
            let no_mask = ptr::null::<libc::sigset_t>();
            // SAFETY: the kernel reads one timespec and writes at most BATCH events, the array's
            // length.
            let count = checked(unsafe {
                libc::syscall(libc::SYS_epoll_pwait2, fd, events, room, &raw const time, no_mask, 0usize)
            } as libc::c_int);
            match count {
                Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                    NO_NANOSECONDS.store(true, Ordering::Relaxed)
                }
                count => return count,
            }
        }
        let millis = match timeout {
            None => -1,
            // Rounded up: an early wake would make the caller spin until the deadline.
            Some(timeout) => timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as libc::c_int,
        };
        // SAFETY: as above.
        checked(unsafe { libc::epoll_wait(fd, events, room, millis) })
    }

    /// Sleeps until a descriptor is ready or `timeout` expires (`None`: never), and passes each
    /// event to `each`. A signal ends the sleep early, without events.
    pub(crate) fn wait(&self, timeout: Option<Duration>, mut each: impl FnMut(Ready)) -> io::Result<usize> {
        let mut events = [const { MaybeUninit::uninit() }; Self::BATCH];
        let count = match self.wait_for(timeout, &mut events) {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &events[..count] {
            // SAFETY: the kernel has written that many events.
            let event = unsafe { event.assume_init() };
            each(Ready { token: event.u64, events: event.events });
        }
        Ok(count)
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
