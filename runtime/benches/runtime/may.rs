//! The peer: `may`, stackful coroutines on worker threads; here with one worker.
//!
//! Otherwise in its default configuration. So each spawn writes to its worker's eventfd, and each
//! end scans a stack of 32 KiB to find how much was used: that dominates its `spawn-join`. While
//! coroutines yield, its worker does not poll for I/O, where our loop begins another iteration.

#![allow(unsafe_code)]

use std::hint::black_box;
use std::sync::{Arc, Once};

use ::may::coroutine::{JoinHandle, spawn, yield_now};
use ::may::sync::Mutex;

use crate::measure::time;

fn start<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    // SAFETY: no case touches thread-locals, and the stack of 32 KiB is large enough for every
    // case.
    unsafe { spawn(f) }
}

/// Runs `coroutines` coroutines, each of which does its share of `times`.
fn share<F: FnOnce(u64) + Send + 'static>(coroutines: u64, times: u64, share: impl Fn() -> F) -> f64 {
    static CONFIGURED: Once = Once::new();
    // By default a worker pins itself to a CPU of its own choice, regardless of `--pin`.
    CONFIGURED.call_once(|| ::may::config().set_workers(1).set_worker_pin(false));
    // All start together: the first one starts the others.
    let shares: Vec<_> = (0..coroutines).map(|_| share()).collect();
    let all = move || {
        let coroutines: Vec<_> = shares.into_iter().map(|share| start(move || share(times / coroutines))).collect();
        coroutines.into_iter().for_each(|one| one.join().expect("no case panics"));
    };
    time(times, || start(all).join().expect("no case panics"))
}

/// Spawns a coroutine, and joins it from another one.
pub(crate) fn spawn_and_join_do_not_allocate(times: u64) -> f64 {
    share(1, times, || |times| (0..times).for_each(|caught| drop(black_box(start(move || caught).join()))))
}

/// Two coroutines yield to each other.
pub(crate) fn yield_two(times: u64) -> f64 {
    share(2, times, || |times| (0..times).for_each(|_| yield_now()))
}

/// Locks and unlocks an uncontended mutex.
pub(crate) fn mutex(times: u64) -> f64 {
    share(1, times, || {
        |times| {
            let mutex = Mutex::new(0);
            (0..times).for_each(|_| *black_box(&mutex).lock().expect("no case panics") += 1);
        }
    })
}

/// Four coroutines contend for one lock, and yield while holding it.
pub(crate) fn mutex_contended(times: u64) -> f64 {
    let mutex = Arc::new(Mutex::new(0));
    share(4, times, || {
        let mutex = Arc::clone(&mutex);
        move |times| {
            for _ in 0..times {
                let mut guard = mutex.lock().expect("no case panics");
                *guard += 1;
                yield_now();
            }
        }
    })
}
