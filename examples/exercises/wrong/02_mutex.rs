//! Wrong solutions of exercise 2.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use coralio::coroutine::{Coroutine, suspend};

use crate::judge::mutex::Mutex;

#[derive(Default)]
struct State {
    is_locked: Cell<bool>,
    waiters: RefCell<VecDeque<Coroutine>>,
}

impl State {
    fn wait(&self) {
        self.waiters.borrow_mut().push_back(Coroutine::current().expect("only coroutines lock"));
        suspend();
    }

    fn wake_one(&self) {
        let next = self.waiters.borrow_mut().pop_front();
        next.into_iter().for_each(Coroutine::wake);
    }

    fn wake_all(&self) {
        let waiters = self.waiters.take();
        waiters.into_iter().for_each(Coroutine::wake);
    }
}

/// Does not check again after the wake: another coroutine may have taken the lock meanwhile.
#[derive(Default)]
pub struct ChecksOnce(State);

impl Mutex for ChecksOnce {
    fn lock(&self) {
        if self.0.is_locked.get() {
            self.0.wait();
        }
        self.0.is_locked.set(true);
    }

    fn unlock(&self) {
        self.0.is_locked.set(false);
        self.0.wake_all();
    }
}

/// Wakes one entry of the list, which may be stale: a coroutine that was woken for another reason
/// is in the list twice.
#[derive(Default)]
pub struct WakesOne(State);

impl Mutex for WakesOne {
    fn lock(&self) {
        while self.0.is_locked.get() {
            self.0.wait();
        }
        self.0.is_locked.set(true);
    }

    fn unlock(&self) {
        self.0.is_locked.set(false);
        self.0.wake_one();
    }
}

/// Passes the lock on without freeing it, to a waiter that waits until it is free.
#[derive(Default)]
pub struct NeverFree(State);

impl Mutex for NeverFree {
    fn lock(&self) {
        while self.0.is_locked.get() {
            self.0.wait();
        }
        self.0.is_locked.set(true);
    }

    fn unlock(&self) {
        if self.0.waiters.borrow().is_empty() {
            self.0.is_locked.set(false);
        }
        self.0.wake_one();
    }
}

/// Forgets the waiters.
#[derive(Default)]
pub struct WakesNone(State);

impl Mutex for WakesNone {
    fn lock(&self) {
        while self.0.is_locked.get() {
            self.0.wait();
        }
        self.0.is_locked.set(true);
    }

    fn unlock(&self) {
        self.0.is_locked.set(false);
    }
}
