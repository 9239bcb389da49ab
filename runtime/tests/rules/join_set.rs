//! Join sets, and handles that cancel on drop: each result once, in order of the ends; a drop
//! cancels and does not wait.

use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use crate::common::{Log, text};
use coralio_runtime::{
    AioContext, Cancelled, Coroutine, IoThread, JoinSet, Notify, TimedOut, block_on, check_cancelled, sleep, spawn,
    suspend, timeout, yield_now,
};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn results_arrive_in_order_of_the_ends() {
    // S8: in a coroutine and on the thread's own stack, each result is returned once, in the order
    // in which the coroutines ended
    for own_stack in [true, false] {
        let body = || {
            let mut set = JoinSet::new();
            for turns in [3, 1, 2, 0] {
                set.spawn(move || {
                    (0..turns).for_each(|_| yield_now());
                    turns
                });
            }
            assert!(set.try_join_next().is_none());
            let mut ended = Vec::new();
            while let Some(result) = set.join_next().unwrap() {
                ended.push(result.unwrap());
                assert_eq!(set.len() + ended.len(), 4);
            }
            assert!(set.is_empty() && set.try_join_next().is_none());
            ended
        };
        let ended = AioContext::run(|_| if own_stack { body() } else { spawn(body).join().unwrap() });
        assert_eq!(ended, [0, 1, 2, 3]);
    }
    AioContext::run(|ctx| {
        let mut set = JoinSet::new();
        let spawned = [0, 1, 2].map(|n| {
            set.spawn(move || {
                suspend();
                n
            })
        });
        ctx.poll(false);
        [2, 0, 1].into_iter().for_each(|n| spawned[n].wake());
        let ended = [(); 3].map(|()| set.join_next().unwrap().unwrap().unwrap());
        assert_eq!(ended, [2, 0, 1], "all had ended before");
    });
}

#[test]
fn panic_is_the_result_of_its_coroutine() {
    // S8, C8: a coroutine that panics has its payload as result; the others are not affected
    AioContext::run(|_| {
        let mut set = JoinSet::new();
        set.spawn(|| panic!("first"));
        set.spawn(|| {
            yield_now();
            7
        });
        let first = set.join_next().unwrap().unwrap();
        assert_eq!(text(&*first.unwrap_err()), "first");
        assert_eq!(set.join_next().unwrap().unwrap().unwrap(), 7);
    });
}

#[test]
fn cancelled_join_leaves_the_set_unchanged() {
    // S8, S4: a timeout or a cancellation of `join_next` cancels nothing in the set, and loses no
    // result; an ended coroutine is returned even so
    let run = AioContext::builder().run_coroutine(|_| {
        let mut set = JoinSet::new();
        let notify = Rc::new(Notify::new());
        let theirs = Rc::clone(&notify);
        set.spawn(move || theirs.notified());
        assert!(matches!(timeout(Duration::from_millis(1), || set.join_next()), Err(TimedOut)));
        Coroutine::current().unwrap().cancel();
        assert!(matches!(set.join_next(), Err(Cancelled)));
        assert_eq!(set.len(), 1);
        notify.notify_one();
        yield_now();
        assert_eq!(set.join_next().unwrap().unwrap().unwrap(), Ok(()));
    });
    run.unwrap();
}

#[test]
fn cancel_all_and_shutdown_reach_every_coroutine() {
    // S8: `cancel_all` cancels in order of creation, and enters none; `shutdown` waits for all
    AioContext::run(|_| {
        let (mut set, log) = (JoinSet::new(), Log::default());
        let logged = log.clone();
        for name in ["a", "b", "c"] {
            let log = log.clone();
            set.spawn(move || {
                assert_eq!(sleep(HOUR), Err(Cancelled));
                log.add(name);
                yield_now();
                log.add(name);
            });
        }
        yield_on_the_loop();
        set.cancel_all();
        assert_eq!((log.take().as_str(), set.len()), ("", 3));
        set.shutdown().unwrap();
        assert_eq!((log.take().as_str(), set.len()), ("a b c a b c", 0));
        set.spawn(move || log.add(sleep(HOUR).is_err()));
        set.shutdown().unwrap();
        assert_eq!(logged.take(), "true");
    });
}

/// Runs one iteration of the loop.
fn yield_on_the_loop() {
    AioContext::current().unwrap().poll(false);
}

#[test]
fn dropped_set_cancels_and_does_not_enter() {
    // S8: dropping the set, in a coroutine or on the thread's own stack, cancels its coroutines,
    // which run later; detached ones are not cancelled
    for own_stack in [true, false] {
        let log = Log::default();
        let inner = log.clone();
        let body = move || {
            let task = |log: &Log| {
                let log = log.clone();
                move || {
                    suspend();
                    log.add(check_cancelled().is_err());
                }
            };
            let mut set = JoinSet::new();
            let detached = set.spawn(task(&inner));
            set.detach_all();
            assert!(set.is_empty());
            set.spawn(task(&inner));
            if own_stack {
                yield_on_the_loop()
            } else {
                yield_now()
            }
            drop(set);
            inner.add("dropped");
            if own_stack {
                yield_on_the_loop()
            } else {
                yield_now()
            }
            detached.wake();
            if own_stack { yield_on_the_loop() } else { yield_now() }
        };
        AioContext::run(|_| if own_stack { body() } else { spawn(body).join().unwrap() });
        assert_eq!(log.take(), "dropped true false");
    }
}

#[test]
fn set_outlives_its_context() {
    // S8, C9: coroutines that were unwound with their context are returned as cancelled
    let mut set = JoinSet::new();
    let run = AioContext::builder().report_unwound(false).run(|ctx| {
        set.spawn(suspend);
        set.spawn(|| ());
        ctx.poll(false);
        set.spawn(suspend);
    });
    run.unwrap();
    let mut ended = 0;
    while let Some(result) = set.join_next().unwrap() {
        assert!(result.unwrap_err().is::<Cancelled>());
        ended += 1;
    }
    assert_eq!(ended, 3);
}

#[test]
fn dropped_handle_cancels_its_coroutine() {
    // S8: a `CancelOnDrop` handle cancels when it is dropped, and enters nothing; its result can be
    // joined, and the plain handle be had back
    AioContext::run(|ctx| {
        let log = Log::default();
        let task = |log: &Log| {
            let log = log.clone();
            spawn(move || log.add(sleep(HOUR).is_err()))
        };
        let handle = task(&log).cancel_on_drop();
        ctx.poll(false);
        drop(handle);
        log.add("dropped");
        ctx.poll(false);
        assert_eq!(log.take(), "dropped true");

        assert_eq!(spawn(|| 7).cancel_on_drop().join().unwrap(), 7);
        let detached = spawn(check_cancelled).cancel_on_drop().into_inner();
        assert_eq!(detached.join().unwrap(), Ok(()));
    });
}

#[test]
fn dropped_remote_handle_cancels_its_coroutine() {
    // S8: likewise for a coroutine of another thread, whether it has started or not
    let worker = IoThread::start("worker").unwrap();
    let (sender, slept) = mpsc::channel();
    let (started, has_started) = mpsc::channel();
    for wait in [true, false] {
        let (sender, started) = (sender.clone(), started.clone());
        let handle = worker.context().spawn(move || {
            started.send(()).unwrap();
            sender.send(sleep(HOUR)).unwrap();
        });
        let handle = handle.cancel_on_drop();
        if wait {
            has_started.recv().unwrap();
        }
        drop(handle);
        assert_eq!(slept.recv().unwrap(), Err(Cancelled));
    }
    assert_eq!(worker.context().spawn(|| 7).cancel_on_drop().join().unwrap(), 7);
    worker.stop().unwrap();
}

#[test]
fn timed_out_join_cancels_the_coroutine() {
    // S8, S4: a timeout around a join cancels the joined coroutine, of this thread or another; one
    // around the handle as a future does not
    let worker = IoThread::start("worker").unwrap();
    let run = AioContext::builder().run_coroutine(|_| {
        let (sender, slept) = mpsc::channel();
        let theirs = sender.clone();
        let local = spawn(move || theirs.send(sleep(HOUR)).unwrap());
        assert!(matches!(timeout(Duration::from_millis(1), || local.join()), Err(TimedOut)));
        yield_now();
        assert_eq!(slept.try_recv(), Ok(Err(Cancelled)));

        let mut remote = worker.context().spawn(move || sender.send(sleep(HOUR)).unwrap());
        assert!(matches!(timeout(Duration::from_millis(1), || block_on(&mut remote)), Err(TimedOut)));
        assert!(!remote.is_finished());
        assert!(matches!(timeout(Duration::from_millis(1), || remote.join()), Err(TimedOut)));
        assert_eq!(slept.recv(), Ok(Err(Cancelled)));
    });
    run.unwrap();
    worker.stop().unwrap();
}
