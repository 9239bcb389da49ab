//! The runtime's side of the cross-thread cases: loops that sleep, and the threads that wake them.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use coralio_runtime::{AioContext, Coroutine, Waker, spawn, suspend, yield_now};

use crate::measure::{PROCESS, asleep, clock_of, time, writes};

/// Runs `f` as the first coroutine of a context.
fn in_context<T>(f: impl FnOnce() -> T) -> T {
    AioContext::builder().run_coroutine(|_| f()).expect("there are descriptors for a loop")
}

fn my_waker() -> Waker {
    Coroutine::current().expect("called in a coroutine").waker()
}

/// Makes `times` wakes, half of them each way, between two contexts on two threads. Each loop
/// sleeps until it is woken.
fn ping_pong(times: u64, measure: impl FnOnce(&mut dyn FnMut()) -> f64) -> f64 {
    let (to_other, from_here) = mpsc::channel::<Waker>();
    let (to_here, from_other) = mpsc::channel::<Waker>();
    let other = thread::spawn(move || {
        in_context(|| {
            to_here.send(my_waker()).expect("the other end lives");
            let partner = from_here.recv().expect("the other end lives");
            for _ in 0..times / 2 + 1 {
                suspend();
                partner.wake();
            }
        });
    });
    let figure = in_context(|| {
        to_other.send(my_waker()).expect("the other end lives");
        let partner = from_other.recv().expect("the other end lives");
        let turn = || {
            partner.wake();
            suspend();
        };
        turn();
        measure(&mut || (0..times / 2).for_each(|_| turn()))
    });
    other.join().expect("no case panics");
    figure
}

/// Wakes a coroutine in a sleeping loop.
pub(crate) fn wake_sleeping(times: u64) -> f64 {
    ping_pong(times, |turns| time(times, turns))
}

/// The same, counted in write system calls: the eventfd's.
pub(crate) fn wake_sleeping_writes(times: u64) -> f64 {
    ping_pong(times, |turns| writes(times, turns))
}

/// Counts write system calls per wake of a coroutine in a loop that another coroutine keeps busy.
pub(crate) fn wake_busy(times: u64) -> f64 {
    let woken = Arc::new(AtomicU64::new(0));
    let (to_here, from_loop) = mpsc::channel();
    let busy = thread::spawn({
        let woken = Arc::clone(&woken);
        move || {
            in_context(|| {
                let over = Rc::new(Cell::new(false));
                let sleeper = spawn({
                    let over = Rc::clone(&over);
                    move || {
                        to_here.send(my_waker()).expect("the other end lives");
                        for _ in 0..times {
                            suspend();
                            woken.fetch_add(1, Ordering::Relaxed);
                        }
                        over.set(true);
                    }
                });
                while !over.get() {
                    yield_now();
                    // The two threads may share one CPU.
                    thread::yield_now();
                }
                sleeper.join().expect("it only counts");
            });
        }
    });
    let waker = from_loop.recv().expect("the other end lives");
    let figure = writes(times, || {
        for turn in 0..times {
            waker.wake();
            while woken.load(Ordering::Relaxed) == turn {
                thread::yield_now();
            }
        }
    });
    busy.join().expect("no case panics");
    figure
}

/// Measures a sleeping loop with a waiting coroutine.
fn idle_by(millis: u64, clock: impl FnOnce(&JoinHandle<()>) -> libc::clockid_t) -> f64 {
    let (to_here, from_loop) = mpsc::channel();
    let sleeper = thread::spawn(move || {
        in_context(|| {
            to_here.send(my_waker()).expect("the other end lives");
            suspend();
        });
    });
    let waker = from_loop.recv().expect("the other end lives");
    // A loop that has been idle for a second runs the deadlock check, once.
    thread::sleep(Duration::from_millis(millis + millis / 2));
    let took = asleep(millis, clock(&sleeper));
    waker.wake();
    sleeper.join().expect("no case panics");
    took
}

/// Measures the CPU time of the whole process, the measuring thread included.
pub(crate) fn idle(millis: u64) -> f64 {
    idle_by(millis, |_| PROCESS)
}

/// Measures the CPU time of the loop's thread.
pub(crate) fn idle_loop(millis: u64) -> f64 {
    idle_by(millis, clock_of)
}
