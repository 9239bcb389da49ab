//! Waiting for descriptors: suspends a coroutine until a descriptor is readable or writable.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::context::{FdHandler, Interest, LocalContext, Readiness};
use crate::coroutine::{Cancelled, WaitReason};
use crate::task::Coroutine;

/// Waits until `fd` can be read without blocking: there is data, end of file, or an error.
///
/// ```
/// use coralio::spawn;
/// use coralio::net::wait_readable;
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// coralio::run(|| {
///     let (mut near, mut far) = UnixStream::pair().unwrap();
///     let reader = spawn(move || {
///         let mut word = [0; 5];
///         wait_readable(&near)?;
///         near.read_exact(&mut word)?;
///         Ok::<_, std::io::Error>(word)
///     });
///     spawn(move || far.write_all(b"hello")).join().unwrap().unwrap();
///     assert_eq!(&reader.join().unwrap().unwrap(), b"hello");
/// });
/// ```
///
/// # Errors
///
/// [`Cancelled`], as an I/O error, if the coroutine was cancelled or a timeout
/// around this call has expired. `PermissionDenied`: epoll does not support the descriptor, for
/// example a regular file. Also fails if out of memory.
///
/// # Panics
///
/// Panics outside a coroutine.
///
/// # Control
///
/// Yields.
#[track_caller]
pub fn wait_readable(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    wait_until_ready(fd, Interest::Read, WaitReason::Readable(fd.as_raw_fd())).map(drop)
}

/// Waits until `fd` can be written without blocking: there is space, or an error.
///
/// ```
/// use coralio::spawn;
/// use coralio::context::AioContext;
/// use coralio::net::wait_writable;
/// use std::io::{ErrorKind, Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// AioContext::run(|ctx| {
///     let (mut near, mut far) = UnixStream::pair()?;
///     near.set_nonblocking(true)?;
///     let writer = spawn(move || {
///         loop {
///             match near.write(&[0; 65536]) {
///                 Err(error) if error.kind() == ErrorKind::WouldBlock => return wait_writable(&near),
///                 written => drop(written?),
///             }
///         }
///     });
///     while ctx.poll(false) {} // the writer has filled the socket, and waits
///     far.set_nonblocking(true)?;
///     while far.read(&mut [0; 65536]).is_ok() {}
///     writer.join().unwrap()
/// })?;
/// # Ok::<_, std::io::Error>(())
/// ```
///
/// # Errors
///
/// As [`wait_readable`].
///
/// # Panics
///
/// Panics outside a coroutine.
///
/// # Control
///
/// Yields.
#[track_caller]
pub fn wait_writable(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    wait_until_ready(fd, Interest::Write, WaitReason::Writable(fd.as_raw_fd())).map(drop)
}

/// A descriptor borrowed by the waiting coroutine, or by the owner of the watch.
struct BorrowedRawFd(RawFd);

impl AsFd for BorrowedRawFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: *recorded while it waits*: the watch that contains this is dropped by the wait
        // that borrowed the descriptor, or by the `CoFd` that owns the descriptor, before the
        // `CoFd` releases it.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

#[track_caller]
fn wait_until_ready(fd: BorrowedFd<'_>, interest: Interest, reason: WaitReason) -> io::Result<()> {
    let home = LocalContext::expect("waiting for a descriptor");
    let coroutine = Coroutine::current().expect("wait for a descriptor outside a coroutine: spawn one");
    // Checked before registering anything: an ending context would reject that with another error.
    if !home.scheduler.can_suspend() {
        return Err(Cancelled.into());
    }
    let ready = Arc::new(AtomicBool::new(false));
    let handler = || {
        let (ready, waker) = (Arc::clone(&ready), coroutine.waker());
        move |_: Readiness| {
            // Release pairs with the acquire below: another thread's poll may have called this.
            ready.store(true, Ordering::Release);
            waker.wake();
        }
    };
    let _watch: FdHandler = match home.context.add_fd_handler(BorrowedRawFd(fd.as_raw_fd()), interest, handler()) {
        // Another coroutine waits for it, or a handler watches it. To epoll, a duplicate is a
        // different descriptor.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            home.context.add_fd_handler(fd.try_clone_to_owned()?, interest, handler())?
        }
        watch => watch?,
    };
    Ok(home.scheduler.suspend_until(reason, || ready.load(Ordering::Acquire).then_some(()))?)
}
