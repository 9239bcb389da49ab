//! Exercise 2. A mutex. After lessons 4 to 6.
//!
//! Fill in `lock` and `unlock`. Between the wake of a waiter and its run other coroutines run, and
//! may call `lock`. As always, a coroutine may also be woken for another reason. You may free the
//! lock, and let those that wait compete for it, or pass it on to one of them, as a `CoMutex` does.
//! (For the second, add a field.)

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
        todo!("free the lock, or pass it on; wake a coroutine that may take it")
    }
}
