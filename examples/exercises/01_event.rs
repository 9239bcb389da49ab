//! Exercise 1. An event. After lesson 6.
//!
//! Coroutines wait until something has happened: for instance, until a connection is there. Fill in
//! `wait` and `set`. A coroutine may be entered or woken for any reason.
//!
//! You need `Coroutine::current` (lesson 2), `suspend` and `wake` (lesson 4). Waking a coroutine
//! twice, or one that has ended, does nothing.

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
        todo!("wait until `is_set`")
    }

    fn set(&self) {
        todo!("set `is_set`, and wake all waiters")
    }
}
