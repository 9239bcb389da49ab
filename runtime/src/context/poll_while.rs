//! Waiting for a condition by polling, for code outside coroutines: a drain, a shutdown (rule X9).
//!
//! A thread that changes such a condition calls [`AioContext::notify`]. Each side writes its own
//! flag before it reads the other's, with a sequentially consistent fence between, as in
//! `notify.rs`: the waiter adds itself to the list before it evaluates its condition, and the
//! notifier changes the state before it reads the list.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crossbeam_utils::sync::Parker;
use parking_lot::Mutex;

use crate::context::{AioContext, SourceState};

/// Other threads that wait for a context in `poll_while`.
#[derive(Default)]
pub(crate) struct ContextWaiters {
    list: Mutex<Vec<Wake>>,
    count: AtomicUsize,
}

/// Makes a waiting thread reevaluate its condition.
type Wake = Arc<dyn Fn() + Send + Sync>;

impl ContextWaiters {
    fn change(&self, change: impl FnOnce(&mut Vec<Wake>)) {
        let mut list = self.list.lock();
        change(&mut list);
        self.count.store(list.len(), Ordering::Relaxed);
    }

    fn notify(&self) {
        // Pairs with the fence in `poll_while`.
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::Relaxed) > 0 {
            let list = self.list.lock().clone();
            list.iter().for_each(|wake| wake());
        }
    }
}

impl AioContext {
    /// Runs the loop until `condition` is false. The context's home thread polls; any other thread
    /// waits, in the loop of its own context if it has one, else blocked. A thread that changes
    /// state that the condition depends on must call [`notify`](Self::notify) afterwards. The
    /// condition is evaluated under the context's lock, which is released fully during the sleep,
    /// however often the caller has acquired it.
    ///
    /// ```
    /// use coralio::{spawn, yield_now};
    /// use coralio::context::AioContext;
    /// use std::cell::Cell;
    /// use std::rc::Rc;
    ///
    /// AioContext::run(|ctx| {
    ///     let left = Rc::new(Cell::new(3));
    ///     for _ in 0..3 {
    ///         let left = Rc::clone(&left);
    ///         drop(spawn(move || {
    ///             yield_now();
    ///             left.set(left.get() - 1);
    ///         }));
    ///     }
    ///     ctx.poll_while(|| left.get() > 0);
    /// });
    /// ```
    ///
    /// Two loops must not wait for each other this way: each holds its own lock, and needs the
    /// other's. Nor may a coroutine stay suspended with a guard of this lock that was created off
    /// the home thread, while other coroutines of its thread call this function: dropping the guard
    /// while the lock is released aborts the process.
    ///
    /// # Panics
    ///
    /// Propagates panics of the code that it runs.
    ///
    /// # Control
    ///
    /// May enter coroutines. Blocks the thread, not only the coroutine.
    #[doc(alias = "AIO_WAIT_WHILE")]
    pub fn poll_while(&self, mut condition: impl FnMut() -> bool) {
        if self.is_home() {
            let _guard = self.acquire();
            return self.poll_until(|| !condition());
        }
        struct Gone<'a>(&'a ContextWaiters, Wake);
        impl Drop for Gone<'_> {
            fn drop(&mut self) {
                self.0.change(|list| list.retain(|wake| !Arc::ptr_eq(wake, &self.1)));
            }
        }
        // Not the thread's own: `condition` may park for other reasons.
        let parker = Parker::new();
        // A thread that runs its own context polls that one meanwhile.
        let wake: Wake = match AioContext::current() {
            Some(own) => Arc::new(move || own.shared.scheduler.notify()),
            None => {
                let unparker = parker.unparker().clone();
                Arc::new(move || unparker.unpark())
            }
        };
        let waiters = &self.shared.waiters;
        waiters.change(|list| list.push(Arc::clone(&wake)));
        let _gone = Gone(waiters, wake);
        // Pairs with the fence in `ContextWaiters::notify`.
        fence(Ordering::SeqCst);
        loop {
            let guard = self.acquire();
            if !condition() {
                return;
            }
            drop(guard);
            self.shared.unlocked_off_home(|| match AioContext::current() {
                Some(own) => drop(own.poll(true)),
                None => parker.park(),
            });
        }
    }

    /// Waits until the context's I/O engine has no request in flight or pending, as
    /// [`poll_while`](Self::poll_while) waits. Includes requests that coroutines submit meanwhile.
    /// Returns immediately if the context has no engine.
    ///
    /// # Panics
    ///
    /// Propagates panics of the code that the loop runs.
    ///
    /// # Control
    ///
    /// May enter coroutines. Blocks the thread, not only the coroutine.
    #[doc(alias = "bdrv_drain_all")]
    pub fn drain(&self) {
        self.poll_while(|| self.source().is_some_and(|source| source.state() != SourceState::Idle));
    }

    /// Returns whether another thread waits for this context in [`poll_while`](Self::poll_while).
    /// An engine that holds the context's lock checks this after changing a counter, and calls
    /// [`notify`](Self::notify) if it is true. For authors of engines.
    #[inline]
    pub fn is_awaited(&self) -> bool {
        // Relaxed: the waiter changes the list before it takes the context's lock to evaluate the
        // condition.
        self.shared.waiters.count.load(Ordering::Relaxed) > 0
    }

    /// Makes the current or the next blocking [`poll`](Self::poll) of this context return, and
    /// makes threads that wait for it in [`poll_while`](Self::poll_while) reevaluate their
    /// conditions. For a condition that is not an event in one of the loop's queues: change the
    /// condition, then notify. From any thread; costs a system call only if a loop or a thread
    /// sleeps, or is about to.
    ///
    /// A notification is sticky: one that arrives between the caller's check of the condition and
    /// the sleep is not lost.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// AioContext::run(|ctx| {
    ///     let done = AtomicBool::new(false);
    ///     std::thread::scope(|scope| {
    ///         scope.spawn(|| {
    ///             done.store(true, Ordering::Relaxed);
    ///             ctx.notify();
    ///         });
    ///         while !done.load(Ordering::Relaxed) {
    ///             ctx.poll(true);
    ///         }
    ///     });
    /// });
    /// ```
    #[doc(alias = "aio_notify")]
    #[doc(alias = "aio_wait_kick")]
    pub fn notify(&self) {
        self.shared.scheduler.notify();
        self.shared.waiters.notify();
    }
}
