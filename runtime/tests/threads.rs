//! Loop threads: work from anywhere, results back, a clean end. Alone in its program: it counts descriptors and mappings.

mod common;

use std::cell::Cell;
use std::fs;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::{Log, panic_of, scaled, text};
use coralio_runtime::{
    AioContext, Cancelled, CoMutex, Coroutine, LoopThread, is_cancelled, sleep, spawn, suspend, yield_now,
};
use parking_lot::Mutex;

/// The tests of this file count what the process has: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

#[test]
fn work_from_anywhere() {
    // X10: work is spawned from a plain thread, from another loop and from the loop itself; results and panics come back
    let _alone = ALONE.lock();
    let [left, right] = ["left", "right"].map(|name| LoopThread::start(name).unwrap());
    let name = || thread::current().name().map(str::to_string);
    assert_eq!(left.context().spawn(name).join().unwrap().unwrap(), "left");
    let other = right.context().clone();
    let both = left.context().spawn(move || {
        let there = other.spawn(name);
        let here = AioContext::current().unwrap().spawn(name);
        [there.join().unwrap().unwrap(), here.join().unwrap().unwrap()]
    });
    assert_eq!(both.join().unwrap(), ["right", "left"]);
    let said: Result<(), _> = left.context().spawn(|| panic!("over there")).join();
    assert_eq!(text(&*said.unwrap_err()), "over there");
    let waiting = right.context().spawn(|| (sleep(Duration::MAX), is_cancelled()));
    waiting.cancel();
    assert_eq!(waiting.join().unwrap(), (Err(Cancelled), true));
    assert!(left.context().spawn(|| panic_of(|| LoopThread::start("x").unwrap().context().poll(true))).join().is_ok());
    [left, right].into_iter().for_each(|thread| thread.stop().unwrap());
}

#[test]
fn a_closure_goes_to_another_context_and_back() {
    // X10: reschedule runs a closure on another context while the coroutine waits, and others run; in its own it just calls
    let _alone = ALONE.lock();
    let worker = LoopThread::start("worker").unwrap();
    let context = worker.context().clone();
    AioContext::run(|ctx| {
        let turns = Rc::new(Cell::new(0));
        let counted = Rc::clone(&turns);
        let own = ctx.clone();
        let task = spawn(move || {
            let mut sum = 0;
            for n in 0..100 {
                sum += context.reschedule(move || (n, thread::current().name() == Some("worker"))).unwrap().0;
            }
            let here = thread::current().id();
            assert_eq!(own.reschedule(move || thread::current().id()).unwrap(), here);
            sum
        });
        let other = spawn(move || {
            while counted.get() < 10 {
                counted.set(counted.get() + 1);
                yield_now();
            }
        });
        assert_eq!(task.join().unwrap(), 4950);
        other.join().unwrap();
        assert_eq!(turns.get(), 10);
    });
    worker.stop().unwrap();
}

#[test]
fn a_stop_ends_what_is_left() {
    // X10, W5: a loop that is stopped under load unwinds what is left, and each handle says so; work that never began too
    let _alone = ALONE.lock();
    let log = Log::default();
    let worker = AioContext::builder().unwind_report(false).start_thread("busy").unwrap();
    let lock = Arc::new(CoMutex::new(0));
    let busy: Vec<_> = (0..8)
        .map(|_| {
            let (lock, gone) = (Arc::clone(&lock), log.on_drop("unwound"));
            worker.context().spawn(move || {
                let _gone = gone;
                loop {
                    let mut count = lock.lock();
                    *count += 1;
                    drop(spawn(|| _ = sleep(Duration::from_micros(1))));
                    yield_now();
                }
            })
        })
        .collect();
    // It is at it.
    assert!(worker.context().spawn(yield_now).join().is_ok());
    let context = worker.context().clone();
    worker.stop().unwrap();
    assert_eq!(log.take().split(' ').count(), 8);
    for task in busy {
        let said: Result<(), _> = task.join();
        assert!(said.unwrap_err().is::<Cancelled>());
    }
    let late = context.spawn(|| ());
    assert!(late.is_finished() && late.join().unwrap_err().is::<Cancelled>());
    assert!(lock.try_lock().is_some(), "it was given up when its holder was unwound");
}

#[test]
fn a_thread_does_not_wait_for_itself() {
    // X10: stopped from its own loop it would wait for itself: refused; dropped there, it stops when its round is over
    let _alone = ALONE.lock();
    let worker = LoopThread::start("self").unwrap();
    let context = worker.context().clone();
    let slot = Arc::new(Mutex::new(Some(worker)));
    let own = Arc::clone(&slot);
    let said = context.spawn(move || panic_of(|| own.lock().take().unwrap().stop())).join().unwrap();
    assert!(said.contains("stop it from another thread"), "{said}");
    // It was dropped when that panicked, so its loop ends.
    while AioContext::all().iter().any(|other| other.dump().to_string().contains("'self'")) {
        thread::yield_now();
    }
}

#[test]
fn a_panic_in_the_loop_is_reported() {
    // X10, C8: what panics in the loop and has no handle ends the thread, and whoever stops it is told
    let _alone = ALONE.lock();
    let worker = LoopThread::start("fails").unwrap();
    let never = worker.context().spawn(suspend);
    worker.context().schedule_oneshot(|| panic!("in the loop"));
    assert!(never.join().unwrap_err().is::<Cancelled>());
    assert_eq!(text(&*worker.stop().unwrap_err()), "in the loop");
}

#[test]
fn a_thousand_starts_and_stops() {
    // X10: a thousand loop threads one after the other, with coroutines left: no descriptor and no mapping stays behind
    let _alone = ALONE.lock();
    let once = || {
        let worker = AioContext::builder().unwind_report(false).start_thread("brief").unwrap();
        drop(worker.context().spawn(suspend));
        assert_eq!(worker.context().spawn(|| 1).join().unwrap(), 1);
        worker.stop().unwrap();
    };
    // The allocator makes arenas for the first threads, and keeps them.
    (0..20).for_each(|_| once());
    let before = (descriptors(), mappings());
    (0..scaled(1000)).for_each(|_| once());
    assert_eq!(descriptors(), before.0);
    assert!(mappings() <= before.1 + 8, "{} mappings, {} before", mappings(), before.1);
}

#[test]
fn five_threads_on_one_lock() {
    // S1, X10: coroutines of five loop threads on one CoMutex: never two at once, nobody forgotten
    let _alone = ALONE.lock();
    let workers = [(); 5].map(|()| LoopThread::start("locker").unwrap());
    let lock = Arc::new(CoMutex::new(0_usize));
    let rounds = scaled(2000);
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let lock = Arc::clone(&lock);
            workers[n % 5].context().spawn(move || {
                for round in 0..rounds {
                    let mut count = lock.lock();
                    let before = *count;
                    if round % 16 == 0 {
                        yield_now();
                    }
                    *count = before + 1;
                }
            })
        })
        .collect();
    tasks.into_iter().for_each(|task| task.join().unwrap());
    assert_eq!(*lock.try_lock().unwrap(), 20 * rounds);
    workers.into_iter().for_each(|worker| worker.stop().unwrap());
}

#[test]
fn twenty_five_thousand_hand_overs() {
    // H8, W1: each holder hands the lock to the next one in line: it is woken, not entered on top, so the stack does not grow
    let _alone = ALONE.lock();
    AioContext::run(|_| {
        let lock = Rc::new(CoMutex::new(0_usize));
        let held = lock.try_lock().unwrap();
        let tasks: Vec<_> = (0..scaled(25_000))
            .map(|n| {
                let lock = Rc::clone(&lock);
                let task = move || {
                    let mut longest = lock.lock();
                    // How many are on the stack; to tell takes a while, so not everyone does.
                    if n % 1000 == 0 {
                        let told = AioContext::current().unwrap().dump().to_string();
                        *longest = longest.max(told.lines().nth(1).unwrap().matches(" > ").count());
                    }
                };
                Coroutine::builder().stack_size(64 * 1024).spawn(task).unwrap()
            })
            .collect();
        AioContext::current().unwrap().poll(false);
        drop(held);
        tasks.into_iter().for_each(|task| task.join().unwrap());
        assert_eq!(*lock.try_lock().unwrap(), 2, "main > loop > whoever has it");
    });
}

#[test]
fn a_condition_is_waited_for_by_polling() {
    // X9: at home poll_while polls; another thread waits, its lock given up wholly, and is kicked by whoever changes what it
    // waits for; one with a loop of its own runs that meanwhile
    let _alone = ALONE.lock();
    AioContext::run(|ctx| {
        let left = Rc::new(Cell::new(5));
        for _ in 0..5 {
            let left = Rc::clone(&left);
            drop(spawn(move || {
                yield_now();
                left.set(left.get() - 1);
            }));
        }
        ctx.poll_while(|| left.get() > 0);
        let flag = Arc::new(AtomicBool::new(false));
        let (sets, kicks) = (Arc::clone(&flag), ctx.clone());
        let other = thread::spawn(move || {
            sets.store(true, Ordering::Relaxed);
            kicks.kick();
        });
        ctx.poll_while(|| !flag.load(Ordering::Relaxed));
        other.join().unwrap();
    });
    let worker = LoopThread::start("changes").unwrap();
    let context = worker.context();
    let steps = Arc::new(AtomicUsize::new(0));
    let step = |count: usize| {
        let (steps, kicks) = (Arc::clone(&steps), context.clone());
        context.spawn(move || {
            for _ in 0..count {
                // Under the lock that the other one gave up.
                drop(kicks.acquire());
                steps.fetch_add(1, Ordering::Relaxed);
                kicks.kick();
                yield_now();
            }
        })
    };
    {
        let _thrice = (context.acquire(), context.acquire(), context.acquire());
        let task = step(100);
        context.poll_while(|| steps.load(Ordering::Relaxed) < 100);
        assert!(context.try_acquire().is_some(), "it is taken again");
        drop(task);
    }
    AioContext::run(|own| {
        let ran = Rc::new(Cell::new(false));
        let runs = Rc::clone(&ran);
        drop(spawn(move || runs.set(true)));
        let task = step(100);
        // Its own loop runs meanwhile.
        context.poll_while(|| steps.load(Ordering::Relaxed) < 200 || !ran.get());
        own.poll(false);
        task.join().unwrap();
    });
    worker.stop().unwrap();
}
