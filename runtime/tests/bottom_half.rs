//! Bottom halves: scheduled, cancelled, dropped, idle, from any thread, and run by nested polls.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{Log, scaled};
use coralio_runtime::{AioContext, BottomHalf};

fn noting(ctx: &AioContext, log: &Log, name: &'static str) -> BottomHalf {
    let log = log.clone();
    ctx.new_bottom_half(move || log.add(name)).unwrap()
}

/// Where a callback finds its own bottom half.
type Slot = Arc<Mutex<Option<BottomHalf>>>;

#[test]
fn bottom_halves_run_once_in_order() {
    // X3: a bottom half runs once in the next iteration, however often it was scheduled, in order
    // of scheduling
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
fn bottom_half_scheduled_in_an_iteration_runs_in_the_next() {
    // X3: a bottom half scheduled during an iteration, even by itself, runs in the next one
    AioContext::run(|ctx| {
        let log = Log::default();
        let later = Arc::new(noting(ctx, &log, "later"));
        let slot = Slot::default();
        let again = ctx
            .new_bottom_half({
                let (log, slot, later) = (log.clone(), Arc::clone(&slot), Arc::clone(&later));
                move || {
                    log.add("again");
                    later.schedule();
                    slot.lock().unwrap().as_ref().unwrap().schedule();
                }
            })
            .unwrap();
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
    // X3: cancel undoes a schedule, even if the iteration has taken it up already; scheduled again,
    // it runs again
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
        let canceller = ctx
            .new_bottom_half({
                let a = Arc::clone(&a);
                move || a.cancel()
            })
            .unwrap();
        canceller.schedule();
        a.schedule();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "");
        assert!(!ctx.poll(false));
    });
}

#[test]
fn drop_deletes_a_bottom_half() {
    // X3: dropping the handle deletes a bottom half and its callback, scheduled or not, even within
    // its own callback
    AioContext::run(|ctx| {
        let log = Log::default();
        let bh = |name: &'static str| {
            let (log, drops) = (log.clone(), log.on_drop(format!("dropped-{name}")));
            ctx.new_bottom_half(move || {
                let _ = &drops;
                log.add(name);
            })
            .unwrap()
        };
        let a = bh("a");
        a.schedule();
        drop(a);
        assert_eq!(log.take(), "dropped-a");
        assert!(!ctx.poll(false));

        let slot = Slot::default();
        let own = ctx
            .new_bottom_half({
                let (log, drops, slot) = (log.clone(), log.on_drop("dropped-own"), Arc::clone(&slot));
                move || {
                    let _ = &drops;
                    let me = slot.lock().unwrap().take().unwrap();
                    me.schedule();
                    drop(me);
                    log.add("still-running");
                }
            })
            .unwrap();
        own.schedule();
        slot.lock().unwrap().replace(own);
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "still-running dropped-own");
        assert!(!ctx.poll(false));
    });
}

#[test]
fn idle_bottom_halves_do_not_keep_the_loop_busy() {
    // X3: an idle bottom half runs when its delay has passed, and does not keep the loop busy even
    // if it reschedules itself
    AioContext::run(|ctx| {
        let runs = Arc::new(AtomicUsize::new(0));
        let slot = Slot::default();
        let idle = ctx
            .new_bottom_half({
                let (runs, slot) = (Arc::clone(&runs), Arc::clone(&slot));
                move || {
                    runs.fetch_add(1, Ordering::Relaxed);
                    slot.lock().unwrap().as_ref().unwrap().schedule_idle();
                }
            })
            .unwrap();
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
fn plain_schedule_overrides_an_idle_schedule() {
    // X3: a plain schedule overrides an idle one but not the reverse; it runs once for both; cancel
    // undoes both
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
        // Idle since before b: it would run before b.
        let b = noting(ctx, &log, "b");
        b.schedule_idle();
        while log.take() != "b" {
            ctx.poll(true);
        }
        assert!(!ctx.poll(false));
    });
}

#[test]
fn bottom_half_is_scheduled_from_any_thread() {
    // X3: schedule, cancel and one-shots work from any thread; each one-shot runs once and frees
    // itself
    AioContext::run(|ctx| {
        let (threads, each) = (4, scaled(500));
        let runs = Arc::new(AtomicUsize::new(0));
        let total = Arc::new(AtomicUsize::new(0));
        let bh = ctx
            .new_bottom_half({
                let runs = Arc::clone(&runs);
                move || {
                    runs.fetch_add(1, Ordering::Relaxed);
                }
            })
            .unwrap();
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    for n in 0..each {
                        let total = Arc::clone(&total);
                        ctx.schedule_oneshot(move || {
                            total.fetch_add(1, Ordering::Relaxed);
                        })
                        .unwrap();
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
fn nested_poll_continues_where_the_outer_poll_stopped() {
    // X2: a nested poll first runs the bottom halves that the outer iteration took up and has not
    // run; none is lost or runs twice
    AioContext::run(|ctx| {
        let log = Log::default();
        let [b, c] = ["b", "c"].map(|name| noting(ctx, &log, name));
        let new = Arc::new(noting(ctx, &log, "new"));
        let slot = Slot::default();
        let a = ctx
            .new_bottom_half({
                let (ctx, log, new, slot) = (ctx.clone(), log.clone(), Arc::clone(&new), Arc::clone(&slot));
                let mut first = true;
                move || {
                    if !std::mem::take(&mut first) {
                        return log.add("again");
                    }
                    log.add("(");
                    new.schedule();
                    // A running callback is not entered again.
                    slot.lock().unwrap().as_ref().unwrap().schedule();
                    assert!(ctx.poll(false));
                    assert!(!ctx.poll(false));
                    log.add(")");
                }
            })
            .unwrap();
        a.schedule();
        slot.lock().unwrap().replace(a);
        b.schedule();
        c.schedule();
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "( b c new )");
        // Its schedule is not lost either: nested iterations could not run it, but the next one
        // can.
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "again");
        assert!(!ctx.poll(false));
        slot.lock().unwrap().take();
    });
}

#[test]
fn callback_uses_its_own_handle() {
    // X3: a callback that receives its own handle schedules, cancels and deletes itself, without
    // owning a handle; it is freed when it has returned, and the remaining handle does nothing,
    // even when its index is reused
    AioContext::run(|ctx| {
        let log = Log::default();
        let bh = ctx.new_bottom_half_with({
            let (log, drops) = (log.clone(), log.on_drop("dropped"));
            let mut run = 0;
            move |own| {
                let _ = &drops;
                run += 1;
                log.add(run);
                own.schedule();
                match run {
                    1 => {}
                    2 => own.cancel(),
                    _ => own.delete(),
                }
            }
        });
        let bh = bh.unwrap();
        bh.schedule();
        assert!(ctx.poll(false) && ctx.poll(false) && !ctx.poll(false));
        assert_eq!(log.take(), "1 2");
        bh.schedule();
        assert!(ctx.poll(false) && !ctx.poll(false));
        assert_eq!(log.take(), "3 dropped");
        let next = noting(ctx, &log, "next");
        next.schedule();
        bh.cancel();
        drop(bh);
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "next");
    });
}

#[test]
fn bottom_halves_are_listed() {
    // X11: the list shows each bottom half with its state and place, one-shots included, and which
    // one is running
    AioContext::run(|ctx| {
        let lists = ctx.clone();
        let line = line!() + 1;
        ctx.schedule_oneshot(move || assert!(lists.bottom_halves()[0].is_running)).unwrap();
        let (plain, idle) = (ctx.new_bottom_half(|| {}).unwrap(), ctx.new_bottom_half(|| {}).unwrap());
        idle.schedule_idle();
        let listed = ctx.bottom_halves();
        let states = listed.iter().map(|bh| (bh.is_one_shot, bh.is_scheduled, bh.is_idle_scheduled, bh.is_running));
        let expected = [(true, true, false, false), (false, false, false, false), (false, false, true, false)];
        assert_eq!(states.collect::<Vec<_>>(), expected);
        let lines: Vec<_> = listed.iter().map(|bh| (bh.created_at.file(), bh.created_at.line())).collect();
        assert_eq!(lines, [(file!(), line), (file!(), line + 1), (file!(), line + 1)]);
        assert!(ctx.poll(false));
        drop(plain);
        assert_eq!(ctx.bottom_halves().len(), 1);
    });
}
