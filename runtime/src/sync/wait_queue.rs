//! The queue in which coroutines wait: first come, first served, across contexts and threads.
//!
//! A node of the queue lies on the stack of the waiting coroutine, so waiting allocates nothing.
//! The queue is guarded by a spin lock that is held for a few instructions and never over foreign
//! code. A node leaves the queue in one of two ways: a granter removes it, or its owner does when
//! it unwinds or is cancelled. After its grant only the owner touches it:
//!
//! - *a node is in the line or its owner's*: the owner leaves the frame that contains the node only
//!   after the node was granted or removed. A granter touches a node only under the spin lock, and
//!   takes the waker out before it unlocks.
//!
//! A node carries a `P`: the owner's request, or the value that it is handed. Besides the queue the
//! spin lock guards an `S`, for primitives whose state needs more than one atomic word.

#![allow(unsafe_code)]

use std::cell::{Cell, UnsafeCell};
use std::marker::{PhantomData, PhantomPinned};
use std::ptr::{self, NonNull};

use crate::atomic::{AtomicBool, Backoff, Ordering};
use crate::coroutine::{Cancelled, WaitReason};
use crate::scheduler::{suspend_for, try_suspend_for};
use crate::task::{Coroutine, Waker};

/// A coroutine's node in the queue.
struct Node<P> {
    waker: Cell<Option<Waker>>,
    granted: AtomicBool,
    prev: Cell<*const Node<P>>,
    next: Cell<*const Node<P>>,
    payload: UnsafeCell<P>,
    _pinned: PhantomPinned,
}

/// The data guarded by the spin lock: both ends of the queue, and the user's state.
struct Inside<P, S> {
    head: *const Node<P>,
    tail: *const Node<P>,
    state: S,
}

/// A queue of waiting coroutines.
pub(crate) struct WaitQueue<P = (), S = ()> {
    spin: AtomicBool,
    inside: UnsafeCell<Inside<P, S>>,
}

// SAFETY: `inside`, the nodes' links and their payloads are touched only under the spin lock, or by
// the current owner of a node; so a `P` or an `S` may move from thread to thread. A waker may be
// used from any thread.
unsafe impl<P: Send, S: Send> Send for WaitQueue<P, S> {}
// SAFETY: as above.
unsafe impl<P: Send, S: Send> Sync for WaitQueue<P, S> {}

/// The queue, locked.
pub(crate) struct Locked<'a, P = (), S = ()> {
    queue: &'a WaitQueue<P, S>,
    _not_send: PhantomData<*const ()>,
}

/// Returns after each wake whether a wait of this coroutine ends without the grant. `None`: it
/// always waits for the grant.
pub(crate) type EndsEarly = Option<fn(&Coroutine) -> bool>;
/// Ends the wait if the coroutine is cancelled.
pub(crate) const IF_CANCELLED: EndsEarly = Some(Coroutine::is_cancelled);

/// How a waiter leaves without keeping a grant.
pub(crate) enum Abandoned<'a, P, S> {
    /// It left the queue, which is still locked: the waiters behind it may have waited only for it.
    Left(Locked<'a, P, S>),
    /// It unwinds after its grant: the grant must be passed on.
    Granted(P),
}

impl<P: Default, S: Default> Default for WaitQueue<P, S> {
    fn default() -> WaitQueue<P, S> {
        WaitQueue::new(S::default())
    }
}

impl<P: Default, S> WaitQueue<P, S> {
    pub(crate) const fn new(state: S) -> WaitQueue<P, S> {
        WaitQueue {
            spin: AtomicBool::new(false),
            inside: UnsafeCell::new(Inside { head: ptr::null(), tail: ptr::null(), state }),
        }
    }

    /// Takes the spin lock. Critical sections are a few instructions long.
    pub(crate) fn lock(&self) -> Locked<'_, P, S> {
        let backoff = Backoff::new();
        // Acquire pairs with the release in `drop`: the last holder's changes to the queue are
        // visible.
        while self.spin.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            backoff.snooze();
        }
        Locked { queue: self, _not_send: PhantomData }
    }

    /// Joins the queue, calls `before_sleep` with the queue unlocked, and waits for the grant.
    /// Returns the node's payload at that time; the error, if the wait ends early, has it as well.
    ///
    /// # Control
    ///
    /// Yields, or may yield if it can end early.
    #[track_caller]
    pub(crate) fn wait(
        &self,
        mut locked: Locked<'_, P, S>,
        payload: P,
        reason: WaitReason,
        ends_early: EndsEarly,
        before_sleep: impl FnOnce(),
        gone: impl Fn(Abandoned<'_, P, S>),
    ) -> Result<P, P> {
        /// Leaves the queue when the coroutine unwinds.
        struct QueuedGuard<'a, P: Default, S, G: Fn(Abandoned<'_, P, S>)> {
            queue: &'a WaitQueue<P, S>,
            node: &'a Node<P>,
            gone: G,
        }
        impl<P: Default, S, G: Fn(Abandoned<'_, P, S>)> Drop for QueuedGuard<'_, P, S, G> {
            fn drop(&mut self) {
                (self.gone)(match self.queue.leave(self.node) {
                    Some(locked) => Abandoned::Left(locked),
                    // SAFETY: *a node is in the line or its owner's*: it was granted.
                    None => Abandoned::Granted(std::mem::take(unsafe { &mut *self.node.payload.get() })),
                });
            }
        }
        let Some(current) = Coroutine::current() else {
            // The caller may have set state for one more waiter.
            gone(Abandoned::Left(locked));
            panic!("would block outside a coroutine: spawn one, or use the `try_` variant");
        };
        let node = Node {
            waker: Cell::new(Some(current.waker())),
            granted: AtomicBool::new(false),
            prev: Cell::new(ptr::null()),
            next: Cell::new(ptr::null()),
            payload: UnsafeCell::new(payload),
            _pinned: PhantomPinned,
        };
        locked.push(&node);
        let queued = QueuedGuard { queue: self, node: &node, gone };
        drop(locked);
        before_sleep();
        let mut refused = false;
        // Acquire pairs with the release in `grant_first`: the granter's earlier writes are
        // visible.
        while !node.granted.load(Ordering::Acquire) {
            if refused || ends_early.is_some_and(|ends_early| ends_early(&current)) {
                if let Some(locked) = self.leave(&node) {
                    (queued.gone)(Abandoned::Left(locked));
                    std::mem::forget(queued);
                    // The commit point: the node is out of the queue and was not granted. Only now
                    // may a timeout be marked as hit.
                    let _: Cancelled = current.cut_short();
                    return Err(node.payload.into_inner());
                }
            }
            match ends_early {
                // An error in a destructor on the coroutine's own unwinding stack.
                Some(_) => refused = try_suspend_for(reason).is_err(),
                None => suspend_for(reason),
            }
        }
        std::mem::forget(queued);
        Ok(node.payload.into_inner())
    }

    /// Removes a node, unless it was granted. Returns the locked queue if the node was in it.
    fn leave(&self, node: &Node<P>) -> Option<Locked<'_, P, S>> {
        // Acquire pairs with the release in `grant_first`.
        if node.granted.load(Ordering::Acquire) {
            return None;
        }
        let mut locked = self.lock();
        // It may have been granted before the queue was locked.
        if node.granted.load(Ordering::Relaxed) {
            return None;
        }
        locked.remove(node);
        Some(locked)
    }

    /// Wakes the waiters that `grant_next` grants, one after the other, each with the queue
    /// unlocked. Others may join or grant in between, so each step must leave everything
    /// consistent.
    #[track_caller]
    pub(crate) fn grant_all<'a>(
        &'a self,
        mut locked: Locked<'a, P, S>,
        mut grant_next: impl FnMut(&mut Locked<'_, P, S>) -> Option<Waker>,
    ) {
        while let Some(next) = grant_next(&mut locked) {
            drop(locked);
            next.wake_later();
            // Not under the lock: it may be the last reference to the waiter's context.
            drop(next);
            locked = self.lock();
        }
    }
}

impl<P, S> Locked<'_, P, S> {
    fn inside(&mut self) -> &mut Inside<P, S> {
        // SAFETY: the spin lock is held, and `self` is borrowed exclusively.
        unsafe { &mut *self.queue.inside.get() }
    }

    /// Returns the user's state.
    pub(crate) fn state(&mut self) -> &mut S {
        &mut self.inside().state
    }

    pub(crate) fn is_empty(&mut self) -> bool {
        self.inside().head.is_null()
    }

    /// Counts the waiters.
    pub(crate) fn len(&mut self) -> usize {
        let mut count = 0;
        let mut node = self.inside().head;
        // SAFETY: as in `push`.
        while let Some(waiter) = unsafe { node.as_ref() } {
            count += 1;
            node = waiter.next.get();
        }
        count
    }

    fn push(&mut self, node: &Node<P>) {
        assert!(!node.granted.load(Ordering::Relaxed), "a node is queued once, until it is granted");
        let inside = self.inside();
        node.prev.set(inside.tail);
        match NonNull::new(inside.tail.cast_mut()) {
            // SAFETY: *a node is in the line or its owner's*: it is in the queue, so it is alive.
            Some(last) => unsafe { last.as_ref() }.next.set(node),
            None => inside.head = node,
        }
        inside.tail = node;
    }

    fn remove(&mut self, node: &Node<P>) {
        let inside = self.inside();
        let (prev, next) = (node.prev.get(), node.next.get());
        match NonNull::new(prev.cast_mut()) {
            // SAFETY: as in `push`.
            Some(prev) => unsafe { prev.as_ref() }.next.set(next),
            None => inside.head = next,
        }
        match NonNull::new(next.cast_mut()) {
            // SAFETY: as in `push`.
            Some(next) => unsafe { next.as_ref() }.prev.set(prev),
            None => inside.tail = prev,
        }
    }

    /// Returns the payload of the first waiter.
    pub(crate) fn first(&mut self) -> Option<&mut P> {
        // SAFETY: as in `push`; the owner does not touch the payload while the node is queued, and
        // the queue is borrowed exclusively.
        unsafe { self.inside().head.as_ref().map(|node| &mut *node.payload.get()) }
    }

    /// Removes the first waiter and grants it. The caller wakes it after unlocking.
    pub(crate) fn grant_first(&mut self) -> Option<Waker> {
        // SAFETY: as in `push`.
        let node = unsafe { self.inside().head.as_ref() }?;
        self.remove(node);
        let waker = node.waker.take();
        // Release pairs with the acquires in `wait` and `leave`. After the store the node
        // belongs to its owner.
        node.granted.store(true, Ordering::Release);
        waker
    }

    /// Grants the first waiter, unlocks, and wakes it. Returns whether there was one.
    #[track_caller]
    pub(crate) fn wake_first(mut self) -> bool {
        let Some(waker) = self.grant_first() else { return false };
        drop(self);
        waker.wake_later();
        true
    }
}

impl<P, S> Drop for Locked<'_, P, S> {
    fn drop(&mut self) {
        // Release pairs with the acquire in `lock`.
        self.queue.spin.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{AioContext, spawn, timeout};
    use std::time::Duration;

    #[test]
    fn grant_after_the_deadline_check_is_a_success() {
        // S4: the wait finds its deadline passed, and is granted before it has left the queue
        AioContext::run(|_| {
            static QUEUE: WaitQueue<i32> = WaitQueue::new(());
            let check_then_grant = |current: &Coroutine| {
                let is_over = current.is_cancelled();
                let mut locked = QUEUE.lock();
                *locked.first().expect("the waiter is in the queue") = 7;
                drop(locked.grant_first());
                is_over
            };
            let wait = move || QUEUE.wait(QUEUE.lock(), 0, WaitReason::Enter, Some(check_then_grant), || (), |_| ());
            let waiter = spawn(move || timeout(Duration::ZERO, wait));
            assert_eq!(waiter.join().unwrap(), Ok(Ok(7)));
        });
    }
}
