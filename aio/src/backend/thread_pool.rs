//! A thread pool as a backend: each request is a system call that blocks one of a few threads.
//!
//! It supports every file system, page-cached or not, including requests that the asynchronous
//! interfaces do not support or perform by blocking, and it works where native AIO and io_uring are
//! forbidden. The price is two context switches per request.
//!
//! ```text
//!   home thread                  pool (process-wide)           a worker
//!   -----------                  -------------------           --------
//!   submit(batch)   one lock ->  queue
//!   ..                           wakes one            ---------->  takes one, wakes another if there is more
//!                                                                  pread, pwrite, fsync: blocks
//!   peek, commit    <----------  a queue in memory    <----------  publishes
//!   wait: ppoll     <----------  eventfd, if it sleeps <---------  signals
//! ```
//!
//! The pool is shared by all engines of the process: the sensible number of threads depends on the
//! machine's disks and processors, which do not increase with the number of engines. A request's
//! memory is lent from `submit` to its completion; a worker runs only the system call. As with the
//! other backends, requests have no guaranteed order.

#![allow(unsafe_code)]

mod completions;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::iter;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use coralio_runtime::{AioContext, EventNotifier, explained};
use parking_lot::Mutex;

use completions::Completions;

pub use super::Entry;
use super::pool::{Pool, PoolConfig, Work};
use super::queue_depth::InFlight;
use super::sys::poll;
use super::system_call::execute;
use super::{Backend, Completion, Operation, atomic};

/// The maximum number of threads doing I/O in a process, regardless of its engines and their
/// requests.
pub const MAX_THREADS: usize = 16;

const CONFIG: PoolConfig = PoolConfig {
    name: "coralio-io",
    max_threads: MAX_THREADS,
    // A system call needs little stack, and untouched stack costs nothing; sanitizers need more
    // than the minimum.
    stack_size: 128 * 1024,
    idle_timeout: Duration::from_secs(5),
    leaves_signals: true,
};

/// The destination of one engine's completions.
struct CompletionSink {
    completions: Completions,
    /// Ends the home thread's sleep.
    event: EventNotifier,
    /// The context whose loop to wake, if it sleeps in another engine.
    notifies: Mutex<Option<AioContext>>,
}

/// A request with its destination.
struct Request {
    entry: Entry,
    to: Arc<CompletionSink>,
}

impl Work for Request {
    fn run(self) {
        let Entry { operation, key } = self.entry;
        // SAFETY: *lent to the kernel*: `submit`'s caller keeps the memory valid until the
        // completion has been peeked.
        let result = unsafe { execute(&operation, false) };
        self.to.complete(key, result);
    }
}

impl CompletionSink {
    fn complete(&self, key: u64, result: i64) {
        if self.completions.push(key, result) {
            self.event.notify();
        }
        // The context's own protocol: publish, then notify; the loop checks once more before it
        // sleeps.
        if let Some(context) = &*self.notifies.lock() {
            context.wake_loop();
        }
    }
}

/// The thread-pool [`Backend`].
pub struct ThreadPool {
    sink: Arc<CompletionSink>,
    in_flight: InFlight,
    pool: &'static Pool<Request>,
}

impl ThreadPool {
    /// Creates a queue for up to `depth` requests in flight (1 to 32768), served by the
    /// process-wide pool of up to [`MAX_THREADS`] threads. Threads start when there is work, and
    /// end after five idle seconds.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: the depth is out of range. `Unsupported`: the process was forked from one
    /// that used the pool. The system's error if there is no descriptor left.
    pub fn new(depth: u32) -> io::Result<ThreadPool> {
        static POOL: Pool<Request> = Pool::new(CONFIG);
        ThreadPool::on(&POOL, depth)
    }

    fn on(pool: &'static Pool<Request>, depth: u32) -> io::Result<ThreadPool> {
        let in_flight = InFlight::new(depth)?;
        pool.claim()?;
        let event = EventNotifier::new().map_err(|error| {
            let message = format!(
                "no descriptor left to wake the loop: {error}; close some, or raise the limit on open files (ulimit -n)"
            );
            explained(error.kind(), message, error)
        })?;
        let completions = Completions::new(depth);
        let sink = Arc::new(CompletionSink { completions, event, notifies: Mutex::new(None) });
        Ok(ThreadPool { sink, in_flight, pool })
    }

    /// Makes each completion also end a sleep of this context's loop, whatever the loop sleeps in.
    pub(crate) fn notify(&self, context: AioContext) {
        *self.sink.notifies.lock() = Some(context);
    }

    /// Sleeps, after the reader's state has been set to asleep.
    fn sleep(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
        let CompletionSink { completions, event, .. } = &*self.sink;
        if completions.is_empty() {
            let [signalled, _] = poll([Some(event.as_fd()), other], timeout)?;
            if signalled {
                event.test_and_clear();
            }
        }
        Ok(())
    }
}

// SAFETY: *lent to the kernel*: only entries put on the queue are kept. One worker takes each of
// them and publishes its one completion after the system call. `peek_completion` acquires the
// call's effects on memory.
unsafe impl Backend for ThreadPool {
    type Entry = Entry;

    #[inline]
    fn capacity(&self) -> u32 {
        self.in_flight.depth()
    }

    #[inline]
    fn prepare(&self, operation: &Operation, key: u64) -> Entry {
        Entry { operation: *operation, key }
    }

    #[inline]
    fn key(&self, entry: &Entry) -> u64 {
        entry.key
    }

    /// Makes no system call if a worker is already on its way.
    unsafe fn submit(&self, entries: &mut [Entry]) -> io::Result<usize> {
        let count = self.in_flight.room(entries.len())?;
        self.in_flight.add(count);
        let request = |(&entry, to)| Request { entry, to };
        self.pool.put(iter::zip(&entries[..count], iter::repeat_with(|| Arc::clone(&self.sink))).map(request));
        Ok(count)
    }

    /// A request that no worker has begun completes immediately.
    unsafe fn cancel(&self, key: u64) {
        let ours = |request: &Request| request.entry.key == key && Arc::ptr_eq(&request.to, &self.sink);
        if let Some(request) = self.pool.remove(ours) {
            request.to.complete(key, -i64::from(libc::ECANCELED));
        }
    }

    #[inline]
    unsafe fn peek_completion(&self) -> Option<Completion> {
        self.sink.completions.peek().map(|(key, result)| Completion { key, result })
    }

    #[inline]
    unsafe fn advance(&self) {
        self.in_flight.commit();
        self.sink.completions.commit();
    }

    /// Sleeps as described by the trait. The sleep may end early: by a late signal for a completion
    /// that was reaped without a sleep, or by one for a completion that another thread has reaped,
    /// so that the loop processes what that made ready.
    ///
    /// # Errors
    ///
    /// The error of `ppoll`.
    ///
    /// # Panics
    ///
    /// If two threads wait at the same time.
    unsafe fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
        let completions = &self.sink.completions;
        assert!(completions.going_to_sleep(), "two threads wait for the same engine: only its home thread may wait");
        let slept = self.sleep(other, timeout);
        completions.awake();
        slept
    }
}

impl Drop for ThreadPool {
    /// Waits for requests in flight, except in a forked child, where no thread works on them.
    fn drop(&mut self) {
        if self.pool.is_ours() {
            // SAFETY: `drop` has exclusive access.
            unsafe { self.in_flight.discard(self) };
        }
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadPool").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}
