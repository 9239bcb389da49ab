//! Bottom halves: scheduled, cancelled, dropped, idle, from any thread, and run by nested polls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::common::{Log, scaled};
use coralio_runtime::{AioContext, BottomHalf};

fn noting(ctx: &AioContext, log: &Log, name: &'static str) -> BottomHalf {
    let log = log.clone();
    ctx.new_bottom_half(move || log.add(name)).unwrap()
}

#[test]
fn idle_bottom_halves_do_not_keep_the_loop_busy() {
    // X3: an idle bottom half runs when its delay has passed, and does not keep the loop busy even
    // if it reschedules itself
    AioContext::run(|ctx| {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&runs);
        let idle = ctx.new_bottom_half_with(move |own| {
            counted.fetch_add(1, Ordering::Relaxed);
            own.schedule_idle();
        });
        let idle = idle.unwrap();
        idle.schedule_idle();
        let mut polls = 0;
        while runs.load(Ordering::Relaxed) < 3 {
            ctx.poll(true);
            polls += 1;
        }
        assert!(polls <= 12, "the loop slept till each was due, and did not spin: {polls} polls");
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
