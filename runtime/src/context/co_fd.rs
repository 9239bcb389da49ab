//! Sockets and pipes that are read and written as if they blocked, and suspend the coroutine instead.
//!
//! ```text
//!   read                          the loop
//!   ----                          --------
//!   known to be drained? wait
//!   note the number of edges
//!   the system call               epoll reports an edge: the number goes up, all who wait are woken
//!   "would block": drained, as of that number
//! ```
//!
//! The descriptor is registered once, for edges: epoll tells when something comes, not for as long as it is there. So none
//! may be lost. *Edges are counted*: whoever finds nothing waits for a number other than the one that he noted before he
//! looked, and what came meanwhile has changed it. A waiter too many costs one call that would block.
//!
//! That it can be written is asked for only while somebody waits for it: a local socket would tell each time that the
//! other end reads.

use std::cell::Cell;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use crate::coroutine::Cancelled;
use crate::coroutine::waiting::Waiting;
use crate::home::Home;
use crate::sync::wait_queue::WaitQueue;
use crate::sys::{is_stream_socket, set_nonblocking};

use super::fd::{Interest, Readiness, Watch};
use super::readiness::Lent;

mod stream;

/// What epoll has told of one direction.
#[derive(Default)]
struct Edges {
    count: u64,
    /// The other end has gone, or half of it: the last edge of all may have come.
    closing: bool,
}

/// Those who wait, and what they wait for. The handler has them too, which another thread's poll may call.
struct Lines {
    read: WaitQueue<(), Edges>,
    write: WaitQueue<(), Edges>,
}

impl Lines {
    fn report(&self, events: u32) {
        let readiness = Readiness::of(events);
        let closing = events & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32 != 0;
        for (line, ready) in [(&self.read, readiness.readable), (&self.write, readiness.writable)] {
            if ready {
                let mut locked = line.lock();
                let edges = locked.state();
                edges.count += 1;
                edges.closing |= closing;
                line.hand_out(locked, |line| line.grant_first());
            }
        }
    }
}

/// One direction, as the coroutines see it.
struct Side<'a> {
    line: &'a WaitQueue<(), Edges>,
    exhausted: &'a Cell<u64>,
}

/// No number of edges.
const NOT_KNOWN: u64 = u64::MAX;

/// A socket or pipe of this thread's context. [`Read`] and [`Write`](io::Write) suspend the coroutine where the descriptor's own would
/// block, never the thread.
///
/// It is registered with the loop once, so a wait costs no system call. Many coroutines may use it at once, as `&CoFd`: one
/// that reads and one that writes, say.
///
/// ```
/// use coralio_runtime::{AioContext, CoFd, spawn};
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// AioContext::run(|_ctx| {
///     let (near, far) = UnixStream::pair().unwrap();
///     let echo = spawn(move || {
///         let far = CoFd::new(far)?;
///         std::io::copy(&mut &far, &mut &far) // until the other end says that it is the end
///     });
///     let client = spawn(move || {
///         let near = CoFd::new(near)?;
///         let mut answer = [0; 5];
///         (&near).write_all(b"hello")?;
///         (&near).read_exact(&mut answer)?;
///         Ok::<_, std::io::Error>(answer)
///     });
///     assert_eq!(&client.join().unwrap().unwrap(), b"hello");
///     assert_eq!(echo.join().unwrap().unwrap(), 5);
/// });
/// ```
///
/// A coroutine whose descriptor is always ready never waits: if others are to have their turn, it calls
/// [`yield_now`](crate::yield_now) now and then.
pub struct CoFd<S> {
    /// Before `inner`: it ends before the descriptor is closed.
    watch: Watch,
    lines: Arc<Lines>,
    /// At which number of edges there was nothing to read; and no room to write.
    drained: Cell<u64>,
    full: Cell<u64>,
    /// How many wait to write.
    writers: Cell<u32>,
    /// For whoever asks what is waited for.
    raw: i32,
    /// A call that does less than it could says that nothing is left.
    is_stream: bool,
    inner: S,
    /// Its context's thread is the only one whose coroutines can wait for it.
    _home: PhantomData<*const ()>,
}

impl<S: AsFd> CoFd<S> {
    /// Takes a socket or pipe, and makes it non-blocking (with whatever shares the open file: duplicates, too).
    ///
    /// # Errors
    ///
    /// `PermissionDenied`: it cannot be waited for, as regular files cannot. `AlreadyExists`: the loop watches the
    /// descriptor already. What the kernel says.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// Never switches.
    #[track_caller]
    pub fn new(inner: S) -> io::Result<CoFd<S>> {
        let home = Home::expect("a descriptor for coroutines");
        let fd = inner.as_fd();
        set_nonblocking(fd)?;
        let lines = Arc::new(Lines { read: WaitQueue::new(Edges::default()), write: WaitQueue::new(Edges::default()) });
        let told = Arc::clone(&lines);
        let lent = Lent(fd.as_raw_fd());
        let watch = home.context.watch_edges(lent, Interest::Read, move |events| told.report(events))?;
        Ok(CoFd {
            watch,
            lines,
            drained: Cell::new(NOT_KNOWN),
            full: Cell::new(NOT_KNOWN),
            writers: Cell::new(0),
            raw: fd.as_raw_fd(),
            is_stream: is_stream_socket(fd),
            inner,
            _home: PhantomData,
        })
    }
}

impl<S> CoFd<S> {
    /// The socket or pipe itself. It is non-blocking.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The socket or pipe, of which the loop knows no more. It stays non-blocking.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn into_inner(self) -> S {
        let CoFd { watch, inner, .. } = self;
        drop(watch);
        inner
    }

    /// Waits until a read is worth trying: something may be there, or the end, or an error.
    ///
    /// Unlike [`wait_readable`](crate::wait_readable) it goes by what was told: it returns at once unless the last
    /// read would have blocked and nothing has come since. So a read that follows may still find nothing.
    ///
    /// # Errors
    ///
    /// [`Cancelled`], as an I/O error, if the coroutine was cancelled or a timeout around this is over, or if it cannot be
    /// suspended because its stack unwinds. `NotConnected`: it was made in another context than this one.
    ///
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn wait_readable(&self) -> io::Result<()> {
        let waiting = Waiting::Readable(self.raw);
        self.wait(&self.reading(), waiting)
    }

    /// Waits until a write is worth trying: there may be room, or an error.
    ///
    /// # Errors
    ///
    /// As [`wait_readable`](Self::wait_readable), and what the kernel says.
    ///
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn wait_writable(&self) -> io::Result<()> {
        /// Nobody is to be told who does not wait.
        struct Writer<'a, S>(&'a CoFd<S>);
        impl<S> Drop for Writer<'_, S> {
            fn drop(&mut self) {
                let left = self.0.writers.get() - 1;
                self.0.writers.set(left);
                if left == 0 {
                    // If it cannot be, edges come that nobody waits for.
                    let _ = self.0.watch.set_interest(Interest::Read);
                }
            }
        }
        let side = self.writing();
        if !side.is_exhausted() {
            return Ok(());
        }
        self.writers.set(self.writers.get() + 1);
        let _writer = Writer(self);
        if self.writers.get() == 1 {
            // If there is room by now, this makes an edge.
            self.watch.set_interest(Interest::Both)?;
        }
        self.wait(&side, Waiting::Writable(self.raw))
    }

    /// Reads once what is there, for whoever takes a buffer only when something is: see [`wait_readable`](Self::wait_readable).
    ///
    /// # Errors
    ///
    /// The descriptor's own; `WouldBlock` if nothing is there.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<usize>
    where
        for<'a> &'a S: Read,
    {
        let wanted = buf.len();
        self.reading().note(|| (&self.inner).read(buf), |&done, edges| self.has_drained(done, wanted, edges))
    }

    /// Calls `read`, and waits and calls it again for as long as it would block. For what [`Read`] has not: a listener's
    /// `accept`, say.
    ///
    /// # Errors
    ///
    /// What `read` returns, but never `WouldBlock`; and as [`wait_readable`](Self::wait_readable).
    ///
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn read_with<R>(&self, mut read: impl FnMut(&S) -> io::Result<R>) -> io::Result<R> {
        self.read_until(&mut read, |_, _| false)
    }

    fn reading(&self) -> Side<'_> {
        Side { line: &self.lines.read, exhausted: &self.drained }
    }

    fn writing(&self) -> Side<'_> {
        Side { line: &self.lines.write, exhausted: &self.full }
    }

    #[track_caller]
    fn wait(&self, side: &Side<'_>, waiting: Waiting) -> io::Result<()> {
        if !side.is_exhausted() {
            return Ok(());
        }
        let home = Home::expect("a wait for a descriptor");
        if !Arc::ptr_eq(&home.shared, &self.watch.shared) {
            let why = "the descriptor belongs to another context than this one; take it out by `into_inner`, and make a \
                       CoFd of it here";
            return Err(io::Error::new(io::ErrorKind::NotConnected, why));
        }
        if home.running().is_some() && !home.can_suspend() {
            return Err(Cancelled.into());
        }
        let mut line = side.line.lock();
        // Another thread's poll may have told meanwhile.
        if line.state().count != side.exhausted.get() {
            return Ok(());
        }
        // All are woken at an edge: none who goes away has anything to pass on.
        side.line.wait_cancellable(line, (), waiting, || {}, |_| {}).map_err(|()| Cancelled.into())
    }

    #[track_caller]
    fn read_until<R>(
        &self,
        read: &mut impl FnMut(&S) -> io::Result<R>,
        drains: impl Fn(&R, &Edges) -> bool,
    ) -> io::Result<R> {
        loop {
            self.wait_readable()?;
            match self.reading().note(|| read(&self.inner), &drains) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// A read of a stream that brings less than it could has drained it: what comes later makes an edge. Not when the
    /// other end is going: its last edge may be the one that was told of.
    fn has_drained(&self, done: usize, wanted: usize, edges: &Edges) -> bool {
        self.is_stream && 0 < done && done < wanted && !edges.closing
    }

    #[track_caller]
    fn read_some(&self, wanted: usize, mut read: impl FnMut(&S) -> io::Result<usize>) -> io::Result<usize> {
        self.read_until(&mut read, |&done, edges| self.has_drained(done, wanted, edges))
    }

    #[track_caller]
    fn write_some(&self, wanted: usize, mut write: impl FnMut(&S) -> io::Result<usize>) -> io::Result<usize> {
        loop {
            self.wait_writable()?;
            match self.writing().note(|| write(&self.inner), |&done, _| self.is_stream && done < wanted) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

impl Side<'_> {
    fn is_exhausted(&self) -> bool {
        self.line.lock().state().count == self.exhausted.get()
    }

    /// Makes the call, and notes if there is no more to be had until the next edge.
    fn note<R>(&self, call: impl FnOnce() -> io::Result<R>, exhausts: impl Fn(&R, &Edges) -> bool) -> io::Result<R> {
        // Before the call: *edges are counted*.
        let before = self.line.lock().state().count;
        let result = call();
        let is_exhausted = match &result {
            Ok(done) => exhausts(done, self.line.lock().state()),
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        if is_exhausted {
            self.exhausted.set(before);
        }
        result
    }
}
