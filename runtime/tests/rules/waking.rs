//! Waking: from home, from other threads, at every moment; once, in order, without stack growth.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use crate::common::{Log, panic_of, scaled};
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
