//! Wrong solutions of exercise 3.

use std::cell::RefCell;
use std::collections::VecDeque;

use coralio::coroutine::{Coroutine, suspend};

use crate::judge::channel::Channel;

type Queue = RefCell<VecDeque<Coroutine>>;

struct State {
    capacity: usize,
    values: RefCell<VecDeque<u32>>,
    senders: Queue,
    receivers: Queue,
}

impl State {
    fn new(capacity: usize) -> State {
        State { capacity, values: RefCell::default(), senders: Queue::default(), receivers: Queue::default() }
    }

    fn is_full(&self) -> bool {
        self.values.borrow().len() >= self.capacity
    }

    fn is_empty(&self) -> bool {
        self.values.borrow().is_empty()
    }

    fn append(&self, value: u32) {
        self.values.borrow_mut().push_back(value);
        wake_all(&self.receivers);
    }

    fn remove(&self) -> u32 {
        self.values.borrow_mut().pop_front().expect("`receive` has removed a value from an empty channel.")
    }
}

fn wait_in(queue: &Queue) {
    queue.borrow_mut().push_back(Coroutine::current().expect("only coroutines wait"));
    suspend();
}

fn wake_all(queue: &Queue) {
    let waiters = queue.take();
    waiters.into_iter().for_each(Coroutine::wake);
}

/// `receive` does not check again: another receiver may have taken the value.
pub struct ReceivesWithIf(State);

impl Channel for ReceivesWithIf {
    fn new(capacity: usize) -> ReceivesWithIf {
        ReceivesWithIf(State::new(capacity))
    }

    fn send(&self, value: u32) {
        while self.0.is_full() {
            wait_in(&self.0.senders);
        }
        self.0.append(value);
    }

    fn receive(&self) -> u32 {
        if self.0.is_empty() {
            wait_in(&self.0.receivers);
        }
        let value = self.0.remove();
        wake_all(&self.0.senders);
        value
    }
}

/// `send` does not check again: another sender may have filled the channel.
pub struct SendsWithIf(State);

impl Channel for SendsWithIf {
    fn new(capacity: usize) -> SendsWithIf {
        SendsWithIf(State::new(capacity))
    }

    fn send(&self, value: u32) {
        if self.0.is_full() {
            wait_in(&self.0.senders);
        }
        self.0.append(value);
    }

    fn receive(&self) -> u32 {
        while self.0.is_empty() {
            wait_in(&self.0.receivers);
        }
        let value = self.0.remove();
        wake_all(&self.0.senders);
        value
    }
}

/// `receive` forgets the senders that wait for room.
pub struct WakesNoSender(State);

impl Channel for WakesNoSender {
    fn new(capacity: usize) -> WakesNoSender {
        WakesNoSender(State::new(capacity))
    }

    fn send(&self, value: u32) {
        while self.0.is_full() {
            wait_in(&self.0.senders);
        }
        self.0.append(value);
    }

    fn receive(&self) -> u32 {
        while self.0.is_empty() {
            wait_in(&self.0.receivers);
        }
        self.0.remove()
    }
}

/// Has no bound.
pub struct Unbounded(State);

impl Channel for Unbounded {
    fn new(capacity: usize) -> Unbounded {
        Unbounded(State::new(capacity))
    }

    fn send(&self, value: u32) {
        self.0.append(value);
    }

    fn receive(&self) -> u32 {
        while self.0.is_empty() {
            wait_in(&self.0.receivers);
        }
        self.0.remove()
    }
}
