//! The peer: two threads that wake each other through the kernel, with nothing around it.
//!
//! Our loop sleeps in `epoll_wait` on an edge-triggered eventfd, so the counter is never read. So
//! does [`ping_pong`]: one write and one wait per wake. [`ping_pong_by_reads`] uses no epoll: one
//! write, and one blocking read.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use crate::measure::{PROCESS, asleep, time, writes};

/// One of two ends that signal each other.
trait End: Send + 'static {
    /// Signals the other end.
    fn tell(&self);
    /// Sleeps until signalled.
    fn sleep(&self);
}

/// An eventfd for each direction: our own, and the other end's.
struct ByRead(Arc<OwnedFd>, Arc<OwnedFd>);

/// The same, with an epoll set that watches our own.
struct ByEpoll(ByRead, OwnedFd);

fn checked(result: libc::c_int) -> libc::c_int {
    assert!(result >= 0, "the kernel refused: {}", io::Error::last_os_error());
    result
}

/// Takes ownership of the descriptor that a libc call returned.
fn owned(result: libc::c_int) -> OwnedFd {
    // SAFETY: callers pass a descriptor that the kernel has just returned and that has no other
    // owner.
    unsafe { OwnedFd::from_raw_fd(checked(result)) }
}

impl ByRead {
    fn pair() -> (ByRead, ByRead) {
        // SAFETY: takes no pointers.
        let [a, b] = [(); 2].map(|()| Arc::new(owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })));
        (ByRead(Arc::clone(&a), Arc::clone(&b)), ByRead(b, a))
    }
}

impl End for ByRead {
    fn tell(&self) {
        let one = 1u64;
        // SAFETY: eight bytes, alive during the call, and only read.
        let written = unsafe { libc::write(self.1.as_raw_fd(), (&raw const one).cast(), 8) };
        assert_eq!(written, 8);
    }

    fn sleep(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes, alive during the call, and ours to write.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
        assert_eq!((read, count), (8, 1));
    }
}

impl ByEpoll {
    fn pair() -> (ByEpoll, ByEpoll) {
        let watched = |end: ByRead| {
            let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
            // SAFETY: takes no pointers.
            let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) });
            // SAFETY: both descriptors are open, and the event is alive during the call.
            checked(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, end.0.as_raw_fd(), &mut event) });
            ByEpoll(end, epoll)
        };
        let (a, b) = ByRead::pair();
        (watched(a), watched(b))
    }
}

impl End for ByEpoll {
    fn tell(&self) {
        self.0.tell();
    }

    fn sleep(&self) {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: there is room for the one event requested.
        assert_eq!(unsafe { libc::epoll_wait(self.1.as_raw_fd(), &mut event, 1, -1) }, 1);
    }
}

/// Makes `times` wakes, half of them each way.
fn between<E: End>((here, there): (E, E), times: u64, measure: impl FnOnce(&mut dyn FnMut()) -> f64) -> f64 {
    let other = thread::spawn(move || {
        for _ in 0..times / 2 + 1 {
            there.sleep();
            there.tell();
        }
    });
    let turn = || {
        here.tell();
        here.sleep();
    };
    turn();
    let figure = measure(&mut || (0..times / 2).for_each(|_| turn()));
    other.join().expect("no case panics");
    figure
}

/// Wakes a sleeping thread, through epoll.
pub(crate) fn ping_pong(times: u64) -> f64 {
    between(ByEpoll::pair(), times, |turns| time(times, turns))
}

/// The same, counted in write system calls.
pub(crate) fn ping_pong_writes(times: u64) -> f64 {
    between(ByEpoll::pair(), times, |turns| writes(times, turns))
}

/// Wakes a sleeping thread, through a blocking read.
pub(crate) fn ping_pong_by_reads(times: u64) -> f64 {
    between(ByRead::pair(), times, |turns| time(times, turns))
}

/// Measures a thread asleep in `epoll_wait`: what remains is the measurement's own cost.
pub(crate) fn idle(millis: u64) -> f64 {
    let (here, there) = ByEpoll::pair();
    let sleeper = thread::spawn(move || there.sleep());
    let took = asleep(millis, PROCESS);
    here.tell();
    sleeper.join().expect("no case panics");
    took
}
