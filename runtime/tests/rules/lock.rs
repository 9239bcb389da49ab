//! The context's lock: recursive, released while the loop sleeps; and the rights of a foreign
//! thread that holds it.

use std::rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use crate::common::{Log, panic_of, scaled};
use coralio_runtime::{AioContext, Coroutine, IoThread, spawn, suspend, yield_now};

#[test]
fn context_lock_is_recursive_and_exclusive() {
    // X8: acquire blocks while another thread holds the lock, and is recursive; the loop holds it
    // while it dispatches
    AioContext::run(|ctx| {
        let inside = Arc::new(AtomicUsize::new(0));
        let enter = |inside: &AtomicUsize| {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two threads inside the lock");
            thread::yield_now();
            inside.fetch_sub(1, Ordering::SeqCst);
        };
        let finished = Arc::new(AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..scaled(200) {
                        let _outer = ctx.acquire();
                        let _inner = ctx.acquire();
                        drop(ctx.acquire());
                        enter(&inside);
                        let inside = Arc::clone(&inside);
                        ctx.schedule_oneshot(move || enter(&inside)).unwrap();
                    }
                    finished.fetch_add(1, Ordering::Relaxed);
                    ctx.schedule_oneshot(|| {}).unwrap();
                });
            }
            while finished.load(Ordering::Relaxed) < 2 {
                ctx.poll(true);
            }
        });
        while ctx.poll(false) {}
    });
}

#[test]
fn sleeping_loop_releases_the_lock() {
    // X8: the loop does not hold the lock while it sleeps, however often its thread had acquired it
    AioContext::run(|ctx| {
        let woken = rc::Rc::new(std::cell::Cell::new(false));
        let _twice = (ctx.acquire(), ctx.acquire());
        let (send, receive) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                // Succeeds only while the loop sleeps.
                let _guard = ctx.acquire();
                ctx.schedule_oneshot(move || send.send(()).unwrap()).unwrap();
            });
            while receive.try_recv().is_err() {
                ctx.poll(true);
            }
            woken.set(true);
            // Both are held again: no other thread gets in.
            assert!(scope.spawn(|| ctx.try_acquire().is_none()).join().unwrap());
        });
        assert!(woken.get());
    });
}

#[test]
fn foreign_poll_runs_handlers_and_enters_no_coroutine() {
    // X8: a foreign thread that holds the lock may poll: it runs handlers; only the home thread
    // enters coroutines
    AioContext::run(|ctx| {
        let log = Log::default();
        let home = thread::current().id();
        let co = Coroutine::new({
            let log = log.clone();
            move || {
                suspend();
                assert_eq!(thread::current().id(), home);
                log.add("coroutine");
            }
        });
        co.enter();
        let waker = co.waker();
        let ready = spawn(|| thread::current().id());
        ctx.schedule_oneshot({
            let log = log.clone();
            move || {
                log.add(if thread::current().id() == home { "home" } else { "foreign" });
                waker.wake();
            }
        })
        .unwrap();
        thread::scope(|scope| {
            let foreign = scope.spawn(|| {
                let _guard = ctx.acquire();
                assert!(!ctx.is_home());
                assert!(ctx.poll(false));
                assert!(!ctx.poll(false), "ready coroutines are left to the home thread");
            });
            foreign.join().unwrap();
        });
        assert_eq!(log.take(), "foreign");
        assert!(!ready.is_finished());
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "coroutine");
        assert_eq!(ready.join().unwrap(), home);
    });
}

#[test]
fn foreign_panic_releases_the_lock() {
    // C8: a panic in a bottom half run by a foreign poll leaves the lock free, and the remaining
    // work for the loop
    AioContext::run(|ctx| {
        let log = Log::default();
        let later = log.clone();
        ctx.schedule_oneshot(|| panic!("abroad")).unwrap();
        ctx.schedule_oneshot(move || later.add("rest")).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| assert_eq!(panic_of(|| ctx.poll(false)), "abroad")).join().unwrap();
        });
        assert!(ctx.poll(true));
        assert_eq!(log.take(), "rest");
    });
}

#[test]
fn guard_can_outlive_its_context() {
    // X8: a guard taken through a clone of the context may be dropped after the context ended
    let kept = std::cell::OnceCell::new();
    let guard = AioContext::run(|ctx| kept.get_or_init(|| ctx.clone()).acquire());
    // Another context's home now has the address of the first one's.
    AioContext::run(|ctx| {
        drop(guard);
        let task = spawn(yield_now);
        task.join().unwrap();
        drop(ctx.acquire());
    });
}

#[test]
fn poll_while_keeps_guards_of_another_context() {
    // X8, X9: while a thread waits by `poll_while` for one context, its coroutines may drop and
    // take guards of a third one
    let threads = ["waited for", "third"].map(|name| IoThread::start(name).unwrap());
    let [waited_for, third] = threads.each_ref().map(|thread| &*Box::leak(Box::new(thread.context().clone())));
    AioContext::run(|_| {
        let drops = Coroutine::new(|| {
            let guard = third.acquire();
            suspend();
            drop(guard);
        });
        drops.enter();
        let taken = rc::Rc::new(std::cell::Cell::new(false));
        let takes = Coroutine::new({
            let taken = rc::Rc::clone(&taken);
            move || {
                let guard = third.acquire();
                taken.set(true);
                suspend();
                drop(guard);
            }
        });
        let outer = waited_for.acquire();
        drops.schedule().unwrap();
        waited_for.poll_while(|| !drops.has_ended());
        takes.schedule().unwrap();
        waited_for.poll_while(|| !taken.get());
        drop(outer);
        takes.enter();
        // Both locks are free again.
        thread::spawn(|| drop((waited_for.acquire(), third.acquire()))).join().unwrap();
    });
    threads.into_iter().for_each(|thread| thread.stop().unwrap());
}
