//! The loop: what a round does, bottom halves, nested polls, the lock, sleeping and being kicked.

#![allow(unsafe_code)]

mod common;

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;
use std::{io, rc};

use common::{Log, panic_of, scaled};
use coralio_runtime::{AioContext, BottomHalf, Coroutine, Source, spawn, suspend, yield_now};

fn noting(ctx: &AioContext, log: &Log, name: &'static str) -> BottomHalf {
    let log = log.clone();
    ctx.bottom_half(move || log.add(name))
}

/// Where a callback finds its own bottom half.
type Slot = Arc<Mutex<Option<BottomHalf>>>;

#[test]
fn poll_says_whether_anything_progressed() {
    // X1: a poll runs one round and says whether anything progressed; without blocking it never sleeps
    AioContext::run(|ctx| {
        assert!(!ctx.poll(false));
        let task = spawn(yield_now);
        assert!(ctx.poll(false));
        assert!(!task.is_finished(), "what becomes ready in a round waits for the next");
        assert!(ctx.poll(false));
        assert!(task.is_finished());
        assert!(!ctx.poll(false));
    });
}

#[test]
fn blocking_it_sleeps_till_something_is_due() {
    // X1: a blocking poll sleeps till something is due, and runs it before it returns
    AioContext::run(|ctx| {
        let (send, receive) = mpsc::channel();
        let other = thread::spawn({
            let ctx = ctx.clone();
            move || ctx.schedule_oneshot(move || send.send(thread::current().id()).unwrap())
        });
        while receive.try_recv() != Ok(thread::current().id()) {
            ctx.poll(true);
        }
        other.join().unwrap();
    });
}

#[test]
fn bottom_halves_run_once_in_order() {
    // X3: scheduled however often it runs once in the next round; they run in the order they were scheduled
    AioContext::run(|ctx| {
        let log = Log::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| noting(ctx, &log, name));
        c.schedule();
        a.schedule();
        b.schedule();
        c.schedule();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "c a b");
        assert!(!ctx.poll(false));
    });
}

#[test]
fn scheduled_in_a_round_it_runs_in_the_next() {
    // X3: one scheduled during a round, by itself too, runs in the next
    AioContext::run(|ctx| {
        let log = Log::default();
        let later = Arc::new(noting(ctx, &log, "later"));
        let slot = Slot::default();
        let again = ctx.bottom_half({
            let (log, slot, later) = (log.clone(), Arc::clone(&slot), Arc::clone(&later));
            move || {
                log.add("again");
                later.schedule();
                slot.lock().unwrap().as_ref().unwrap().schedule();
            }
        });
        again.schedule();
        slot.lock().unwrap().replace(again);
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "again");
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "later again");
        slot.lock().unwrap().as_ref().unwrap().cancel();
        later.cancel();
        assert!(!ctx.poll(false));
        slot.lock().unwrap().take();
    });
}

#[test]
fn cancel_undoes_a_schedule() {
    // X3: cancel undoes a schedule, also of one that the round has taken up already; scheduled anew it runs again
    AioContext::run(|ctx| {
        let log = Log::default();
        let a = noting(ctx, &log, "a");
        a.schedule();
        a.cancel();
        assert!(!ctx.poll(false));
        a.schedule();
        a.cancel();
        a.schedule();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "a");

        let a = Arc::new(a);
        let canceller = ctx.bottom_half({
            let a = Arc::clone(&a);
            move || a.cancel()
        });
        canceller.schedule();
        a.schedule();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "");
        assert!(!ctx.poll(false));
    });
}

#[test]
fn dropping_deletes_it() {
    // X3: dropping deletes a bottom half, scheduled or not, and its callback with it; within its own callback too
    AioContext::run(|ctx| {
        let log = Log::default();
        let bh = |name: &'static str| {
            let (log, drops) = (log.clone(), log.on_drop(format!("dropped-{name}")));
            ctx.bottom_half(move || {
                let _ = &drops;
                log.add(name);
            })
        };
        let a = bh("a");
        a.schedule();
        drop(a);
        assert_eq!(log.take(), "dropped-a");
        assert!(!ctx.poll(false));

        let slot = Slot::default();
        let own = ctx.bottom_half({
            let (log, drops, slot) = (log.clone(), log.on_drop("dropped-own"), Arc::clone(&slot));
            move || {
                let _ = &drops;
                let me = slot.lock().unwrap().take().unwrap();
                me.schedule();
                drop(me);
                log.add("still-running");
            }
        });
        own.schedule();
        slot.lock().unwrap().replace(own);
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "still-running dropped-own");
        assert!(!ctx.poll(false));
    });
}

#[test]
fn idle_ones_run_without_keeping_the_loop_busy() {
    // X3: schedule_idle runs when its time has come, keeps no loop busy, not even one that schedules itself
    AioContext::run(|ctx| {
        let runs = Arc::new(AtomicUsize::new(0));
        let slot = Slot::default();
        let idle = ctx.bottom_half({
            let (runs, slot) = (Arc::clone(&runs), Arc::clone(&slot));
            move || {
                runs.fetch_add(1, Ordering::Relaxed);
                slot.lock().unwrap().as_ref().unwrap().schedule_idle();
            }
        });
        slot.lock().unwrap().replace(idle);
        slot.lock().unwrap().as_ref().unwrap().schedule_idle();
        let mut polls = 0;
        while runs.load(Ordering::Relaxed) < 3 {
            ctx.poll(true);
            polls += 1;
        }
        assert!(polls <= 12, "the loop slept till each was due, and did not spin: {polls} polls");
        slot.lock().unwrap().take();
    });
}

#[test]
fn a_plain_schedule_overrides_an_idle_one() {
    // X3: a plain schedule overrides an idle one, not the other way; it runs once for both; cancel undoes both
    AioContext::run(|ctx| {
        let log = Log::default();
        let a = noting(ctx, &log, "a");
        a.schedule_idle();
        a.schedule();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "a");
        a.schedule();
        a.schedule_idle();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "a");
        a.schedule_idle();
        a.cancel();
        // Idle since before b: it would run before it.
        let b = noting(ctx, &log, "b");
        b.schedule_idle();
        while log.take() != "b" {
            ctx.poll(true);
        }
        assert!(!ctx.poll(false));
    });
}

#[test]
fn from_any_thread() {
    // X3: schedule, cancel and one-shots work from any thread; each one-shot runs once and frees itself
    AioContext::run(|ctx| {
        let (threads, each) = (4, scaled(500));
        let runs = Arc::new(AtomicUsize::new(0));
        let total = Arc::new(AtomicUsize::new(0));
        let bh = ctx.bottom_half({
            let runs = Arc::clone(&runs);
            move || {
                runs.fetch_add(1, Ordering::Relaxed);
            }
        });
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for n in 0..each {
                        let total = Arc::clone(&total);
                        ctx.schedule_oneshot(move || {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                        if n % 3 == 0 { bh.cancel() } else { bh.schedule() }
                    }
                    bh.schedule();
                });
            }
            while total.load(Ordering::Relaxed) < threads * each {
                ctx.poll(true);
            }
        });
        ctx.poll(false);
        assert_eq!(Arc::strong_count(&total), 1, "every one-shot is freed");
        let runs = runs.load(Ordering::Relaxed);
        assert!((1..=threads * (each + 1)).contains(&runs), "{runs}");
        assert!(!ctx.poll(false));
    });
}

#[test]
fn a_nested_poll_goes_on_where_the_outer_one_stands() {
    // X2: a nested poll first runs what the outer round took up and had not run; nothing is lost or runs twice
    AioContext::run(|ctx| {
        let log = Log::default();
        let [b, c] = ["b", "c"].map(|name| noting(ctx, &log, name));
        let new = Arc::new(noting(ctx, &log, "new"));
        let slot = Slot::default();
        let a = ctx.bottom_half({
            let (ctx, log, new, slot) = (ctx.clone(), log.clone(), Arc::clone(&new), Arc::clone(&slot));
            move || {
                log.add("(");
                new.schedule();
                // It is not entered again while it runs.
                slot.lock().unwrap().as_ref().unwrap().schedule();
                assert!(ctx.poll(false));
                assert!(!ctx.poll(false));
                log.add(")");
                slot.lock().unwrap().as_ref().unwrap().cancel();
            }
        });
        a.schedule();
        slot.lock().unwrap().replace(a);
        b.schedule();
        c.schedule();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "( b c new )");
        assert!(!ctx.poll(false));
        slot.lock().unwrap().take();
    });
}

#[test]
fn coroutines_taken_up_by_the_outer_round_run_in_the_nested_one() {
    // X2: a coroutine that polls runs the ready ones that the outer round had taken up, each once
    AioContext::run(|ctx| {
        let log = Log::default();
        let tasks: Vec<_> = (0..4)
            .map(|n| {
                let (ctx, log) = (ctx.clone(), log.clone());
                spawn(move || {
                    log.add(n);
                    if n == 1 {
                        ctx.poll(false);
                        log.add("back");
                    }
                    yield_now();
                    log.add(n * 10);
                })
            })
            .collect();
        assert!(ctx.poll(false));
        // The nested round began when 0 had been made ready again, and took that up too.
        assert_eq!(log.take(), "0 1 2 3 0 back");
        for task in tasks {
            task.join().unwrap();
        }
        assert_eq!(log.take(), "20 30 10");
    });
}

#[test]
fn panics_leave_the_loop_right() {
    // C8: a panic in a bottom half or a coroutine comes out of poll; what else was taken up runs in the next
    AioContext::run(|ctx| {
        let log = Log::default();
        let bad = ctx.bottom_half({
            let log = log.clone();
            move || {
                log.add("bad");
                panic!("in a bottom half");
            }
        });
        let [a, b] = ["a", "b"].map(|name| noting(ctx, &log, name));
        for _ in 0..3 {
            a.schedule();
            bad.schedule();
            b.schedule();
            assert_eq!(panic_of(|| ctx.poll(false)), "in a bottom half");
            assert_eq!(log.take(), "a bad");
            assert!(ctx.poll(true));
            assert_eq!(log.take(), "b");
        }
        let co = Coroutine::new(|| panic!("in a coroutine"));
        co.schedule().unwrap();
        let after = spawn(|| 3);
        assert_eq!(panic_of(|| ctx.poll(false)), "in a coroutine");
        assert_eq!(after.join().unwrap(), 3);
        // Nothing is held: another thread can have the lock.
        thread::scope(|scope| scope.spawn(|| drop(ctx.acquire())).join().unwrap());
    });
}

#[test]
fn the_lock_is_recursive_and_keeps_others_out() {
    // X8: acquire blocks until no other thread has it, and is recursive; the loop has it while it dispatches
    AioContext::run(|ctx| {
        let inside = Arc::new(AtomicUsize::new(0));
        let enter = |inside: &AtomicUsize| {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two threads at once");
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
                        ctx.schedule_oneshot(move || enter(&inside));
                    }
                    finished.fetch_add(1, Ordering::Relaxed);
                    ctx.schedule_oneshot(|| {});
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
fn the_loop_lets_go_of_the_lock_while_it_sleeps() {
    // X8: the loop does not hold the lock while it sleeps, however often its thread had acquired it
    AioContext::run(|ctx| {
        let woken = rc::Rc::new(std::cell::Cell::new(false));
        let _twice = (ctx.acquire(), ctx.acquire());
        let (send, receive) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                // Can be had only while the loop sleeps.
                let _guard = ctx.acquire();
                ctx.schedule_oneshot(move || send.send(()).unwrap());
            });
            while receive.try_recv().is_err() {
                ctx.poll(true);
            }
            woken.set(true);
            // Both are back: nobody else gets in.
            assert!(scope.spawn(|| ctx.try_acquire().is_none()).join().unwrap());
        });
        assert!(woken.get());
    });
}

#[test]
fn a_foreign_poll_runs_handlers_and_enters_no_coroutine() {
    // X8: a foreign thread that has the lock may poll: it runs handlers; coroutines are entered at home alone
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
        });
        thread::scope(|scope| {
            let foreign = scope.spawn(|| {
                let _guard = ctx.acquire();
                assert!(!ctx.is_home());
                assert!(ctx.poll(false));
                assert!(!ctx.poll(false), "what is ready is left to home");
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
fn a_foreign_panic_leaves_the_lock_free() {
    // C8: a panic in a bottom half that a foreign poll runs leaves the lock free, and the rest for the loop
    AioContext::run(|ctx| {
        let log = Log::default();
        let later = log.clone();
        ctx.schedule_oneshot(|| panic!("abroad"));
        ctx.schedule_oneshot(move || later.add("rest"));
        thread::scope(|scope| {
            scope.spawn(|| assert_eq!(panic_of(|| ctx.poll(false)), "abroad")).join().unwrap();
        });
        assert!(ctx.poll(true));
        assert_eq!(log.take(), "rest");
    });
}

#[test]
fn a_guard_that_outlives_its_context() {
    // X8: a guard taken through a clone of the context may be dropped after the context ended
    let kept = std::cell::OnceCell::new();
    let guard = AioContext::run(|ctx| kept.get_or_init(|| ctx.clone()).acquire());
    // Another context's home has come to lie where the first one's was.
    AioContext::run(|ctx| {
        drop(guard);
        let task = spawn(yield_now);
        task.join().unwrap();
        drop(ctx.acquire());
    });
}

#[test]
fn no_kick_is_lost() {
    // X6: however notify and the decision to sleep fall together, the loop comes round
    AioContext::run(|ctx| {
        let rounds = scaled(20_000);
        let (send, receive) = mpsc::channel();
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                for round in 0..rounds {
                    let send = send.clone();
                    ctx.schedule_oneshot(move || send.send(round).unwrap());
                    if round % 2 == 0 {
                        thread::yield_now();
                    }
                }
            });
            barrier.wait();
            let mut next = 0;
            while next < rounds {
                ctx.poll(true);
                for round in receive.try_iter() {
                    assert_eq!(round, next);
                    next += 1;
                }
            }
        });
    });
}

/// A source that sleeps on the loop's descriptor only.
struct Sleeper {
    ctx: AioContext,
    sleeps: AtomicUsize,
    spurious: AtomicUsize,
}

impl Source for Sleeper {
    fn dispatch(&self) -> bool {
        false
    }

    fn flush(&self, _all: bool) -> bool {
        false
    }

    fn is_ready(&self) -> bool {
        false
    }

    fn sleep(&self, other: BorrowedFd<'_>, _timeout: Option<Duration>) -> Option<io::Result<()>> {
        let mut fd = libc::pollfd { fd: other.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, alive during the call.
        if unsafe { libc::poll(&mut fd, 1, 0) } != 0 {
            self.spurious.fetch_add(1, Ordering::Relaxed);
        }
        self.sleeps.fetch_add(1, Ordering::Relaxed);
        let ctx = self.ctx.clone();
        let kick = thread::spawn(move || ctx.schedule_oneshot(|| {}));
        // SAFETY: as above.
        assert_eq!(unsafe { libc::poll(&mut fd, 1, -1) }, 1);
        kick.join().unwrap();
        Some(Ok(()))
    }
}

#[test]
fn a_source_does_not_find_an_old_kick() {
    // X6: a kick ends one sleep, also one that an I/O engine does for the loop; the next sleep is a sleep again
    AioContext::run(|ctx| {
        let sleeper =
            Arc::new(Sleeper { ctx: ctx.clone(), sleeps: AtomicUsize::new(0), spurious: AtomicUsize::new(0) });
        ctx.attach(Arc::clone(&sleeper) as Arc<dyn Source>).unwrap();
        for sleeps in 1..=5 {
            assert!(ctx.poll(true));
            assert_eq!(sleeper.sleeps.load(Ordering::Relaxed), sleeps);
        }
        assert_eq!(sleeper.spurious.load(Ordering::Relaxed), 0);
    });
}
