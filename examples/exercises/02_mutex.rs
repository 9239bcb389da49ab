//! Exercise 2. A mutex. After lessons 4 and 5.
//!
//! Fill in `lock` and `unlock`. Between the wake of a waiter and its run other coroutines run, and
//! may call `lock`. As always, a coroutine may also be woken for another reason.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use coralio::coroutine::{Coroutine, suspend};

use crate::judge::mutex::Mutex;

#[derive(Default)]
pub struct MyMutex {
    is_locked: Cell<bool>,
    waiters: RefCell<VecDeque<Coroutine>>,
}

impl Mutex for MyMutex {
    fn lock(&self) {
        todo!("wait until the lock is free, and take it")
    }

    fn unlock(&self) {
        todo!("free the lock, and wake those that wait")
    }
}
