//! Exercise 3. A bounded channel. After lessons 5 and 6.
//!
//! Fill in `send` and `receive`. There may be several senders and several receivers. As always, a
//! coroutine may also be woken for another reason.

use std::cell::RefCell;
use std::collections::VecDeque;

use coralio::coroutine::{Coroutine, suspend};

use crate::judge::channel::Channel;

pub struct MyChannel {
    capacity: usize,
    values: RefCell<VecDeque<u32>>,
    senders: RefCell<VecDeque<Coroutine>>,
    receivers: RefCell<VecDeque<Coroutine>>,
}

impl Channel for MyChannel {
    fn new(capacity: usize) -> MyChannel {
        MyChannel { capacity, values: RefCell::default(), senders: RefCell::default(), receivers: RefCell::default() }
    }

    fn send(&self, value: u32) {
        todo!("wait while the channel is full, append the value, and wake the receivers")
    }

    fn receive(&self) -> u32 {
        todo!("wait while the channel is empty, remove the oldest value, and wake the senders")
    }
}
