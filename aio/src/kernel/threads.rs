//! Threads as a kernel: each request is a system call that blocks one of a few threads.
//!
//! It takes what no asynchronous interface takes, or takes without blocking: any file system,
//! page-cached or not; and it works where native AIO and io_uring are forbidden. It costs two turns
//! of the processor from thread to thread.
//!
//! ```text
//!   home thread                  pool (of the process)             a worker
//!   -----------                  ---------------------             --------
//!   submit(batch)   one lock ->  queue
//!   ..                           wakes one            ---------->  takes one, wakes another if there is more
//!                                                                  pread, pwrite, fsync: blocks
//!   peek, commit    <----------  a ring in memory     <----------  publishes
//!   wait: ppoll     <----------  eventfd, if it sleeps <---------  kicks
//! ```
//!
//! The pool is the process's, whatever number of engines it has: what bounds the threads is what
//! the machine's disks and processors are worth, and a second engine adds none of these. A request
//! is lent from `submit` to its completion; a worker never runs anything but its system call. No
//! order is promised among requests, as elsewhere.

#![allow(unsafe_code)]

mod completions;
mod kick;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::iter;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coralio_runtime::AioContext;

use completions::Completions;
use kick::{Kick, perform};

use super::{Completion, Kernel, Operation, atomic};
use crate::pool::{Global, Kind, Pool, Work};

/// The deepest queue on offer, as of native AIO.
const MAX_DEPTH: u32 = 32768;

/// More threads than this are not at work on I/O in a process, whatever its engines have in flight.
pub const MOST_THREADS: usize = 16;

const KIND: Kind = Kind {
    name: "coralio-io",
    most: MOST_THREADS,
    // A system call needs little, and what is not touched costs nothing; sanitizers need more than
    // the least there can be.
    stack_size: 128 * 1024,
    patience: Duration::from_secs(5),
    leaves_signals: true,
};

/// A request in the form that a worker takes.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    operation: Operation,
    key: u64,
}

/// Where the completions of one engine go.
struct Target {
    completions: Completions,
    kick: Kick,
    /// Whose loop to tell, where it sleeps in another engine.
    notifies: Mutex<Option<AioContext>>,
}

/// A request with the way back.
struct Request {
    entry: Entry,
    to: Arc<Target>,
}

impl Work for Request {
    fn run(self) {
        let Entry { operation, key } = self.entry;
        // SAFETY: *lent to the kernel*: `submit`'s caller keeps the memory until the completion was
        // peeked.
        let result = unsafe { perform(&operation) };
        self.to.complete(key, result);
    }
}

impl Target {
    fn complete(&self, key: u64, result: i64) {
        if self.completions.push(key, result) {
            self.kick.signal();
        }
        // The context's own protocol: published, then told; and the loop looks once more before it
        // sleeps.
        if let Some(context) = &*self.notifies.lock().unwrap_or_else(PoisonError::into_inner) {
            context.wake_loop();
        }
    }
}

/// The [`Kernel`] that a pool of threads is.
pub struct Threads {
    target: Arc<Target>,
    depth: u32,
    /// Submitted and not committed. Changed under the context's lock with plain loads and stores.
    in_flight: AtomicU32,
    pool: &'static Pool<Request>,
}

impl Threads {
    /// A queue for up to `depth` requests in flight (1 to 32768), served by the process's pool of
    /// up to [`MOST_THREADS`] threads. It starts them when there is work, and they end when there
    /// was none for five seconds.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: a depth out of range. What the kernel says if there is no descriptor left.
    pub fn new(depth: u32) -> io::Result<Threads> {
        static POOL: Global<Request> = Global::new();
        Threads::on(POOL.get(KIND), depth)
    }

    fn on(pool: &'static Pool<Request>, depth: u32) -> io::Result<Threads> {
        if depth == 0 || depth > MAX_DEPTH {
            let message = format!("queue depth {depth} is not in 1..={MAX_DEPTH}: 32 suits most");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let target =
            Arc::new(Target { completions: Completions::new(depth), kick: Kick::new()?, notifies: Mutex::new(None) });
        Ok(Threads { target, depth, in_flight: AtomicU32::new(0), pool })
    }

    /// From now on each completion also ends a sleep of this context's loop, whatever that sleeps
    /// in.
    pub(crate) fn notify(&self, context: AioContext) {
        *self.target.notifies.lock().unwrap_or_else(PoisonError::into_inner) = Some(context);
    }

    /// The wait itself, after it was announced.
    fn sleep(&self, min: u32, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
        let Target { completions, kick, .. } = &*self.target;
        let began = timeout.map(|_| Instant::now());
        while !completions.has(min) {
            let left = timeout.zip(began).map(|(timeout, began)| timeout.saturating_sub(began.elapsed()));
            let kicked = kick.sleep(other, left)?;
            if !kicked || min == 1 {
                break;
            }
            // One of several has come, or none.
            completions.going_to_sleep();
        }
        Ok(())
    }
}

// SAFETY: *lent to the kernel*: only what is put on the queue is kept, and each of that is taken by
// one worker, which publishes the one completion after its system call. `peek` acquires what that
// did to memory.
unsafe impl Kernel for Threads {
    type Entry = Entry;

    #[inline]
    fn capacity(&self) -> u32 {
        self.depth
    }

    #[inline]
    fn prepare(&self, operation: &Operation, key: u64) -> Entry {
        Entry { operation: *operation, key }
    }

    #[inline]
    fn key(&self, entry: &Entry) -> u64 {
        entry.key
    }

    /// Without a system call if a worker is on its way already.
    unsafe fn submit(&self, entries: &mut [Entry]) -> io::Result<usize> {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let count = entries.len().min(self.depth.saturating_sub(in_flight) as usize);
        if count == 0 {
            return if entries.is_empty() { Ok(0) } else { Err(io::Error::from_raw_os_error(libc::EAGAIN)) };
        }
        self.in_flight.store(in_flight + count as u32, Ordering::Relaxed);
        let request = |(&entry, to)| Request { entry, to };
        self.pool.put(iter::zip(&entries[..count], iter::repeat_with(|| Arc::clone(&self.target))).map(request));
        Ok(count)
    }

    /// What no worker has begun completes at once.
    unsafe fn cancel(&self, key: u64) {
        let ours = |request: &Request| request.entry.key == key && Arc::ptr_eq(&request.to, &self.target);
        if let Some(request) = self.pool.take_back(ours) {
            request.to.complete(key, -i64::from(libc::ECANCELED));
        }
    }

    #[inline]
    unsafe fn peek(&self) -> Option<Completion> {
        self.target.completions.peek().map(|(key, result)| Completion { key, result })
    }

    #[inline]
    unsafe fn commit(&self) {
        // Wrapping: a caller who breaks rule E9 shall find out from its own counter.
        self.in_flight.store(self.in_flight.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
        self.target.completions.commit();
    }

    /// Sleeps as the trait says. With `min` 1 it may end early: by a kick that came late, for a
    /// completion that was reaped without a sleep; or by one whose completion another thread has
    /// reaped, so that the loop looks what that left it to do.
    ///
    /// # Errors
    ///
    /// What `ppoll` says.
    ///
    /// # Panics
    ///
    /// If two threads wait at once.
    unsafe fn wait(&self, min: u32, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
        let completions = &self.target.completions;
        assert!(completions.going_to_sleep(), "two threads wait for the same engine: only its home thread may");
        let slept = self.sleep(min.min(self.depth), other, timeout);
        completions.awake();
        slept
    }
}

impl Drop for Threads {
    /// With requests in flight it waits for them. In a forked child nobody works on them.
    fn drop(&mut self) {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        if in_flight > 0 && self.pool.is_ours() {
            while !self.target.completions.has(in_flight) {
                // SAFETY: whoever drops the kernel owns it, so no other thread waits.
                if unsafe { self.wait(in_flight, None, None) }.is_err() {
                    std::thread::yield_now();
                }
            }
        }
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads")
            .field("depth", &self.depth)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
