//! Linux native AIO as the kernel defines it: `linux/aio_abi.h`, and the ring's header of `fs/aio.c`.
//!
//! Bare structures and system calls; what they are used for is next door.

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

#[cfg(not(all(target_os = "linux", target_endian = "little", target_pointer_width = "64")))]
compile_error!("coralio-aio knows native AIO on 64-bit little-endian Linux only");

/// `aio_context_t`: the address at which the kernel has mapped the ring.
pub(super) type ContextId = libc::c_ulong;

pub(super) const CMD_PREAD: u16 = 0;
pub(super) const CMD_PWRITE: u16 = 1;
pub(super) const CMD_FSYNC: u16 = 2;
pub(super) const CMD_FDSYNC: u16 = 3;
pub(super) const CMD_POLL: u16 = 5;
pub(super) const CMD_PREADV: u16 = 7;
pub(super) const CMD_PWRITEV: u16 = 8;

/// `struct iocb`, little-endian.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RawIocb {
    pub(super) data: u64,
    pub(super) key: u32,
    pub(super) rw_flags: i32,
    pub(super) opcode: u16,
    pub(super) priority: i16,
    pub(super) fd: u32,
    pub(super) buf: u64,
    pub(super) nbytes: u64,
    pub(super) offset: i64,
    pub(super) reserved: u64,
    pub(super) flags: u32,
    pub(super) resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Event {
    pub(super) data: u64,
    pub(super) obj: u64,
    pub(super) res: i64,
    pub(super) res2: i64,
}

/// `struct aio_ring`, to which programs have had access since the beginning; the events follow it.
#[repr(C)]
pub(super) struct RingHeader {
    pub(super) id: u32,
    /// Number of events that fit.
    pub(super) nr: u32,
    /// Next event to take; written by whoever takes.
    pub(super) head: AtomicU32,
    /// Next event to come; written by the kernel.
    pub(super) tail: AtomicU32,
    pub(super) magic: u32,
    pub(super) compat_features: u32,
    pub(super) incompat_features: u32,
    pub(super) header_length: u32,
}

pub(super) const RING_MAGIC: u32 = 0xa10a_10a1;

const _: () = assert!(size_of::<RawIocb>() == 64 && size_of::<Event>() == 32 && size_of::<RingHeader>() == 32);

fn checked(result: libc::c_long) -> io::Result<usize> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as usize) }
}

/// A context that takes `requests` at once.
pub(super) fn setup(requests: u32) -> io::Result<ContextId> {
    let mut id: ContextId = 0;
    // SAFETY: the kernel writes the context's id to `id`.
    unsafe { checked(libc::syscall(libc::SYS_io_setup, libc::c_long::from(requests), &raw mut id)) }?;
    Ok(id)
}

/// Waits for all that is in flight, and ends the context.
///
/// # Safety
///
/// `id` is a context's, and its ring is not looked at any more.
pub(super) unsafe fn destroy(id: ContextId) {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_io_destroy, id) };
    debug_assert_eq!(result, 0);
}

/// Submits from the front, and returns how many were taken.
///
/// # Safety
///
/// The pointers point at iocbs; the memory that these name stays valid until they have completed.
pub(super) unsafe fn submit(id: ContextId, iocbs: &[*mut RawIocb]) -> io::Result<usize> {
    // SAFETY: the caller's promise.
    unsafe { checked(libc::syscall(libc::SYS_io_submit, id, iocbs.len(), iocbs.as_ptr())) }
}

/// Asks the kernel to cancel a request: it does so for polls alone.
pub(super) fn cancel(id: ContextId, iocb: &RawIocb) -> io::Result<()> {
    let mut event = Event::default();
    // SAFETY: both are alive during the call. The kernel finds the request by the iocb's address.
    unsafe { checked(libc::syscall(libc::SYS_io_cancel, id, &raw const *iocb, &raw mut event)) }.map(drop)
}

/// Waits for `min` events, takes up to `most`, and writes them to `events`.
///
/// # Safety
///
/// `events` has room for `most`, or is memory that cannot be written.
pub(super) unsafe fn get_events(
    id: ContextId,
    min: u32,
    most: u32,
    events: *mut Event,
    timeout: Option<Duration>,
) -> io::Result<usize> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    });
    let pointer = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the caller's promise; the timeout is alive during the call.
    unsafe {
        checked(libc::syscall(
            libc::SYS_io_getevents,
            id,
            libc::c_long::from(min),
            libc::c_long::from(most),
            events,
            pointer,
        ))
    }
}
