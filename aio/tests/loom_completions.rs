//! Model-checks the thread pool's completions and the sleep of their reader, over every
//! interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio --release --test loom_completions`
//!
//! This compiles the library's own `completions.rs`, and simulates the eventfd by a flag that stays
//! set until the sleeper takes it. If a signal were lost, the reader would sleep with no other
//! thread to run, which loom reports as a deadlock. It finds one if the check after the sleep was
//! announced is removed, or if a completion takes the announcement back without a signal.
#![cfg(loom)]
#![allow(unsafe_code, unreachable_pub, dead_code)]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::{Condvar, Mutex};
use loom::thread;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};

    /// Like parking_lot's: there are no panics here.
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Mutex<T> {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

#[path = "../src/backend/thread_pool/completions.rs"]
mod completions;

use completions::Completions;

struct Engine {
    completions: Completions,
    /// The requests' buffers, without locks.
    memory: Vec<UnsafeCell<u64>>,
    /// The pool's queue.
    queue: Mutex<Vec<u64>>,
    /// The eventfd.
    kicked: Mutex<bool>,
    changed: Condvar,
}

impl Engine {
    fn new(depth: u32, requests: u64) -> Arc<Engine> {
        Arc::new(Engine {
            completions: Completions::new(depth),
            memory: (0..requests).map(|_| UnsafeCell::new(0)).collect(),
            queue: Mutex::new(Vec::new()),
            kicked: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// Performs one request as a worker.
    fn work(&self) {
        let Some(key) = self.queue.lock().unwrap().pop() else { return };
        self.memory[key as usize].with_mut(|memory| unsafe { *memory = key + 1 });
        if self.completions.push(key, key as i64 + 1) {
            *self.kicked.lock().unwrap() = true;
            self.changed.notify_one();
        }
    }

    fn reap(&self) -> u64 {
        let mut reaped = 0;
        while let Some((key, result)) = self.completions.peek() {
            self.completions.commit();
            assert_eq!(result, key as i64 + 1);
            assert_eq!(self.memory[key as usize].with(|memory| unsafe { *memory }), key + 1);
            reaped += 1;
        }
        reaped
    }

    fn sleep(&self) {
        assert!(self.completions.going_to_sleep());
        if self.completions.is_empty() {
            let mut kicked = self.kicked.lock().unwrap();
            while !*kicked {
                kicked = self.changed.wait(kicked).unwrap();
            }
            *kicked = false;
        }
        self.completions.awake();
    }
}

fn check(depth: u32, workers: usize, each: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let requests = (workers * each) as u64;
        let engine = Engine::new(depth, requests);
        engine.queue.lock().unwrap().extend(0..requests);
        let workers: Vec<_> = (0..workers)
            .map(|_| {
                let engine = Arc::clone(&engine);
                thread::spawn(move || (0..each).for_each(|_| engine.work()))
            })
            .collect();
        let mut reaped = 0;
        while reaped < requests {
            match engine.reap() {
                0 => engine.sleep(),
                some => reaped += some,
            }
        }
        assert!(engine.completions.peek().is_none());
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
}

#[test]
fn one_worker_loses_no_completion() {
    // W3, X6: no signal is lost in any interleaving; the completion publishes the request's memory
    check(3, 1, 3);
}

#[test]
fn two_workers_lose_no_completion() {
    // W3: nor if both workers publish at the same time
    check(2, 2, 1);
}

#[test]
fn queue_is_reused() {
    // E9: each request is queued once the previous one was reaped
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let engine = Engine::new(1, 2);
        let worker = {
            let engine = Arc::clone(&engine);
            thread::spawn(move || {
                for key in [0, 1] {
                    while engine.queue.lock().unwrap().last() != Some(&key) {
                        thread::yield_now();
                    }
                    engine.work();
                }
            })
        };
        for key in [0, 1] {
            engine.queue.lock().unwrap().push(key);
            while engine.reap() == 0 {
                engine.sleep();
            }
        }
        worker.join().unwrap();
    });
}
