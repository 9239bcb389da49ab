//! A solution of exercise 1.

use std::cell::{Cell, RefCell};

use coralio::coroutine::{Coroutine, suspend};

use crate::judge::event::Event;

#[derive(Default)]
pub struct MyEvent {
    is_set: Cell<bool>,
    waiters: RefCell<Vec<Coroutine>>,
}

impl Event for MyEvent {
    fn wait(&self) {
        // A loop: the coroutine may be entered for another reason.
        while !self.is_set.get() {
            self.waiters.borrow_mut().push(Coroutine::current().expect("only coroutines wait"));
            suspend();
        }
    }

    fn set(&self) {
        self.is_set.set(true);
        // Nothing is borrowed while a coroutine may run.
        let waiters = self.waiters.take();
        waiters.into_iter().for_each(Coroutine::wake);
    }
}
