//! Waiting for a condition by polling, as code does that is no coroutine: a drain, a shutdown (rule X9).
//!
//! A thread that changes what others wait for calls [`AioContext::notify`]. Two flags are written before the other side's
//! is looked at, with a sequentially consistent fence between, as in `notify.rs`: the waiter has put itself on the list
//! before it evaluates its condition, the notifier has changed the state before it looks at the list.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::thread::{self, Thread};

use parking_lot::Mutex;

use crate::home::Home;

use super::AioContext;
use super::shared::Shared;

/// Those of other threads that wait for a context.
#[derive(Default)]
pub(crate) struct Onlookers {
    list: Mutex<Vec<Onlooker>>,
    count: AtomicUsize,
}

#[derive(Clone)]
enum Onlooker {
    /// Its thread runs a context, and polls that one meanwhile.
    Loop(Arc<Shared>),
    Thread(Thread),
}

impl Onlooker {
    fn here() -> Onlooker {
        match Home::current() {
            Some(home) => Onlooker::Loop(Arc::clone(&home.shared)),
            None => Onlooker::Thread(thread::current()),
        }
    }

    fn notify(&self) {
        match self {
            Onlooker::Loop(shared) => shared.notify(),
            Onlooker::Thread(thread) => thread.unpark(),
        }
    }

    fn is(&self, other: &Onlooker) -> bool {
        match (self, other) {
            (Onlooker::Loop(a), Onlooker::Loop(b)) => Arc::ptr_eq(a, b),
            (Onlooker::Thread(a), Onlooker::Thread(b)) => a.id() == b.id(),
            _ => false,
        }
    }
}

impl Onlookers {
    fn notify(&self) {
        // Pairs with the fence in `poll_while`.
        fence(Ordering::SeqCst);
        if self.count.load(Ordering::Relaxed) > 0 {
            let list = self.list.lock().clone();
            list.iter().for_each(Onlooker::notify);
        }
    }
}

impl AioContext {
    /// Runs the loop until `condition` is false. On the context's home thread it polls; another thread waits: in the loop of
    /// its own context, if it has one, or else blocked. A thread that changes what the condition is about calls
    /// [`notify`](Self::notify) afterwards. The condition is evaluated under the context's lock, which is given up wholly while this
    /// sleeps, however often it was acquired.
    ///
    /// ```
    /// use coralio_runtime::{AioContext, spawn, yield_now};
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
    /// Two loops may not wait for each other in this way: each has its own lock, and wants the other's. Nor may a coroutine
    /// keep a guard of this lock, made on another thread than home, while it is suspended and others of its thread come
    /// here: dropping it while the lock is given up ends the process.
    ///
    /// # Panics
    ///
    /// With the panic of what it runs.
    ///
    /// # Control
    ///
    /// May enter coroutines. It blocks the thread, not the coroutine.
    #[doc(alias = "AIO_WAIT_WHILE")]
    pub fn poll_while(&self, mut condition: impl FnMut() -> bool) {
        if self.is_home() {
            let _guard = self.acquire();
            while condition() {
                self.poll(true);
            }
            return;
        }
        struct Gone<'a>(&'a Onlookers, Onlooker);
        impl Drop for Gone<'_> {
            fn drop(&mut self) {
                let mut list = self.0.list.lock();
                if let Some(mine) = list.iter().position(|onlooker| onlooker.is(&self.1)) {
                    list.swap_remove(mine);
                }
                self.0.count.store(list.len(), Ordering::Relaxed);
            }
        }
        let onlookers = &self.shared.onlookers;
        {
            let mut list = onlookers.list.lock();
            list.push(Onlooker::here());
            onlookers.count.store(list.len(), Ordering::Relaxed);
        }
        let _gone = Gone(onlookers, Onlooker::here());
        // Pairs with the fence in `Onlookers::notify`.
        fence(Ordering::SeqCst);
        loop {
            let guard = self.acquire();
            if !condition() {
                return;
            }
            drop(guard);
            self.shared.unlocked_by_foreigner(|| match AioContext::current() {
                Some(own) => drop(own.poll(true)),
                None => thread::park(),
            });
        }
    }

    /// Waits until the context's I/O engine has no request in flight and none pending, as
    /// [`poll_while`](Self::poll_while) waits. Requests that coroutines make meanwhile are waited for too. Returns at once if
    /// the context has no engine.
    ///
    /// # Panics
    ///
    /// With the panic of what the loop runs.
    ///
    /// # Control
    ///
    /// May enter coroutines. Blocks the thread, not the coroutine.
    #[doc(alias = "bdrv_drain_all")]
    pub fn drain(&self) {
        self.poll_while(|| self.source().is_some_and(|source| !source.is_idle()));
    }

    /// Whether another thread waits in [`poll_while`](Self::poll_while) for this context. An engine that holds the
    /// context's lock asks after it has changed a counter, and calls [`notify`](Self::notify) if so. For authors of engines.
    ///
    /// # Control
    ///
    /// Never switches.
    #[inline]
    pub fn is_awaited(&self) -> bool {
        // Relaxed: the list is changed before the context's lock is taken to evaluate the condition.
        self.shared.onlookers.count.load(Ordering::Relaxed) > 0
    }

    /// Makes the current or the next blocking [`poll`](Self::poll) of this context return, and threads that wait for this
    /// context in [`poll_while`](Self::poll_while) evaluate their conditions again. For a condition that is on none of the
    /// loop's queues: change the condition, then notify. From any thread; takes a system call only if a loop or a thread
    /// sleeps, or is about to.
    ///
    /// The notification is sticky: one that comes between the caller's check of the condition and the sleep is not lost.
    ///
    /// ```
    /// use coralio_runtime::AioContext;
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
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "aio_notify")]
    #[doc(alias = "aio_wait_kick")]
    pub fn notify(&self) {
        self.shared.notify();
        self.shared.onlookers.notify();
    }
}
