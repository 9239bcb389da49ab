//! Descriptors as plain waits: a coroutine is suspended until one can be read or written.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::coroutine::waiting::Waiting;
use crate::coroutine::{Cancelled, Coroutine};
use crate::home::Home;

use super::fd::{Interest, Readiness, Watch};

/// Waits until `fd` can be read without blocking: data is there, or its end, or an error.
///
/// ```
/// use coralio_runtime::{AioContext, spawn, wait_readable};
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// AioContext::run(|_ctx| {
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
/// [`Cancelled`](crate::Cancelled), as an I/O error, if the coroutine was cancelled or a timeout around this is over.
/// `PermissionDenied`: it cannot be waited for, as regular files cannot. Or no memory.
///
/// # Panics
///
/// Outside a coroutine.
///
/// # Control
///
/// Yields.
#[track_caller]
pub fn wait_readable(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    wait_until_ready(fd, Interest::Read, Waiting::Readable(fd.as_raw_fd())).map(drop)
}

/// Waits until `fd` can be written without blocking: there is room, or an error.
///
/// # Errors
///
/// As [`wait_readable`].
///
/// # Panics
///
/// Outside a coroutine.
///
/// # Control
///
/// Yields.
#[track_caller]
pub fn wait_writable(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    wait_until_ready(fd, Interest::Write, Waiting::Writable(fd.as_raw_fd())).map(drop)
}

/// A descriptor that whoever waits has borrowed; or that the owner of the watch has.
pub(super) struct Lent(pub(super) RawFd);

impl AsFd for Lent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: *noted while it waits*: the watch that has this is dropped by the wait that has borrowed the descriptor; or
        // by the `CoFd` that owns it, before it lets go of it.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

#[track_caller]
fn wait_until_ready(fd: BorrowedFd<'_>, interest: Interest, waiting: Waiting) -> io::Result<()> {
    let home = Home::expect("a wait for a descriptor");
    let coroutine = Coroutine::current().expect("a descriptor is waited for in a coroutine: spawn one");
    // Before anything is registered, which a context that ends refuses with another error.
    if !home.can_suspend() {
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
    let _watch: Watch = match home.context.watch(Lent(fd.as_raw_fd()), interest, handler()) {
        // Another coroutine waits for it, or a handler watches it. A duplicate is another descriptor to the kernel.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            home.context.watch(fd.try_clone_to_owned()?, interest, handler())?
        }
        watch => watch?,
    };
    Ok(home.suspend_until(waiting, || ready.load(Ordering::Acquire).then_some(()))?)
}
