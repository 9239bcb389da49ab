//! Coroutines for the model checker: each is a thread; suspending parks it, waking unparks it.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;

use loom::sync::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, Ordering};

type Flag = Arc<(Mutex<bool>, Condvar)>;

loom::thread_local! {
    static WOKEN: Flag = Arc::new((Mutex::new(false), Condvar::new()));
    /// All waits of this thread end early.
    static CANCELLED: AtomicBool = AtomicBool::new(false);
    /// An operation of this thread was committed to failure: a timeout around it has expired.
    static CUT_SHORT: AtomicBool = AtomicBool::new(false);
    /// Called once instead of a suspension.
    static INSTEAD: Rc<RefCell<Option<Box<dyn FnOnce()>>>> = Rc::new(RefCell::new(None));
}

pub(crate) struct Coroutine(Flag);
pub(crate) struct Waker(Flag);

impl Coroutine {
    pub(crate) fn current() -> Option<Coroutine> {
        Some(Coroutine(WOKEN.with(Arc::clone)))
    }

    pub(crate) fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.0))
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        CANCELLED.with(|cancelled| cancelled.load(Ordering::Relaxed))
    }

    pub(crate) fn cut_short(&self) -> Cancelled {
        CUT_SHORT.with(|cut_short| cut_short.store(true, Ordering::Relaxed));
        Cancelled
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cancelled;

impl From<Cancelled> for std::io::Error {
    fn from(_: Cancelled) -> std::io::Error {
        std::io::Error::other("cancelled")
    }
}

impl Waker {
    pub(crate) fn wake_later(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_one();
    }
}

pub(crate) fn instead_of_suspending(f: impl FnOnce() + 'static) {
    INSTEAD.with(|instead| instead.replace(Some(Box::new(f))));
}

pub(crate) fn cancel_this_thread() {
    CANCELLED.with(|cancelled| cancelled.store(true, Ordering::Relaxed));
}

/// Runs `f` under a timeout that has expired from the start. As the library's `timeout` does,
/// reports the expiry if a wait was committed to failure, and then drops the value.
pub(crate) fn timeout<T>(f: impl FnOnce() -> T) -> Option<T> {
    cancel_this_thread();
    let value = f();
    CANCELLED.with(|cancelled| cancelled.store(false, Ordering::Relaxed));
    let is_over = CUT_SHORT.with(|cut_short| cut_short.swap(false, Ordering::Relaxed));
    (!is_over).then_some(value)
}

/// The records for messages; there are no messages here.
#[derive(Clone, Copy)]
pub(crate) enum WaitReason {
    CoMutex(*const LockOwner),
    Read(*const LockOwner),
    Write(*const LockOwner),
    Upgrade(*const LockOwner),
    CoQueue(usize),
    Semaphore(usize),
    Send(usize),
    Receive(usize),
    Notify(usize),
    Barrier(usize),
}

pub(crate) struct LockOwner;

impl LockOwner {
    pub(crate) const fn new() -> LockOwner {
        LockOwner
    }

    pub(crate) fn record(&self) {}
    pub(crate) fn record_movable(&self) {}
    pub(crate) fn clear(&self) {}
    pub(crate) fn panic_if_self(&self, _what: &str) {}
}

pub(crate) fn suspend_for(_reason: WaitReason) {
    suspend();
}

/// The models have no destructor that waits.
pub(crate) fn try_suspend_for(reason: WaitReason) -> Result<(), Cancelled> {
    suspend_for(reason);
    Ok(())
}

fn suspend() {
    if let Some(f) = INSTEAD.with(|instead| instead.take()) {
        return f();
    }
    let flag = WOKEN.with(Arc::clone);
    let mut woken = flag.0.lock().unwrap();
    while !*woken {
        woken = flag.1.wait(woken).unwrap();
    }
    *woken = false;
}

/// Runs `f`, which unwinds if it would have to wait.
pub(crate) fn unwind_instead_of_suspending(f: impl FnOnce()) {
    instead_of_suspending(|| resume_unwind(Box::new(Cancelled)));
    _ = catch_unwind(AssertUnwindSafe(f));
    INSTEAD.with(|instead| instead.take());
}
