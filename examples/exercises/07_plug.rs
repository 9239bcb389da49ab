//! Exercise 7. A plug. After lesson 13.
//!
//! Fill in `plug`, `push`, the destructor, and `iteration`, which the loop calls. Plugs nest, as
//! functions that plug call others that do: requests gather until the last one is dropped. Then the
//! loop submits them, in its next iteration. No destructor submits: a submit reaps, and so may run
//! other coroutines (lesson 13, act 3).

use std::cell::{Cell, RefCell};

use crate::judge::plug::{FULL, Kernel, Queue};

pub struct MyQueue {
    kernel: Kernel,
    pending: RefCell<Vec<u32>>,
    plugs: Cell<u32>,
}

pub struct MyPlug<'a>(&'a MyQueue);

impl Queue for MyQueue {
    type Plug<'a> = MyPlug<'a>;

    fn new(kernel: Kernel) -> MyQueue {
        MyQueue { kernel, pending: RefCell::default(), plugs: Cell::new(0) }
    }

    fn plug(&self) -> MyPlug<'_> {
        todo!("count the plug")
    }

    fn push(&self, request: u32) {
        self.pending.borrow_mut().push(request);
        todo!("submit, unless the requests should gather")
    }

    fn iteration(&self) {
        todo!("submit what has gathered, unless there is a plug")
    }
}

impl Drop for MyPlug<'_> {
    fn drop(&mut self) {
        todo!("the plug no longer counts")
    }
}
