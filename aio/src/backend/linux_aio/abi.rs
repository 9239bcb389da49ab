//! The kernel's native AIO interface: structures, constants, and the five system calls. No policy
//! here.
//!
//! glibc has no wrappers for these calls. The structures are those of `linux/aio_abi.h`. The ring's
//! header is in no public header, but libaio and others have read it since Linux 2.6, and it has a
//! magic number and feature words for this purpose.

#![allow(unsafe_code)]

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64};
use std::time::Duration;

use crate::backend::sys::timespec;

#[cfg(not(all(
    target_os = "linux",
    target_endian = "little",
    target_pointer_width = "64",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
compile_error!(
    "native AIO supports only 64-bit little-endian Linux on x86-64 and aarch64: check the layouts in \
     backend/linux_aio/abi.rs before adding a machine"
);

pub(super) const IOCB_CMD_PREAD: u16 = 0;
pub(super) const IOCB_CMD_PWRITE: u16 = 1;
pub(super) const IOCB_CMD_FSYNC: u16 = 2;
pub(super) const IOCB_CMD_FDSYNC: u16 = 3;
pub(super) const IOCB_CMD_POLL: u16 = 5;
pub(super) const IOCB_CMD_PREADV: u16 = 7;
pub(super) const IOCB_CMD_PWRITEV: u16 = 8;

pub(super) const RING_MAGIC: u32 = 0xa10a_10a1;

#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Iocb {
    /// Returned in the event.
    pub(super) data: u64,
    /// Written by the kernel at submit, and checked at cancel.
    pub(super) key: u32,
    pub(super) rw_flags: i32,
    pub(super) opcode: u16,
    pub(super) reqprio: i16,
    pub(super) fildes: u32,
    pub(super) buf: u64,
    pub(super) nbytes: u64,
    pub(super) offset: i64,
    pub(super) reserved2: u64,
    pub(super) flags: u32,
    pub(super) resfd: u32,
}

/// A completion. The fields are atomic because events on the ring are written by the kernel.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Event {
    /// The request's `data`.
    pub(super) data: AtomicU64,
    /// The address that the request was submitted from.
    obj: AtomicU64,
    /// Bytes, or a negative `errno`.
    pub(super) res: AtomicI64,
    res2: AtomicI64,
}

/// The header of the memory that `io_setup` maps; `nr` events follow it. Its address identifies the
/// context.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Ring {
    id: u32,
    /// Capacity of the ring in events, plus one.
    pub(super) nr: u32,
    /// The next event to take: written by the reader.
    pub(super) head: AtomicU32,
    /// The next event to be posted: written by the kernel.
    pub(super) tail: AtomicU32,
    pub(super) magic: u32,
    compat_features: u32,
    pub(super) incompat_features: u32,
    /// Size of this structure.
    pub(super) header_length: u32,
}

const _: () = assert!(size_of::<Iocb>() == 64 && size_of::<Event>() == 32 && size_of::<Ring>() == 32);

fn checked(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Creates a context for `nr` requests in flight.
pub(super) fn io_setup(nr: u32) -> io::Result<NonNull<Ring>> {
    let mut ring: *mut Ring = ptr::null_mut();
    // SAFETY: the kernel writes one word; `ring` is one word, zeroed as required.
    checked(unsafe { libc::syscall(libc::SYS_io_setup, libc::c_long::from(nr), &raw mut ring) })?;
    NonNull::new(ring).ok_or_else(|| io::Error::other("io_setup returned no context"))
}

/// Destroys a context, once everything in flight has completed. Takes up to 100 ms.
///
/// # Safety
///
/// The ring is not accessed afterwards: it is unmapped.
pub(super) unsafe fn io_destroy(context: NonNull<Ring>) -> io::Result<()> {
    // SAFETY: promised by the caller.
    checked(unsafe { libc::syscall(libc::SYS_io_destroy, context.as_ptr()) }).map(drop)
}

/// Submits the requests that `iocbs` point to, in order, and returns the number accepted. The
/// kernel copies them: the caller may reuse their memory.
///
/// # Safety
///
/// Every pointer refers to a request that the kernel may read and write during the call. The memory
/// that the request names stays valid until it has completed.
pub(super) unsafe fn io_submit(context: NonNull<Ring>, iocbs: &[*mut Iocb]) -> io::Result<usize> {
    loop {
        // SAFETY: promised by the caller; pointer and length describe the array.
        let result =
            checked(unsafe { libc::syscall(libc::SYS_io_submit, context.as_ptr(), iocbs.len(), iocbs.as_ptr()) });
        match result {
            // None was accepted, otherwise the count would have been returned.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Takes from `min` to `nr` events, or fewer when `timeout` expires. A signal is an error
/// (`Interrupted`), and no event has been taken then.
///
/// # Safety
///
/// `events` has room for `nr` events, or is memory that the kernel cannot write either.
pub(super) unsafe fn io_getevents(
    context: NonNull<Ring>,
    min: u32,
    nr: libc::c_long,
    events: *mut Event,
    timeout: Option<Duration>,
) -> io::Result<usize> {
    let timeout = timeout.map(timespec);
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    let min = libc::c_long::from(min);
    // SAFETY: for `events`, promised by the caller; `timeout` is null or points to a local that
    // outlives the call.
    checked(unsafe { libc::syscall(libc::SYS_io_getevents, context.as_ptr(), min, nr, events, timeout) })
}

/// Asks for a request to end early. Only `IOCB_CMD_POLL` supports this; its event is then posted as
/// usual. An error means that the request cannot be cancelled, or no longer.
///
/// # Safety
///
/// `iocb` is the address that the request was submitted from, and still readable.
pub(super) unsafe fn io_cancel(context: NonNull<Ring>, iocb: *mut Iocb) -> io::Result<()> {
    // A historic argument: kernels that support `IOCB_CMD_POLL` do not write to it.
    let mut event = Event::default();
    // SAFETY: for `iocb`, promised by the caller; `event` has room for one event.
    match checked(unsafe { libc::syscall(libc::SYS_io_cancel, context.as_ptr(), iocb, &raw mut event) }) {
        // The kernel reports success as EINPROGRESS.
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}
