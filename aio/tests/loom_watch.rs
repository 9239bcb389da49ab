//! Model-checks the sleep on a backend's ring and the poll request that ends it, over every
//! interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio --release --test loom_watch`
//!
//! This compiles the library's own `poll_event.rs`, and simulates a kernel: a ring, poll requests,
//! and a sleep that ends when something is on the ring. If a call were lost, the home thread would
//! sleep forever, which loom reports as a deadlock.
#![cfg(loom)]
#![allow(unsafe_code, unreachable_pub, dead_code)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use loom::sync::{Condvar, Mutex};
use loom::thread;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

#[path = "../src/backend/poll_event.rs"]
mod poll_event;

use poll_event::{Arm, CompletionRing, POLL_KEY, PollEvent};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub key: u64,
}

const SLOTS: usize = 8;
/// A request's completion.
const DONE: u64 = 1;
const FD: i32 = 7;

/// State inside the kernel.
#[derive(Default)]
struct Inside {
    /// Poll requests in flight.
    polls: u32,
    readable: bool,
}

struct Machine {
    poll_event: PollEvent,
    ring: [AtomicU64; SLOTS],
    head: AtomicU32,
    tail: AtomicU32,
    /// The poll request's memory.
    request: UnsafeCell<u32>,
    inside: Mutex<Inside>,
    changed: Condvar,
    /// The lock for reaping, and the number of completions reaped.
    reaped: Mutex<u32>,
}

impl Machine {
    fn new() -> Machine {
        Machine {
            poll_event: PollEvent::default(),
            ring: Default::default(),
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            request: UnsafeCell::new(0),
            inside: Mutex::default(),
            changed: Condvar::new(),
            reaped: Mutex::new(0),
        }
    }

    fn post(&self, _inside: &mut Inside, key: u64) {
        let tail = self.tail.load(Relaxed);
        self.ring[tail as usize % SLOTS].store(key, Relaxed);
        self.tail.store(tail + 1, Release);
        self.changed.notify_one();
    }

    /// Makes the descriptor readable.
    fn signal(&self) {
        let mut inside = self.inside.lock().unwrap();
        inside.readable = true;
        while inside.polls > 0 {
            inside.polls -= 1;
            // The kernel's last access to the request.
            self.request.with(|request| unsafe { *request });
            self.post(&mut inside, POLL_KEY);
        }
    }

    /// Completes a request.
    fn complete(&self) {
        self.post(&mut self.inside.lock().unwrap(), DONE);
    }

    fn peek(&self) -> Option<Completion> {
        self.poll_event.peek(self)
    }

    fn reap(&self) -> u32 {
        let mut reaped = self.reaped.lock().unwrap();
        while self.peek().is_some() {
            self.advance();
            *reaped += 1;
        }
        *reaped
    }

    /// Sleeps until something is on the ring; with `ends_early` not at all, as if by a timer.
    fn wait(&self, ends_early: bool) {
        let _asleep = self.poll_event.fall_asleep();
        if self.poll_event.arm(FD) == Arm::Submit {
            self.request.with_mut(|request| unsafe { *request += 1 });
            let mut inside = self.inside.lock().unwrap();
            assert_eq!(inside.polls, 0, "two poll requests are out");
            if inside.readable {
                self.post(&mut inside, POLL_KEY);
            } else {
                inside.polls += 1;
            }
        }
        let mut inside = self.inside.lock().unwrap();
        while !ends_early && self.head.load(Relaxed) == self.tail.load(Relaxed) {
            inside = self.changed.wait(inside).unwrap();
        }
    }

    /// Waits like a loop: checks, sleeps, checks again.
    fn wait_for_the_descriptor(&self) {
        while !self.reset() {
            self.peek();
            self.wait(false);
            // Lets a thread proceed that is about to consume the call that ended the sleep.
            thread::yield_now();
        }
    }

    /// Resets the descriptor's readiness.
    fn reset(&self) -> bool {
        std::mem::take(&mut self.inside.lock().unwrap().readable)
    }
}

impl CompletionRing for Machine {
    fn peek(&self) -> Option<Completion> {
        let head = self.head.load(Relaxed);
        (head != self.tail.load(Acquire)).then(|| Completion { key: self.ring[head as usize % SLOTS].load(Relaxed) })
    }

    fn advance(&self) {
        self.head.store(self.head.load(Relaxed) + 1, Release);
    }
}

fn check(body: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(body);
}

#[test]
fn poll_completion_ends_the_sleep_while_another_thread_peeks() {
    // W3: two calls, one after the other; each ends a sleep
    check(|| {
        let machine = Arc::new(Machine::new());
        let other = Arc::clone(&machine);
        let other = thread::spawn(move || {
            other.signal();
            other.reap();
        });
        machine.wait_for_the_descriptor();
        other.join().unwrap();
        let other = Arc::clone(&machine);
        let other = thread::spawn(move || {
            other.reap();
            other.signal();
        });
        machine.wait_for_the_descriptor();
        other.join().unwrap();
    });
}

#[test]
fn one_poll_request_is_armed() {
    // E9, W3: the home thread peeks without the lock, and sleeps again, while another thread is
    // between its look at the ring and the swap
    check(|| {
        let machine = Arc::new(Machine::new());
        machine.wait(true);
        machine.signal();
        machine.reset();
        let other = Arc::clone(&machine);
        let other = thread::spawn(move || other.reap());
        machine.peek();
        machine.wait(true);
        machine.peek();
        machine.wait(true);
        other.join().unwrap();
        machine.signal();
        assert_eq!((machine.reap(), machine.peek()), (0, None));
        assert!(!machine.poll_event.is_armed());
    });
}

#[test]
fn completions_are_taken_once() {
    // E9: a completion behind a call is reaped once, whichever thread consumes the call
    check(|| {
        let machine = Arc::new(Machine::new());
        machine.wait(true);
        let other = Arc::clone(&machine);
        let other = thread::spawn(move || {
            other.signal();
            other.complete();
            other.reap();
        });
        while machine.reap() == 0 {
            machine.wait(false);
            thread::yield_now();
        }
        other.join().unwrap();
        assert_eq!((machine.reap(), machine.peek()), (1, None));
    });
}
