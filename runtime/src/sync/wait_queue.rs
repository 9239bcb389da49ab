//! The line in which coroutines wait: first come, first served, across contexts and threads.
//!
//! A node of the line lies on the stack of the coroutine that waits in it, so waiting allocates nothing. The line is
//! guarded by a spin lock that is held for a few instructions and never over foreign code. A node leaves the line in one
//! of two ways: whoever grants takes it off, or its owner does when it unwinds. After its grant nobody but the owner
//! touches it:
//!
//! - *a node is in the line or its owner's*: the owner leaves the frame that the node lies in only after the node was
//!   granted or taken off. A granter touches a node under the spin lock alone, and takes the waker out before it lets go.

#![allow(unsafe_code)]

use std::cell::{Cell, UnsafeCell};
use std::marker::{PhantomData, PhantomPinned};
use std::ptr::{self, NonNull};

use crate::atomic::{AtomicBool, Backoff, Ordering};
use crate::coroutine::waiting::{Waiting, suspend_for};
use crate::coroutine::{Cancelled, Coroutine, Waker};

/// One coroutine's place in the line.
struct Node {
    waker: Cell<Option<Waker>>,
    granted: AtomicBool,
    prev: Cell<*const Node>,
    next: Cell<*const Node>,
    _pinned: PhantomPinned,
}

/// Both ends of the line.
struct Ends {
    head: *const Node,
    tail: *const Node,
}

/// A line of waiting coroutines.
pub(super) struct WaitQueue {
    spin: AtomicBool,
    ends: UnsafeCell<Ends>,
}

// SAFETY: the ends and the nodes' links are touched under the spin lock alone; a waker may be used from any thread.
unsafe impl Send for WaitQueue {}
// SAFETY: as above.
unsafe impl Sync for WaitQueue {}

/// The line, held.
pub(super) struct Locked<'a> {
    queue: &'a WaitQueue,
    _not_send: PhantomData<*const ()>,
}

impl WaitQueue {
    pub(super) const fn new() -> WaitQueue {
        WaitQueue { spin: AtomicBool::new(false), ends: UnsafeCell::new(Ends { head: ptr::null(), tail: ptr::null() }) }
    }

    /// Takes the spin lock. Nothing that is done under it takes longer than a few instructions.
    pub(super) fn lock(&self) -> Locked<'_> {
        let backoff = Backoff::new();
        // Acquire pairs with the release in `drop`: what the last holder did to the line is seen.
        while self.spin.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            backoff.snooze();
        }
        Locked { queue: self, _not_send: PhantomData }
    }

    /// Stands in line, then calls `before_sleep` without the line held, and waits for the grant.
    ///
    /// `refused` is called if the coroutine unwinds after the grant: what was granted must be passed on.
    ///
    /// # Control
    ///
    /// Yields.
    #[track_caller]
    pub(super) fn wait(&self, line: Locked<'_>, waiting: Waiting, before_sleep: impl FnOnce(), refused: impl Fn()) {
        let granted = self.wait_unless(|_| false, line, waiting, before_sleep, refused);
        debug_assert!(granted.is_ok(), "only what is cancelled ends early");
    }

    /// As `wait`, but ends early, without the grant, if the coroutine is cancelled.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub(super) fn wait_cancellable(
        &self,
        line: Locked<'_>,
        waiting: Waiting,
        before_sleep: impl FnOnce(),
        refused: impl Fn(),
    ) -> Result<(), Cancelled> {
        self.wait_unless(Coroutine::is_cancelled, line, waiting, before_sleep, refused)
    }

    #[track_caller]
    fn wait_unless(
        &self,
        cancelled: impl Fn(&Coroutine) -> bool,
        line: Locked<'_>,
        waiting: Waiting,
        before_sleep: impl FnOnce(),
        refused: impl Fn(),
    ) -> Result<(), Cancelled> {
        /// Leaves the line on the way out, whichever it is.
        struct Leave<'a, R: Fn()>(&'a WaitQueue, &'a Node, R);
        impl<R: Fn()> Drop for Leave<'_, R> {
            fn drop(&mut self) {
                if !self.0.leave(self.1) {
                    self.2();
                }
            }
        }
        let current = Coroutine::current().expect("a lock between coroutines is waited for in a coroutine: spawn one");
        let node = Node {
            waker: Cell::new(Some(current.waker())),
            granted: AtomicBool::new(false),
            prev: Cell::new(ptr::null()),
            next: Cell::new(ptr::null()),
            _pinned: PhantomPinned,
        };
        let mut line = line;
        line.push(&node);
        let leave = Leave(self, &node, refused);
        drop(line);
        before_sleep();
        // Acquire pairs with the release in `grant_first`: what the granter did before is seen.
        while !node.granted.load(Ordering::Acquire) {
            if cancelled(&current) && self.leave(&node) {
                std::mem::forget(leave);
                return Err(Cancelled);
            }
            suspend_for(waiting);
        }
        std::mem::forget(leave);
        Ok(())
    }

    /// Takes a node off the line, unless it was granted. Returns whether it was still in line.
    fn leave(&self, node: &Node) -> bool {
        // Acquire pairs with the release in `grant_first`.
        if node.granted.load(Ordering::Acquire) {
            return false;
        }
        let mut line = self.lock();
        let still_waiting = !node.granted.load(Ordering::Relaxed);
        if still_waiting {
            line.remove(node);
        }
        still_waiting
    }
}

impl Locked<'_> {
    fn ends(&mut self) -> &mut Ends {
        // SAFETY: the spin lock is held, and `self` is borrowed exclusively.
        unsafe { &mut *self.queue.ends.get() }
    }

    pub(super) fn is_empty(&mut self) -> bool {
        self.ends().head.is_null()
    }

    /// How many wait.
    pub(super) fn len(&mut self) -> usize {
        let mut count = 0;
        let mut node = self.ends().head;
        // SAFETY: as in `push`.
        while let Some(waiting) = unsafe { node.as_ref() } {
            count += 1;
            node = waiting.next.get();
        }
        count
    }

    fn push(&mut self, node: &Node) {
        assert!(!node.granted.load(Ordering::Relaxed), "a node stands in line until it is granted, and once");
        let ends = self.ends();
        node.prev.set(ends.tail);
        match NonNull::new(ends.tail.cast_mut()) {
            // SAFETY: *a node is in the line or its owner's*: it is in the line, so it lives.
            Some(last) => unsafe { last.as_ref() }.next.set(node),
            None => ends.head = node,
        }
        ends.tail = node;
    }

    fn remove(&mut self, node: &Node) {
        let ends = self.ends();
        let (prev, next) = (node.prev.get(), node.next.get());
        match NonNull::new(prev.cast_mut()) {
            // SAFETY: as in `push`.
            Some(prev) => unsafe { prev.as_ref() }.next.set(next),
            None => ends.head = next,
        }
        match NonNull::new(next.cast_mut()) {
            // SAFETY: as in `push`.
            Some(next) => unsafe { next.as_ref() }.prev.set(prev),
            None => ends.tail = prev,
        }
    }

    /// Takes the first one off the line and grants it. The caller wakes it when the line is let go.
    pub(super) fn grant_first(&mut self) -> Option<Waker> {
        // SAFETY: as in `push`.
        let node = unsafe { self.ends().head.as_ref() }?;
        self.remove(node);
        let waker = node.waker.take();
        // Release pairs with the acquires in `wait`. The node is its owner's from here on.
        node.granted.store(true, Ordering::Release);
        waker
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Release pairs with the acquire in `lock`.
        self.queue.spin.store(false, Ordering::Release);
    }
}
