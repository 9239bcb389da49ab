//! The public side of fd handlers.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::Location;
use std::sync::Arc;
use std::{fmt, io};

use super::{Entry, Handler, Interest, Readiness};
use crate::context::{AioContext, ContextEnded, Key, SharedContext};
use crate::sys::explained;

impl AioContext {
    /// Calls `handler` whenever `fd` is ready for `interest`. The watch keeps `fd` open; share it
    /// as an `Arc`. `as_fd` is called once, here.
    ///
    /// Watches are level-triggered: the handler is called again until it has read or written. The
    /// handler is `Send`, since another thread's poll may call it.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`: the descriptor has a watch already; use [`FdHandler::set_interest`].
    /// `PermissionDenied`: epoll does not support the descriptor, for example a regular file, which
    /// is always ready. `NotConnected`: the context has ended ([`ContextEnded`]). Also fails if out
    /// of memory. `fd` and `handler` are dropped on failure.
    #[doc(alias = "aio_set_fd_handler")]
    #[track_caller]
    pub fn add_fd_handler(
        &self,
        fd: impl AsFd + Send + Sync + 'static,
        interest: Interest,
        mut handler: impl FnMut(Readiness) + Send + 'static,
    ) -> io::Result<FdHandler> {
        self.insert_watch(fd, interest, false, Box::new(move |events, _, _| handler(Readiness::of(events))))
    }

    /// As [`add_fd_handler`](Self::add_fd_handler), for a handler that changes the interest of its
    /// own watch or [deletes](FdHandler::delete) it: the handler receives its own handle.
    ///
    /// ```
    /// use coralio_runtime::{AioContext, Interest};
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
        let handler: Handler = Box::new(move |events, shared, key| {
            handler(&FdHandler { shared: Arc::clone(shared), key, owns: false }, Readiness::of(events));
        });
        self.insert_watch(fd, interest, false, handler)
    }

    /// As [`add_fd_handler`](Self::add_fd_handler), but edge-triggered: calls the handler with
    /// epoll's event mask once per change.
    #[track_caller]
    pub(crate) fn watch_edges(
        &self,
        fd: impl AsFd + Send + Sync + 'static,
        interest: Interest,
        mut handler: impl FnMut(u32) + Send + 'static,
    ) -> io::Result<FdHandler> {
        self.insert_watch(fd, interest, true, Box::new(move |events, _, _| handler(events)))
    }

    #[track_caller]
    fn insert_watch(
        &self,
        owner: impl AsFd + Send + Sync + 'static,
        interest: Interest,
        edges: bool,
        handler: Handler,
    ) -> io::Result<FdHandler> {
        let fd = owner.as_fd().as_raw_fd();
        let entry = Entry {
            _owner: Box::new(owner),
            fd,
            // Registered for all events first, so that a descriptor that epoll rejects fails with
            // `None` too.
            interest: Interest::ReadWrite,
            registered: false,
            edges,
            handler: Some(handler),
            masked: false,
            removed: false,
            queued: false,
            reported: 0,
            created_at: Location::caller(),
        };
        let shared = &self.shared;
        let mut table = shared.watches.table.lock();
        let key = match table.entries.insert(entry) {
            Ok(key) => key,
            Err(rejected) => {
                drop(table);
                drop(rejected);
                return Err(ContextEnded { operation: "watch a descriptor" }.into());
            }
        };
        let entry = &mut table.entries[key.index];
        let added = match interest {
            Interest::Disabled => entry.update(&shared.epoll, key.token()),
            _ => Ok(()),
        };
        entry.interest = interest;
        if let Err(error) = added.and_then(|()| entry.update(&shared.epoll, key.token())) {
            let rejected = table.entries.remove(key);
            drop(table);
            drop(rejected);
            return Err(explain(error));
        }
        shared.watches.recount(edges, Interest::Disabled, interest);
        drop(table);
        shared.scheduler.wake_loop();
        Ok(FdHandler { shared: Arc::clone(shared), key, owns: true })
    }

    /// Returns the watches of this context: the fd handlers, and the descriptors that coroutines
    /// wait for. From any thread, even while the loop hangs.
    pub fn fd_handlers(&self) -> Vec<FdHandlerInfo> {
        let table = self.shared.watches.table.lock();
        let live = table.entries.iter().filter(|(_, entry)| !entry.removed);
        let info = |(_, entry): (Key, &Entry)| FdHandlerInfo {
            created_at: entry.created_at,
            fd: entry.fd,
            interest: entry.interest,
            is_running: entry.handler.is_none(),
        };
        live.map(info).collect()
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
pub struct FdHandler {
    pub(crate) shared: Arc<SharedContext>,
    key: Key,
    /// False for the handle passed to the handler; dropping that one deletes nothing.
    owns: bool,
}

impl FdHandler {
    /// Changes the interest. From any thread.
    ///
    /// # Errors
    ///
    /// As [`AioContext::add_fd_handler`]; the interest is then unchanged.
    pub fn set_interest(&self, interest: Interest) -> io::Result<()> {
        let shared = &self.shared;
        let mut table = shared.watches.table.lock();
        let Some(entry) = table.entries.get_mut(self.key).filter(|entry| !entry.removed) else { return Ok(()) };
        let before = std::mem::replace(&mut entry.interest, interest);
        if let Err(error) = entry.update(&shared.epoll, self.key.token()) {
            entry.interest = before;
            return Err(explain(error));
        }
        if interest == Interest::Disabled {
            // The reported events may be stale when the interest returns.
            entry.reported = 0;
        }
        shared.watches.recount(entry.edges, before, interest);
        drop(table);
        shared.scheduler.wake_loop();
        Ok(())
    }

    /// Ends the watch, as dropping its handle does. A running handler finishes first. From any
    /// thread.
    pub fn delete(&self) {
        let shared = &self.shared;
        let mut table = shared.watches.table.lock();
        let Some(entry) = table.entries.get_mut(self.key).filter(|entry| !entry.removed) else { return };
        if entry.registered {
            let _ = shared.epoll.remove(entry.fd);
            entry.registered = false;
        }
        shared.watches.recount(entry.edges, entry.interest, Interest::Disabled);
        if entry.handler.is_none() {
            entry.removed = true;
            return;
        }
        let entry = table.entries.remove(self.key);
        drop(table);
        drop(entry);
    }
}

impl Drop for FdHandler {
    fn drop(&mut self) {
        if self.owns {
            self.delete();
        }
    }
}

impl fmt::Debug for FdHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FdHandler").finish_non_exhaustive()
    }
}
