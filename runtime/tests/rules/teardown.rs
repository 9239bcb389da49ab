//! The end of a context: its coroutines are unwound whatever they wait for, running each destructor
//! once.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;

use crate::common::{Log, panic_of, scaled, text};
use coralio_runtime::{
    AioContext, Cancelled, CoMutex, CoQueue, CoRwLock, Coroutine, Interest, IoThread, JoinHandle, Semaphore, spawn,
    suspend, yield_now,
};

#[test]
fn panicking_destructor_does_not_stop_other_destructors() {
    // C9: a destructor that panics at teardown does not prevent unwinding the rest; the first panic
    // propagates
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
            // Never entered: its captures are dropped.
            let (first, second) = (Bomb(log.clone(), "first"), Bomb(log.clone(), "second"));
            Coroutine::new(move || drop(first));
            // An unfetched result.
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
fn callbacks_of_one_kind_all_panic_when_dropped() {
    // C9: all bottom halves, timers, poll handlers and watches of a context panic when the context
    // drops them: each is dropped, and the first panic propagates
    struct Bomb(Log, &'static str);
    impl Drop for Bomb {
        fn drop(&mut self) {
            self.0.add(self.1);
            panic!("bomb {}", self.1);
        }
    }
    struct Descriptor {
        stream: UnixStream,
        _bomb: Bomb,
    }
    impl AsFd for Descriptor {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.stream.as_fd()
        }
    }
    let log = Log::default();
    let bomb = |name| Bomb(log.clone(), name);
    let said = panic_of(|| {
        AioContext::run(|ctx| {
            for _ in 0..2 {
                let (bh, timer, look, handler) = (bomb("bh"), bomb("timer"), bomb("look"), bomb("poll"));
                ctx.schedule_oneshot(move || drop(bh)).unwrap();
                std::mem::forget(ctx.new_timer(move || _ = &timer).unwrap());
                std::mem::forget(
                    ctx.add_poll_handler(move || std::mem::size_of_val(&look) == 0, move || _ = &handler).unwrap(),
                );
                let (near, _far) = UnixStream::pair().unwrap();
                let (fd, watch) = (Descriptor { stream: near, _bomb: bomb("fd") }, bomb("watch"));
                std::mem::forget(ctx.add_fd_handler(fd, Interest::Read, move |_| _ = &watch).unwrap());
            }
        })
    });
    assert_eq!(said, "bomb bh");
    assert_eq!(log.take(), "bh bh fd watch fd watch timer timer look poll look poll");
    AioContext::run(|_| spawn(|| {}).join().unwrap());
}

#[test]
fn panicking_callbacks_of_each_kind_do_not_stop_the_end() {
    // C9: a destructor that panics in any of the context's tables prevents nothing else from being
    // dropped and unwound, even if the context's function panics too; the thread has no home
    // afterwards
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
                ctx.schedule_oneshot(move || drop(in_bottom_half)).unwrap();
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
fn coroutines_that_catch_the_payload_are_unwound() {
    // C9: code that catches unwinding payloads cannot keep a coroutine alive: its next wait unwinds
    // it again
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
fn captures_of_unentered_coroutine_cannot_suspend() {
    // C9: nor can the captures of a never-entered coroutine suspend in their destructors at
    // teardown: they are unwound still
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

thread_local! {
    static KEPT: RefCell<Option<JoinHandle<&'static str>>> = const { RefCell::new(None) };
}

#[test]
fn join_handle_kept_past_the_end_reports_cancellation() {
    // W5: a join handle kept in a thread-local past the context's end reports that its coroutine
    // was cancelled
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
        // Another handle is dropped with the thread's locals, after a later context.
        AioContext::run(|_| KEPT.set(Some(spawn(|| "unfetched"))));
    })
    .join()
    .unwrap();
}

#[test]
fn coroutine_in_a_thread_local_is_unwound_before_the_locals() {
    // C9: no handle keeps a suspended stack alive until the thread-locals are dropped
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
fn panicking_payload_destructor_does_not_stop_the_teardown() {
    // C8, C9: of several panics at the end one propagates; a panic while dropping another's payload
    // has no effect
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
fn coroutine_woken_by_a_destructor_is_unwound() {
    // C9: while a context ends, a destructor may enter another coroutine, which calls `yield_now`; a
    // later destructor may poll
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

/// Registers a closure that owns `owned` with the context in each way. Returns the errors.
fn register_in_each_way<T: Send + Sync + Clone + 'static>(ctx: &AioContext, owned: &T) -> Vec<String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let owner = || {
        let owned = owned.clone();
        move || _ = &owned
    };
    let (near, _far) = UnixStream::pair().unwrap();
    let watch = owner();
    let ready = owner();
    [
        ctx.new_bottom_half(owner()).err().as_ref().map(|error| text(error)),
        ctx.schedule_oneshot(owner()).err().as_ref().map(|error| text(error)),
        ctx.new_timer(owner()).err().as_ref().map(|error| text(error)),
        ctx.add_fd_handler(near, Interest::Read, move |_| watch()).err().as_ref().map(|error| text(error)),
        ctx.add_poll_handler(move || matches!(ready(), ()), owner()).err().as_ref().map(|error| text(error)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn ended_context_rejects_closures() {
    // X3, X4, X5, X7: a closure registered with a context that has ended is dropped immediately,
    // and the caller gets an error with the remedy; so too within the destructor of a closure or a
    // coroutine that is dropped at the end
    struct AtEnd(AioContext, Arc<()>, Arc<Mutex<Vec<String>>>);
    impl Drop for AtEnd {
        fn drop(&mut self) {
            self.2.lock().unwrap().extend(register_in_each_way(&self.0, &self.1));
        }
    }
    let (owned, errors) = (Arc::new(()), Arc::new(Mutex::new(Vec::new())));
    let at_end = |ctx: &AioContext| AtEnd(ctx.clone(), Arc::clone(&owned), Arc::clone(&errors));
    let (ctx, bh, timer, watch) = AioContext::builder()
        .report_unwound(false)
        .run(|ctx| {
            let (closure, coroutine) = (at_end(ctx), at_end(ctx));
            drop(spawn(move || {
                let _coroutine = coroutine;
                suspend();
            }));
            ctx.poll(false);
            ctx.schedule_oneshot(move || drop(closure)).unwrap();
            // Handles that outlive the context have no effect on it.
            let watch = ctx.add_fd_handler(UnixStream::pair().unwrap().0, Interest::Disabled, |_| {}).unwrap();
            (ctx.clone(), ctx.new_bottom_half(|| {}).unwrap(), ctx.new_timer(|| {}).unwrap(), watch)
        })
        .unwrap();
    let all = [
        "cannot create a bottom half",
        "cannot schedule a one-shot callback",
        "cannot create a timer",
        "cannot watch a descriptor",
        "cannot add a poll handler",
    ]
    .map(|what| format!("{what}: the context has ended; do so while its `run` or its thread is running"));
    assert_eq!(std::mem::take(&mut *errors.lock().unwrap()), [&all[..], &all[..]].concat());
    assert_eq!(register_in_each_way(&ctx, &owned), all);
    bh.schedule();
    timer.arm_after(std::time::Duration::ZERO);
    bh.cancel();
    watch.set_interest(Interest::Write).unwrap();
    ctx.notify();
    assert!(timer.deadline().is_none());
    assert_eq!(
        (ctx.bottom_halves().len(), ctx.timers().len(), ctx.fd_handlers().len(), ctx.poll_handlers().len()),
        (0, 0, 0, 0)
    );
    drop((bh, timer, watch));
    assert_eq!(Arc::strong_count(&owned), 1);
}

#[test]
fn closures_are_run_or_dropped_while_a_context_ends() {
    // X3, X10: closures that another thread sends to an I/O thread while it stops, and that own its
    // context, are each run or dropped: none keeps the context alive
    for _ in 0..scaled(50) {
        let (worker, owned) = (IoThread::start("worker").unwrap(), Arc::new(()));
        let (ctx, begun) = (worker.context().clone(), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                begun.wait();
                loop {
                    let (keeps, own) = (Arc::clone(&owned), ctx.clone());
                    if ctx.schedule_oneshot(move || drop((keeps, own))).is_err() {
                        return;
                    }
                }
            });
            begun.wait();
            worker.stop().unwrap();
        });
        assert_eq!(Arc::strong_count(&owned), 1);
    }
}

#[test]
fn closures_are_dropped_without_any_lock() {
    // X4: at the end of a context its closures are dropped while neither a table's lock nor the
    // context's is held: another thread, for which a destructor waits, can use the context
    struct AsksAnother(AioContext, mpsc::Sender<bool>);
    impl Drop for AsksAnother {
        fn drop(&mut self) {
            let AsksAnother(ctx, told) = self;
            let free = || ctx.try_acquire().is_some() && register_in_each_way(ctx, &()).len() == 5;
            told.send(thread::scope(|scope| scope.spawn(free).join().unwrap())).unwrap();
        }
    }
    let (told, tell) = mpsc::channel();
    AioContext::run(|ctx| {
        let closure = || {
            let owned = AsksAnother(ctx.clone(), told.clone());
            move || _ = &owned
        };
        let (near, _far) = UnixStream::pair().unwrap();
        let (watch, ready) = (closure(), closure());
        std::mem::forget(ctx.new_bottom_half(closure()));
        std::mem::forget(ctx.new_timer(closure()));
        std::mem::forget(ctx.add_fd_handler(near, Interest::Read, move |_| watch()));
        std::mem::forget(ctx.add_poll_handler(move || matches!(ready(), ()), || {}));
        ctx.schedule_oneshot(closure()).unwrap();
    });
    drop(told);
    assert_eq!(tell.iter().collect::<Vec<_>>(), [true; 5]);
}

#[test]
fn grant_to_an_unwound_waiter_is_returned() {
    // C9, S3, S4: a waiter that was granted permits or a share, and whose context ends before it
    // runs, returns them. The property tests check mutexes and queues
    let (semaphore, lock) = (Rc::new(Semaphore::new(1)), Rc::new(CoRwLock::new(())));
    AioContext::run(|ctx| {
        let (permit, writing) = (semaphore.try_acquire().unwrap(), lock.try_write().unwrap());
        let (permits, share) = (Rc::clone(&semaphore), Rc::clone(&lock));
        drop(spawn(move || permits.acquire().forget()));
        drop(spawn(move || drop(share.read())));
        ctx.poll(false);
        drop((permit, writing));
        assert_eq!(semaphore.available(), 0);
        assert!(lock.try_write().is_none());
    });
    assert_eq!(semaphore.available(), 1);
    assert!(lock.try_write().is_some());
}
