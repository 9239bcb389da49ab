//! The end of a context: whatever its coroutines wait for, they are unwound, each destructor once.

mod common;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;

use common::{Log, panic_of, text};
use coralio_runtime::{
    AioContext, BottomHalf, Cancelled, CoMutex, CoQueue, Coroutine, JoinHandle, spawn, suspend, yield_now,
};

#[test]
fn whatever_they_wait_for_they_are_unwound() {
    // C9: the end of the context unwinds each coroutine: every destructor on its stack runs, once, in order of creation
    let log = Log::default();
    let mutex = Rc::new(CoMutex::new(()));
    let queue = Rc::new(CoQueue::new());
    AioContext::run(|ctx| {
        let task = |name: &'static str, wait: Box<dyn FnOnce()>| {
            let (caught, log) = (log.on_drop(format!("{name}-caught")), log.clone());
            spawn(move || {
                let _caught = caught;
                let _outer = log.on_drop(format!("{name}-outer"));
                let _inner = log.on_drop(format!("{name}-inner"));
                wait();
                log.add("went-on");
            })
        };
        drop(task("suspended", Box::new(suspend)));
        drop(task("holder", {
            let mutex = Rc::clone(&mutex);
            Box::new(move || {
                let _guard = mutex.lock();
                suspend();
            })
        }));
        for name in ["in-line", "in-line-too"] {
            let mutex = Rc::clone(&mutex);
            drop(task(name, Box::new(move || drop(mutex.lock()))));
        }
        drop(task("queue", {
            let queue = Rc::clone(&queue);
            Box::new(move || drop(queue.wait(CoMutex::new(()).lock())))
        }));
        let joined = task("joined", Box::new(suspend));
        drop(task("joins", Box::new(move || drop(joined.join()))));
        ctx.poll(false);
        let task_new = task("never-entered", Box::new(|| {}));
        std::mem::forget(task_new);
        let created = log.on_drop("created-caught");
        Coroutine::new(move || drop(created));
        assert_eq!(log.take(), "");
    });
    let expected = ["suspended", "holder", "in-line", "in-line-too", "queue", "joined", "joins"]
        .map(|name| format!("{name}-inner {name}-outer {name}-caught"));
    assert_eq!(log.take(), format!("{} never-entered-caught created-caught", expected.join(" ")));
    assert!(mutex.try_lock().is_some(), "the lock was given up, and passed through the line");
    assert!(!queue.wake_one(), "nobody is left in the queue");
}

#[test]
fn ready_and_half_run_ones_are_unwound() {
    // C9: so are those that are ready to run: woken, rescheduled, scheduled by another thread
    let log = Log::default();
    AioContext::run(|ctx| {
        let wakers: Vec<_> = ["rescheduled", "woken", "scheduled", "from-elsewhere"]
            .into_iter()
            .map(|name| {
                let log = log.clone();
                let co = Coroutine::new(move || {
                    let _drop = log.on_drop(name);
                    if name == "rescheduled" {
                        yield_now();
                    } else {
                        suspend();
                    }
                    log.add("went-on");
                });
                co.enter();
                co
            })
            .collect();
        let woken = wakers[1];
        let waker = Coroutine::new(move || {
            woken.wake();
            panic!("so that the woken one waits for the next round");
        });
        panic_of(|| waker.enter());
        wakers[2].schedule().unwrap();
        let far = wakers[3].waker();
        thread::scope(|scope| scope.spawn(move || far.wake()).join().unwrap());
        let _ = ctx;
    });
    assert_eq!(log.take(), "rescheduled woken scheduled from-elsewhere");
}

#[test]
fn a_panic_of_the_main_function_unwinds_them_first() {
    // C9: if the context's function panics, its coroutines are unwound, and then the panic goes on
    let log = Log::default();
    let said = panic_of(|| {
        AioContext::run(|_| {
            let log = log.clone();
            let co = Coroutine::new(move || {
                let _drop = log.on_drop("dropped");
                suspend();
            });
            co.enter();
            panic!("main");
        })
    });
    assert_eq!((said.as_str(), log.take().as_str()), ("main", "dropped"));
    AioContext::run(|_| spawn(|| {}).join().unwrap());
}

#[test]
fn a_destructor_that_panics_does_not_stop_the_others() {
    // C9: a destructor that panics at teardown does not keep the rest from being unwound; the first panic goes on
    struct Bomb(Log, &'static str);
    impl Drop for Bomb {
        fn drop(&mut self) {
            self.0.add(self.1);
            panic!("bomb {}", self.1);
        }
    }
    let log = Log::default();
    let said = panic_of(|| {
        AioContext::run(|ctx| {
            // Never entered: what it caught is dropped.
            let (first, second) = (Bomb(log.clone(), "first"), Bomb(log.clone(), "second"));
            Coroutine::new(move || drop(first));
            // A result that nobody fetches.
            std::mem::forget(spawn(move || second));
            let after = log.clone();
            drop(spawn(move || {
                let _drop = after.on_drop("suspended");
                suspend();
            }));
            ctx.poll(false);
            let last = log.on_drop("last");
            Coroutine::new(move || drop(last));
        })
    });
    assert_eq!(said, "bomb first");
    assert_eq!(log.take(), "first second suspended last");
    // The thread can run another context.
    assert_eq!(AioContext::run(|_| spawn(|| 4).join().unwrap()), 4);
}

#[test]
fn callbacks_that_panic_when_dropped() {
    // C9: a bottom half whose callback panics when the context drops it does not keep coroutines from being unwound
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in a callback");
        }
    }
    let log = Log::default();
    let said = panic_of(|| {
        AioContext::run(|ctx| {
            let bomb = Bomb;
            ctx.schedule_oneshot(move || drop(bomb));
            let second = log.on_drop("second");
            ctx.schedule_oneshot(move || drop(second));
            let third = log.on_drop("coroutine");
            Coroutine::new(move || drop(third));
        })
    });
    assert_eq!(said, "in a callback");
    assert_eq!(log.take(), "second coroutine");
}

#[test]
fn panicking_callbacks_of_each_kind_do_not_stop_the_end() {
    // C9: a destructor that panics in any of the context's tables keeps nothing else from being dropped and unwound, also if
    // the context's function panics too; the thread has no home afterwards
    struct Bomb(Log, &'static str);
    impl Drop for Bomb {
        fn drop(&mut self) {
            self.0.add(self.1);
            panic!("bomb {}", self.1);
        }
    }
    for main_panics in [false, true] {
        let log = Log::default();
        let said = panic_of(|| {
            AioContext::run(|ctx| {
                let bomb = |name| Bomb(log.clone(), name);
                let in_bottom_half = bomb("bottom half");
                ctx.schedule_oneshot(move || drop(in_bottom_half));
                let in_arrival = bomb("arrival");
                drop(ctx.spawn(move || drop(in_arrival)));
                let dropped = log.on_drop("coroutine");
                Coroutine::new(move || {
                    let _dropped = dropped;
                    suspend();
                })
                .enter();
                assert!(!main_panics, "main");
            })
        });
        assert_eq!(said, if main_panics { "main" } else { "bomb bottom half" });
        assert_eq!(log.take(), "bottom half arrival coroutine");
        assert!(AioContext::current().is_none());
        assert_eq!(AioContext::run(|_| spawn(|| 4).join().unwrap()), 4);
    }
}

#[test]
fn those_who_catch_the_payload_are_unwound_still() {
    // C9: code that catches unwinding payloads cannot keep a coroutine alive: its next wait unwinds it again
    let log = Log::default();
    AioContext::run(|_| {
        let log = log.clone();
        let co = Coroutine::new(move || {
            let _drop = log.on_drop("dropped");
            for _ in 0..3 {
                let caught = std::panic::catch_unwind(suspend).unwrap_err();
                assert!(caught.is::<Cancelled>());
                log.add("caught");
            }
            let lock = CoMutex::new(());
            drop(CoQueue::new().wait(lock.lock()));
            log.add("went-on");
        });
        co.enter();
    });
    assert_eq!(log.take(), "caught caught caught dropped");
}

#[test]
fn what_a_never_entered_one_caught_cannot_wait() {
    // C9: nor can a destructor of what a never-entered coroutine caught suspend it at teardown: it is unwound still
    struct Waits(Log);
    impl Drop for Waits {
        fn drop(&mut self) {
            let _after = self.0.on_drop("unwound");
            self.0.add("waits");
            suspend();
            self.0.add("went-on");
        }
    }
    let log = Log::default();
    AioContext::run(|_| {
        let (waits, other) = (Waits(log.clone()), log.on_drop("other"));
        Coroutine::new(move || drop((waits, other)));
    });
    assert_eq!(log.take(), "waits unwound other");
}

#[test]
fn destructors_may_wake_and_enter_nobody_goes_on() {
    // C9: what destructors wake, unlock or schedule at teardown runs no coroutine: all are unwound
    struct Act(Box<dyn Fn()>);
    impl Drop for Act {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    let log = Log::default();
    AioContext::run(|ctx| {
        let others = Rc::new(RefCell::new(Vec::<Coroutine>::new()));
        let first = Coroutine::new({
            let (others, log, ctx) = (Rc::clone(&others), log.clone(), ctx.clone());
            move || {
                let _act = Act(Box::new(move || {
                    for co in others.borrow().iter() {
                        co.wake();
                        let _ = co.schedule();
                        co.waker().wake();
                    }
                    ctx.schedule_oneshot(|| unreachable!("the context ends"));
                    log.add("acted");
                }));
                suspend();
            }
        });
        first.enter();
        for _ in 0..2 {
            let log = log.clone();
            let co = Coroutine::new(move || {
                let _drop = log.on_drop("dropped");
                suspend();
                log.add("went-on");
            });
            co.enter();
            others.borrow_mut().push(co);
        }
    });
    assert_eq!(log.take(), "acted dropped dropped");
}

thread_local! {
    static KEPT: RefCell<Option<JoinHandle<&'static str>>> = const { RefCell::new(None) };
}

#[test]
fn a_join_handle_kept_past_the_end_reports_it() {
    // W5: a join handle kept in a thread-local past the context's end reports that its coroutine was cancelled
    thread::spawn(|| {
        AioContext::run(|ctx| {
            let task = spawn(|| {
                suspend();
                "never"
            });
            ctx.poll(false);
            KEPT.set(Some(task));
        });
        let kept = KEPT.take().unwrap();
        assert!(kept.is_finished());
        let payload = kept.join().unwrap_err();
        assert!(payload.is::<Cancelled>(), "{}", text(&*payload));
        // Another one dies with the thread's locals, in a later context's thread.
        AioContext::run(|_| KEPT.set(Some(spawn(|| "unfetched"))));
    })
    .join()
    .unwrap();
}

#[test]
fn a_coroutine_kept_in_a_thread_local_is_unwound_before_the_locals_die() {
    // C9: no handle keeps a suspended stack alive till the thread-locals die
    thread_local! {
        static VALUE: Vec<u8> = vec![7; 100];
        static HANDLE: Cell<Option<JoinHandle<()>>> = const { Cell::new(None) };
    }
    let (send, receive) = mpsc::channel();
    thread::spawn(|| {
        AioContext::run(|ctx| {
            struct Look<'a>(&'a Vec<u8>, mpsc::Sender<u8>);
            impl Drop for Look<'_> {
                fn drop(&mut self) {
                    self.1.send(self.0[99]).unwrap();
                }
            }
            HANDLE.set(Some(spawn(move || {
                VALUE.with(|value| {
                    let _look = Look(value, send);
                    suspend();
                });
            })));
            ctx.poll(false);
        });
    })
    .join()
    .unwrap();
    assert_eq!(receive.iter().collect::<Vec<_>>(), [7]);
}

#[test]
fn callbacks_and_fds_go_with_the_context() {
    // C9: bottom halves and watches are dropped with the context, though their handles are kept
    let log = Log::default();
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let ours = Arc::new(ours);
    let slot = Arc::new(Mutex::new(None::<BottomHalf>));
    let (ctx, bh, watch) = AioContext::run(|ctx| {
        let drops = log.on_drop("bottom-half");
        let bh = ctx.bottom_half({
            let slot = Arc::clone(&slot);
            move || {
                let _ = (&drops, &slot);
            }
        });
        let drops = log.on_drop("watch");
        let handler = move |_| {
            let _ = &drops;
        };
        let watch = ctx.watch(Arc::clone(&ours), coralio_runtime::Interest::Read, handler).unwrap();
        bh.schedule();
        (ctx.clone(), bh, watch)
    });
    assert_eq!(log.take(), "bottom-half watch");
    assert_eq!((Arc::strong_count(&ours), Arc::strong_count(&slot)), (1, 1));
    bh.schedule();
    bh.schedule_idle();
    bh.cancel();
    watch.set_interest(coralio_runtime::Interest::Write).unwrap();
    ctx.notify();
    drop((bh, watch));
}

#[test]
fn granted_and_gone() {
    // C8: one to whom the lock or a wake was granted, and that is unwound before it ran, passes it on
    let shared = Arc::new((CoMutex::new(()), CoQueue::new()));
    let got = Arc::new(AtomicUsize::new(0));
    let stand_in_line = || {
        let (for_lock, for_queue) = (Arc::clone(&shared), Arc::clone(&shared));
        let (lock_got, queue_got) = (Arc::clone(&got), Arc::clone(&got));
        let locks = spawn(move || {
            let _guard = for_lock.0.lock();
            lock_got.fetch_add(1, Ordering::Relaxed);
        });
        let waits = spawn(move || {
            let lock = CoMutex::new(());
            let _guard = for_queue.1.wait(lock.lock());
            queue_got.fetch_add(1, Ordering::Relaxed);
        });
        assert!(AioContext::current().unwrap().poll(false));
        (locks, waits)
    };
    let step = Barrier::new(3);
    thread::scope(|scope| {
        let guard = shared.0.try_lock().unwrap();
        scope.spawn(|| {
            AioContext::run(|_| {
                let _first_in_line = stand_in_line();
                step.wait();
                step.wait();
                step.wait();
                // Both were granted by now; the context ends, and they never run.
            });
        });
        scope.spawn(|| {
            step.wait();
            AioContext::run(|_| {
                let (locks, waits) = stand_in_line();
                step.wait();
                step.wait();
                locks.join().unwrap();
                waits.join().unwrap();
            });
        });
        step.wait();
        step.wait();
        drop(guard);
        assert!(shared.1.wake_one());
        step.wait();
    });
    assert_eq!(got.load(Ordering::Relaxed), 2);
}

#[test]
fn a_payload_whose_destructor_panics_does_not_stop_the_others() {
    // C8, C9: of several panics at the end one goes on; what dropping another's payload throws ends nothing
    struct Bomb(u32);
    impl Drop for Bomb {
        fn drop(&mut self) {
            if self.0 == 1 {
                panic!("a payload's destructor");
            }
        }
    }
    let ended = std::panic::catch_unwind(|| {
        AioContext::run(|_| {
            for number in 0..3 {
                let co = Coroutine::new(move || {
                    let _ = std::panic::catch_unwind(suspend);
                    std::panic::panic_any(Bomb(number));
                });
                co.enter();
            }
        });
    });
    assert_eq!(ended.unwrap_err().downcast_ref::<Bomb>().unwrap().0, 0);
    assert!(AioContext::current().is_none());
}

#[test]
fn one_that_destructors_made_ready_is_unwound_off_the_list() {
    // C9: at the end a destructor may enter another one, which asks to run again, and a later destructor may poll
    AioContext::run(|ctx| {
        let kept: Rc<Cell<Option<Coroutine>>> = Rc::default();
        let (other, ctx) = (Rc::clone(&kept), ctx.clone());
        let first = Coroutine::new(move || {
            let _ = std::panic::catch_unwind(suspend);
            other.get().unwrap().enter();
        });
        kept.set(Some(Coroutine::new(|| {
            loop {
                yield_now();
            }
        })));
        let last = Coroutine::new(move || {
            let _ = std::panic::catch_unwind(suspend);
            ctx.poll(false);
        });
        first.enter();
        last.enter();
    });
}
