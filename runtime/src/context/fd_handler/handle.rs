//! The public side of fd handlers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::Location;
use std::sync::Arc;

use super::{EdgeListener, Interest, Mode, Readiness, Watch};
use crate::context::registration::{Entry, Handle, Key};
use crate::context::{AioContext, SharedContext};
use crate::sys::explained;

impl AioContext {
    /// Calls `handler` whenever `fd` is ready for `interest`. The watch keeps `fd` open; share it
    /// as an `Arc`. `as_fd` is called once, here.
    ///
    /// Watches are level-triggered: the handler is called again until it has read or written. The
    /// handler is `Send`, since another thread's poll may call it.
    ///
    /// ```
    /// use coralio::context::{AioContext, Interest};
    /// use std::io::{Read, Write};
    /// use std::os::unix::net::UnixStream;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicUsize, Ordering};
    ///
    /// AioContext::run(|ctx| {
    ///     let (near, mut far) = UnixStream::pair()?;
    ///     let (near, total) = (Arc::new(near), Arc::new(AtomicUsize::new(0)));
    ///     let watch = ctx.add_fd_handler(Arc::clone(&near), Interest::Read, {
    ///         let total = Arc::clone(&total);
    ///         move |readiness| {
    ///             assert!(readiness.readable);
    ///             total.fetch_add((&*near).read(&mut [0; 8]).unwrap(), Ordering::Relaxed);
    ///         }
    ///     })?;
    ///     far.write_all(b"hello")?;
    ///     ctx.poll(true);
    ///     assert_eq!(total.load(Ordering::Relaxed), 5);
    ///     watch.set_interest(Interest::Write)?; // from now on, when there is space
    ///     Ok::<_, std::io::Error>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// `AlreadyExists`: the descriptor has a watch already; use [`FdHandler::set_interest`].
    /// `PermissionDenied`: epoll does not support the descriptor, for example a regular file, which
    /// is always ready. `NotConnected`: the context has ended ([`ContextEnded`](crate::ContextEnded)). Also fails if out
    /// of memory. `fd` and `handler` are dropped on failure.
    #[doc(alias = "aio_set_fd_handler")]
    #[track_caller]
    pub fn add_fd_handler(
        &self,
        fd: impl AsFd + Send + Sync + 'static,
        interest: Interest,
        mut handler: impl FnMut(Readiness) + Send + 'static,
    ) -> io::Result<FdHandler> {
        self.add_handler(fd, interest, move |events, _, _| handler(Readiness::of(events)))
    }

    /// As [`add_fd_handler`](Self::add_fd_handler), for a handler that changes the interest of its
    /// own watch or [deletes](FdHandler::delete) it: the handler receives its own handle.
    ///
    /// ```
    /// use coralio::context::{AioContext, Interest};
    /// use std::os::unix::net::UnixStream;
    ///
    /// AioContext::run(|ctx| {
    ///     let (near, far) = UnixStream::pair()?;
    ///     let watch = ctx.add_fd_handler_with(near, Interest::Read, |own, _readiness| own.delete())?;
    ///     drop(far);
    ///     assert!(ctx.poll(true), "the hang-up was reported");
    ///     assert!(ctx.fd_handlers().is_empty());
    ///     drop(watch);
    ///     Ok::<_, std::io::Error>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`add_fd_handler`](Self::add_fd_handler).
    #[track_caller]
    pub fn add_fd_handler_with(
        &self,
        fd: impl AsFd + Send + Sync + 'static,
        interest: Interest,
        mut handler: impl FnMut(&FdHandler, Readiness) + Send + 'static,
    ) -> io::Result<FdHandler> {
        self.add_handler(fd, interest, move |events, shared, key| {
            handler(&FdHandler(Handle::within(shared, key)), Readiness::of(events));
        })
    }

    #[track_caller]
    fn add_handler(
        &self,
        owner: impl AsFd + Send + Sync + 'static,
        interest: Interest,
        handler: impl FnMut(u32, &Arc<SharedContext>, Key) + Send + 'static,
    ) -> io::Result<FdHandler> {
        let fd = owner.as_fd().as_raw_fd();
        let watch = Watch::new(fd, Mode::Level { _owner: Box::new(owner) });
        FdHandler(Handle::new(&self.shared, watch, Some(Box::new(handler)))?).started(interest)
    }

    /// Watches a descriptor edge-triggered: epoll reports each change once, to the listener. The
    /// caller keeps the descriptor open until the watch has ended.
    #[track_caller]
    pub(crate) fn watch_edges(
        &self,
        fd: RawFd,
        interest: Interest,
        listener: Arc<dyn EdgeListener>,
    ) -> io::Result<FdHandler> {
        let watch = Watch::new(fd, Mode::Edge(listener));
        FdHandler(Handle::new(&self.shared, watch, None)?).started(interest)
    }

    /// Returns the watches of this context: the fd handlers, and the descriptors that coroutines
    /// wait for. From any thread, even while the loop hangs.
    pub fn fd_handlers(&self) -> Vec<FdHandlerInfo> {
        let info = |entry: &Entry<Watch>| FdHandlerInfo {
            created_at: entry.created_at,
            fd: entry.kind.fd,
            interest: entry.kind.interest,
            is_running: entry.is_running,
        };
        self.shared.watches.list(|entry| (!entry.is_deleted).then(|| info(entry))).into_iter().flatten().collect()
    }
}

/// The state of a watch, returned by [`AioContext::fd_handlers`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FdHandlerInfo {
    /// Where the watch was created.
    pub created_at: &'static Location<'static>,
    /// The descriptor's number.
    pub fd: RawFd,
    /// The events that the handler is called for.
    pub interest: Interest,
    /// The handler is running.
    pub is_running: bool,
}

fn explain(error: io::Error) -> io::Error {
    let hint = match error.raw_os_error() {
        Some(libc::EEXIST) => "already watched; change the interest of the existing watch",
        Some(libc::EPERM) => {
            "epoll does not support it, as with regular files, which are always ready; read it through File"
        }
        Some(libc::EBADF) => "not open",
        Some(libc::ENOSPC) => "too many watches; raise fs.epoll.max_user_watches",
        _ => "refused by the kernel",
    };
    explained(error.kind(), format!("cannot watch the descriptor: {hint} ({error})"), error)
}

/// A descriptor that the loop watches. Dropping the handle, even within the handler, ends the
/// watch. After the context has ended, a handle does nothing.
#[must_use = "dropping it ends the watch"]
#[derive(Debug)]
pub struct FdHandler(pub(crate) Handle<Watch>);

impl FdHandler {
    fn started(self, interest: Interest) -> io::Result<FdHandler> {
        self.set(interest, true)?;
        Ok(self)
    }

    /// Changes the interest. From any thread.
    ///
    /// # Errors
    ///
    /// As [`AioContext::add_fd_handler`]; the interest is then unchanged.
    pub fn set_interest(&self, interest: Interest) -> io::Result<()> {
        self.set(interest, false)
    }

    /// Changes the interest. With `probes`, a descriptor that epoll rejects fails even if the
    /// interest is [`Interest::Disabled`].
    fn set(&self, interest: Interest, probes: bool) -> io::Result<()> {
        let shared = &self.0.shared;
        let mut state = self.0.table().lock();
        let Some((entry, queues)) = state.get(self.0.key) else { return Ok(()) };
        let mut set = |interest| entry.kind.set(interest, entry.key.token(), queues, &shared.epoll);
        let probed = if probes && interest == Interest::Disabled { set(Interest::ReadWrite) } else { Ok(()) };
        probed.and_then(|()| set(interest)).map_err(explain)?;
        drop(state);
        shared.scheduler.wake_loop();
        Ok(())
    }

    /// Ends the watch, as dropping its handle does. A running handler finishes first. From any
    /// thread.
    pub fn delete(&self) {
        self.0.delete();
    }
}
