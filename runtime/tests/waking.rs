//! Waking: from home, from other threads, at every moment; once, in order, without stack growth.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use common::{Log, panic_of, scaled};
use coralio_runtime::{AioContext, Coroutine, JoinHandle, Waker, spawn, suspend, yield_now};

/// Creates a coroutine that logs `name` each time it runs.
fn noting(log: &Log, name: &'static str) -> Coroutine {
    let log = log.clone();
    let forever = move || {
        loop {
            log.add(name);
            suspend();
        }
    };
    Coroutine::builder().name(name).create(forever).unwrap()
}

#[test]
fn wake_outside_a_coroutine_enters_immediately() {
    // W1: a wake from home, outside any coroutine, enters the coroutine immediately; in a bottom
    // half too
    AioContext::run(|ctx| {
        let log = Log::default();
        let x = noting(&log, "x");
        x.wake();
        log.add("main");
        assert_eq!(log.take(), "x main");
        let waker = x.waker();
        waker.wake();
        assert_eq!(log.take(), "x");
        ctx.schedule_oneshot({
            let log = log.clone();
            move || {
                waker.wake();
                log.add("bottom-half");
            }
        })
        .unwrap();
        ctx.poll(false);
        assert_eq!(log.take(), "x bottom-half");
    });
}

#[test]
fn wake_by_a_coroutine_is_deferred_until_it_yields() {
    // W1: coroutines woken by a coroutine run when it yields or ends, from the same caller, in
    // order of waking
    AioContext::run(|_| {
        let log = Log::default();
        let [x, y, z] = ["x", "y", "z"].map(|name| noting(&log, name));
        let a = Coroutine::builder().name("a");
        let a = a.create({
            let log = log.clone();
            move || {
                y.wake();
                x.wake();
                y.wake(); // woken already: once
                let inner = Coroutine::new({
                    let log = log.clone();
                    move || log.add("inner")
                });
                inner.enter(); // its end is not the end of a
                log.add("a1");
                suspend();
                z.wake();
                log.add("a2");
            }
        });
        let a = a.unwrap();
        a.enter();
        log.add("main");
        a.enter();
        assert_eq!(log.take(), "inner a1 y x main a2 z");
    });
}

#[test]
fn wake_chain_does_not_grow_stack() {
    // W1: a chain of wakes does not grow the stack: each coroutine runs directly on the first
    // caller's stack
    let count = scaled(25_000);
    let small = thread::Builder::new().stack_size(256 * 1024);
    let work = move || {
        AioContext::builder()
            .stack_size(16 * 1024)
            .run(|_| {
                let deepest = Rc::new(Cell::new(0));
                let mut next: Option<Coroutine> = None;
                for _ in 0..count {
                    let (deepest, wakes) = (Rc::clone(&deepest), next);
                    next = Some(Coroutine::new(move || {
                        let chain = Coroutine::current().unwrap().try_enter().unwrap_err().to_string();
                        deepest.set(deepest.get().max(chain.matches(" > ").count()));
                        if let Some(next) = wakes {
                            next.wake();
                        }
                    }));
                }
                next.unwrap().enter();
                assert_eq!(deepest.get(), 1);
            })
            .unwrap();
    };
    small.spawn(work).unwrap().join().unwrap();
}

#[test]
fn poll_within_a_coroutine_runs_woken_coroutines() {
    // W1: a coroutine that polls does not yield: the coroutines that it woke run in the nested
    // iteration, once
    AioContext::run(|ctx| {
        let log = Log::default();
        let (x, y) = (noting(&log, "x"), noting(&log, "y"));
        let a = Coroutine::new({
            let (log, ctx) = (log.clone(), ctx.clone());
            move || {
                x.wake();
                let b = Coroutine::new({
                    let (log, ctx) = (log.clone(), ctx.clone());
                    move || {
                        y.wake();
                        log.add("poll");
                        assert!(ctx.poll(false));
                        log.add("polled");
                    }
                });
                b.enter();
                log.add("a");
            }
        });
        a.enter();
        assert!(!ctx.poll(false));
        // The inner coroutine woke y, the outer one x.
        assert_eq!(log.take(), "poll y x polled a");
    });
}

#[test]
fn second_schedule_names_both_call_sites() {
    // W2: a second schedule before the coroutine has run is an error that names both places
    AioContext::run(|ctx| {
        let log = Log::default();
        let co = noting(&log, "co");
        let waker = co.waker();
        let line = line!();
        co.schedule().unwrap();
        let error = co.schedule().unwrap_err();
        assert_eq!((error.first.line(), error.second.line()), (line + 1, line + 2));
        assert_eq!(
            error.to_string(),
            format!(
                "coroutine scheduled twice before it ran: at {0}:{1}:12, then at {0}:{2}:24",
                file!(),
                line + 1,
                line + 2
            )
        );
        let elsewhere = thread::scope(|scope| scope.spawn(|| waker.schedule().unwrap_err()).join().unwrap());
        assert_eq!(elsewhere.first.line(), line + 1);
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "co");
        co.schedule().unwrap();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "co");
        assert!(!ctx.poll(false));
    });
}

#[test]
fn wake_from_another_thread_notifies_the_loop() {
    // W1: a wake from another thread puts the coroutine on its home's list, and notifies that loop
    AioContext::run(|ctx| {
        let home = thread::current().id();
        let (send, receive) = mpsc::channel::<Waker>();
        let other = thread::spawn(move || {
            for waker in receive {
                waker.wake();
            }
        });
        let task = spawn(move || {
            for _ in 0..scaled(1000) {
                send.send(Coroutine::current().unwrap().waker()).unwrap();
                suspend();
                assert_eq!(thread::current().id(), home);
            }
        });
        while !task.is_finished() {
            ctx.poll(true);
        }
        task.join().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn wake_from_another_context_notifies_the_loop() {
    // W1: a coroutine woken by a coroutine of another context runs at its own home, never on that
    // thread
    let (send, receive) = mpsc::channel::<Waker>();
    let other = thread::spawn(move || {
        AioContext::run(|_| {
            let task = spawn(move || {
                for waker in receive {
                    waker.wake();
                }
            });
            task.join().unwrap();
        });
    });
    AioContext::run(|_| {
        let task = spawn(move || {
            let home = thread::current().id();
            for _ in 0..scaled(100) {
                send.send(Coroutine::current().unwrap().waker()).unwrap();
                suspend();
                assert_eq!(thread::current().id(), home);
            }
        });
        task.join().unwrap();
    });
    other.join().unwrap();
}

#[test]
fn wake_before_the_suspension_is_not_lost() {
    // W3: a wake while the coroutine is still entered makes it continue; two wakes, only once
    AioContext::run(|ctx| {
        let log = Log::default();
        let run = |from_elsewhere: bool, times: usize| {
            let inner = log.clone();
            let co = Coroutine::new(move || {
                let waker = Coroutine::current().unwrap().waker();
                for _ in 0..times {
                    if from_elsewhere {
                        thread::scope(|scope| scope.spawn(|| waker.wake()).join().unwrap());
                    } else {
                        waker.wake();
                    }
                }
                suspend();
                inner.add("on");
                suspend();
                inner.add("not-yet");
            });
            co.enter();
            assert_eq!(log.take(), "", "it yields nevertheless");
            assert!(ctx.poll(true));
            assert_eq!(log.take(), "on");
            assert!(!ctx.poll(false));
            co.enter();
            assert_eq!(log.take(), "not-yet");
        };
        for times in [1, 2] {
            run(false, times);
            run(true, times);
        }
    });
}

#[test]
fn wake_taken_by_a_nested_poll_is_not_lost() {
    // W3: a wake from elsewhere, accepted by a nested poll while the coroutine is still entered,
    // still counts
    AioContext::run(|ctx| {
        let log = Log::default();
        let co = Coroutine::new({
            let (log, ctx) = (log.clone(), ctx.clone());
            move || {
                let waker = Coroutine::current().unwrap().waker();
                thread::scope(|scope| scope.spawn(|| waker.wake()).join().unwrap());
                ctx.poll(false);
                suspend();
                log.add("on");
            }
        });
        co.enter();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "on");
    });
}

#[test]
fn no_wake_is_lost_among_many_threads() {
    // W3: each token arrives, however wakes and suspensions of two threads interleave
    let rounds = scaled(20_000);
    AioContext::run(|ctx| {
        let tokens = Arc::new(AtomicUsize::new(0));
        let taken = Arc::new(AtomicUsize::new(0));
        let (send, receive) = mpsc::channel::<Waker>();
        let task = spawn({
            let (tokens, taken) = (Arc::clone(&tokens), Arc::clone(&taken));
            move || {
                send.send(Coroutine::current().unwrap().waker()).unwrap();
                while taken.load(Ordering::Relaxed) < rounds {
                    // The decision to suspend is made here; the token may arrive right now.
                    if tokens.swap(0, Ordering::Acquire) == 0 {
                        suspend();
                    } else {
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        let waker = {
            ctx.poll(false);
            receive.recv().unwrap()
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..rounds {
                    tokens.store(1, Ordering::Release);
                    waker.wake();
                    while taken.load(Ordering::Relaxed) == round {
                        thread::yield_now();
                    }
                }
            });
            while !task.is_finished() {
                ctx.poll(true);
            }
        });
        task.join().unwrap();
    });
}

#[test]
fn coroutine_that_scheduled_itself_and_ended_does_not_run() {
    // W2, W4: scheduling an ended coroutine whose result is not fetched is no error, and does
    // nothing
    AioContext::run(|ctx| {
        let task = spawn(|| Coroutine::current().unwrap().schedule().unwrap());
        assert!(ctx.poll(false));
        assert!(task.is_finished());
        task.coroutine().schedule().unwrap();
        assert!(!ctx.poll(false));
        task.join().unwrap();
    });
}

#[test]
fn wake_of_an_ended_coroutine_does_nothing() {
    // W4: a wake for an ended coroutine does nothing, even if its control block and stack are
    // reused by then
    AioContext::run(|ctx| {
        let log = Log::default();
        let first = Coroutine::new(|| {});
        let waker = first.waker();
        first.enter();
        first.wake();
        waker.wake();
        let second = noting(&log, "second");
        first.wake();
        waker.wake();
        waker.schedule().unwrap();
        first.schedule().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                waker.wake();
                waker.schedule().unwrap();
            });
        });
        assert!(!ctx.poll(false));
        assert_eq!(log.take(), "");
        assert!(first.has_ended() && !second.has_ended());
        assert_ne!(first, second);
        second.enter();
        assert_eq!(log.take(), "second");

        // Already on the list when it ends, and its successor suspended when the list is read.
        let third = Coroutine::new(suspend);
        third.enter();
        let waker = third.waker();
        thread::scope(|scope| scope.spawn(|| waker.schedule().unwrap()).join().unwrap());
        third.wake();
        assert!(third.has_ended());
        let fourth = noting(&log, "fourth");
        ctx.poll(false);
        assert_eq!(log.take(), "");
        assert!(!fourth.has_ended());
    });
}

#[test]
fn handles_kept_past_the_end_do_nothing() {
    // W4: handles and wakers kept past the context's end do nothing, or return errors; in a later
    // context too
    let kept = AioContext::run(|_| {
        let co = Coroutine::new(suspend);
        co.enter();
        (co, co.waker())
    });
    let use_them = || {
        let (co, waker) = &kept;
        assert!(co.has_ended() && !co.is_entered());
        assert_eq!(co.to_string(), "(ended)");
        assert!(co.try_enter().is_err());
        co.wake();
        waker.wake();
        co.schedule().unwrap();
        waker.schedule().unwrap();
    };
    use_them();
    AioContext::run(|ctx| {
        let task = spawn(yield_now);
        use_them();
        task.join().unwrap();
        assert!(!ctx.poll(false));
    });
}

#[test]
fn wakes_after_the_contexts_end_do_nothing() {
    // W4: wakes that continue while and after the context ends have no effect, even if its control
    // blocks are reused
    let stop = Arc::new(AtomicBool::new(false));
    let (send, receive) = mpsc::channel::<Waker>();
    let other = thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut wakers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                wakers.extend(receive.try_iter());
                wakers.iter().for_each(Waker::wake);
                thread::yield_now();
            }
        }
    });
    for _ in 0..scaled(50) {
        let send = send.clone();
        AioContext::run(|ctx| {
            for _ in 0..10 {
                let send = send.clone();
                drop(spawn(move || {
                    send.send(Coroutine::current().unwrap().waker()).unwrap();
                    suspend();
                    suspend();
                }));
            }
            ctx.poll(false);
            ctx.poll(false);
        });
    }
    stop.store(true, Ordering::Relaxed);
    other.join().unwrap();
}

#[test]
fn wake_by_a_destructor_during_unwinding_runs_later() {
    // W1: a destructor of a thread that unwinds enters no coroutine; a coroutine that it wakes runs
    // in the next iteration
    AioContext::run(|ctx| {
        struct WakeOnDrop(Coroutine);
        impl Drop for WakeOnDrop {
            fn drop(&mut self) {
                self.0.wake();
            }
        }
        let log = Log::default();
        let x = noting(&log, "x");
        common::panic_of(|| {
            let _wake = WakeOnDrop(x);
            panic!("on the thread's own stack");
        });
        assert_eq!(log.take(), "");
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "x");
    });
}

#[test]
fn yield_now_runs_after_earlier_scheduled_coroutines() {
    // W1: whether scheduled from this thread or another, or spawned
    AioContext::run(|ctx| {
        let log = Log::default();
        let (here, elsewhere) = (noting(&log, "here"), noting(&log, "elsewhere"));
        let waker = elsewhere.waker();
        let yields = Coroutine::new({
            let log = log.clone();
            move || {
                here.schedule().unwrap();
                thread::spawn(move || waker.wake()).join().unwrap();
                let spawned = log.clone();
                drop(spawn(move || spawned.add("spawned")));
                yield_now();
                log.add("gave-way");
            }
        });
        yields.enter();
        ctx.poll(false);
        assert_eq!(log.take(), "here elsewhere spawned gave-way");
    });
}

/// Runs code when dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Runs `f` in a context that has no memory for coroutines of the default stack size: work spawned
/// there from another thread is dropped as it begins. Passes `f` a suspended coroutine with a small
/// stack.
fn where_spawning_fails(f: impl FnOnce(&AioContext, JoinHandle<()>)) {
    const TOO_LARGE: usize = 1 << 47;
    let run = AioContext::builder().stack_size(TOO_LARGE).run(|ctx| {
        let waits = Coroutine::builder().stack_size(64 * 1024).spawn(suspend).unwrap();
        ctx.poll(false);
        f(ctx, waits);
    });
    run.unwrap();
}

#[test]
fn panicking_arrival_keeps_arrivals_behind_it() {
    // W3: an arrival from another thread panics as it begins; the wake and the closure behind it
    // are taken up all the same
    where_spawning_fails(|ctx, waits| {
        let waker = waits.coroutine().waker();
        let later = thread::scope(|scope| {
            let brings = || {
                let bomb = OnDrop(|| panic!("dropped"));
                drop(ctx.spawn(move || drop(bomb)));
                waker.wake();
                ctx.spawn(|| ())
            };
            scope.spawn(brings).join().unwrap()
        });
        assert_eq!(panic_of(|| ctx.poll(false)), "dropped");
        assert!(ctx.poll(true), "the rest is due");
        assert!(waits.is_finished() && later.is_finished());
        assert!(waker.schedule().is_ok());
    });
}

#[test]
fn nested_round_goes_on_with_arrivals() {
    // W3, X2: an arrival runs a nested iteration as it begins, which takes up the arrivals behind
    // it, once
    where_spawning_fails(|ctx, waits| {
        let waker = waits.coroutine().waker();
        let (send, receive) = mpsc::channel();
        let theirs = ctx.clone();
        thread::scope(|scope| {
            let brings = || {
                let polls = OnDrop(move || send.send(theirs.poll(false)).unwrap());
                drop(ctx.spawn(move || drop(polls)));
                waker.wake();
            };
            scope.spawn(brings).join().unwrap();
        });
        ctx.poll(false);
        assert_eq!((receive.try_recv(), waits.is_finished()), (Ok(true), true));
    });
}

#[test]
fn destructor_that_panics_at_the_end_leaks_nothing() {
    // W3, C8: one destructor panics at the context's end; everything else is dropped, and handles
    // learn of the end
    let log = Log::default();
    let kept = std::cell::OnceCell::new();
    let mut handle = None;
    let ended = panic_of(|| {
        AioContext::run(|ctx| {
            let ctx = kept.get_or_init(|| ctx.clone());
            let (bomb, timer) = (OnDrop(|| panic!("dropped")), log.on_drop("timer"));
            std::mem::forget(ctx.new_bottom_half(move || _ = &bomb));
            std::mem::forget(ctx.new_timer(move || _ = &timer));
            handle = Some(thread::scope(|scope| scope.spawn(|| ctx.spawn(|| ())).join().unwrap()));
        });
    });
    assert_eq!(ended, "dropped");
    assert_eq!(log.take(), "timer");
    assert!(handle.unwrap().is_finished());
}
