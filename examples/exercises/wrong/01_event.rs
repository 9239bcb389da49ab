//! Wrong solutions of exercise 1.

use std::cell::{Cell, RefCell};

use coralio::coroutine::{Coroutine, suspend};

use crate::judge::event::Event;

fn current() -> Coroutine {
    Coroutine::current().expect("only coroutines wait")
}

/// Assumes after any return of `suspend` that the event is set.
#[derive(Default)]
pub struct ChecksOnce {
    is_set: Cell<bool>,
    waiters: RefCell<Vec<Coroutine>>,
}

impl Event for ChecksOnce {
    fn wait(&self) {
        if !self.is_set.get() {
            self.waiters.borrow_mut().push(current());
            suspend();
        }
    }

    fn set(&self) {
        self.is_set.set(true);
        self.waiters.take().into_iter().for_each(Coroutine::wake);
    }
}

/// Waits for a wake that may have happened already.
#[derive(Default)]
pub struct MissesThePast {
    waiters: RefCell<Vec<Coroutine>>,
    is_set: Cell<bool>,
}

impl Event for MissesThePast {
    fn wait(&self) {
        self.waiters.borrow_mut().push(current());
        suspend();
        while !self.is_set.get() {
            suspend();
        }
    }

    fn set(&self) {
        self.is_set.set(true);
        self.waiters.take().into_iter().for_each(Coroutine::wake);
    }
}

/// Has room for one waiter.
#[derive(Default)]
pub struct WakesOne {
    is_set: Cell<bool>,
    waiter: Cell<Option<Coroutine>>,
}

impl Event for WakesOne {
    fn wait(&self) {
        while !self.is_set.get() {
            self.waiter.set(Some(current()));
            suspend();
        }
    }

    fn set(&self) {
        self.is_set.set(true);
        self.waiter.take().into_iter().for_each(Coroutine::wake);
    }
}
