//! Timers, and the waits that they end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Log, panic_of, scaled};
use coralio_runtime::{AioContext, Interest, TimedOut, Timer, sleep, spawn, timeout};
use parking_lot::Mutex;

/// Creates a timer that logs when it fires.
fn logging(ctx: &AioContext, log: &Log, what: &'static str) -> Timer {
    let log = log.clone();
    ctx.new_timer(move || log.add(what)).unwrap()
}

#[test]
fn timers_run_last_in_an_iteration() {
    // X7: within one iteration: bottom halves, then descriptors, then timers
    AioContext::run(|ctx| {
        let log = Log::default();
        let timer = logging(ctx, &log, "timer");
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(far);
        let seen = log.clone();
        let watch = ctx.add_fd_handler(near, Interest::Read, move |_| seen.add("descriptor")).unwrap();
        let seen = log.clone();
        let bh = ctx.new_bottom_half(move || seen.add("bottom-half")).unwrap();
        // Bottom halves delay descriptors for some iterations, so not every iteration has all
        // three.
        let order = loop {
            timer.arm_at(Instant::now());
            bh.schedule();
            ctx.poll(false);
            let order = log.take();
            if order.contains("descriptor") {
                break order;
            }
        };
        assert_eq!(order, "bottom-half descriptor timer");
        drop(watch);
    });
}

#[test]
fn arming_from_another_thread_wakes_the_loop() {
    // X7, X6: a timer that another thread arms for earlier than the end of the loop's sleep fires;
    // so too in another thread's poll
    AioContext::run(|ctx| {
        let fired = Arc::new(AtomicBool::new(false));
        let rings = Arc::clone(&fired);
        let timer = Arc::new(ctx.new_timer(move || rings.store(true, Ordering::Relaxed)).unwrap());
        timer.arm_after(Duration::from_secs(3600));
        let arms = Arc::clone(&timer);
        let other = thread::spawn(move || arms.arm_at(Instant::now()));
        while !fired.load(Ordering::Relaxed) {
            ctx.poll(true);
        }
        other.join().unwrap();
        fired.store(false, Ordering::Relaxed);
        timer.arm_at(Instant::now());
        let polls = ctx.clone();
        assert!(thread::spawn(move || polls.poll(false)).join().unwrap());
        assert!(fired.load(Ordering::Relaxed));
    });
}

#[test]
fn million_timers_fire() {
    // X7: of a million timers (with --release), armed in any order, rearmed, and half of them
    // disarmed, each remaining one fires once, in order
    AioContext::run(|ctx| {
        let count = scaled(if cfg!(debug_assertions) { 200_000 } else { 1_000_000 });
        let fired = Arc::new(Mutex::new(Vec::with_capacity(count)));
        let start = Instant::now();
        let due = |n: usize| start + Duration::from_nanos((n * 7919 % count) as u64);
        let timers: Vec<_> = (0..count)
            .map(|n| {
                let fired = Arc::clone(&fired);
                let timer = ctx.new_timer(move || fired.lock().push(n)).unwrap();
                timer.arm_after(Duration::from_secs(3600));
                timer.arm_at(due(n));
                timer
            })
            .collect();
        timers.iter().step_by(2).for_each(Timer::disarm);
        while fired.lock().len() < count / 2 {
            ctx.poll(true);
        }
        let fired = std::mem::take(&mut *fired.lock());
        assert_eq!(fired.len(), count / 2);
        assert!(fired.windows(2).all(|pair| due(pair[0]) <= due(pair[1])));
        assert!(fired.iter().all(|n| n % 2 == 1));
    });
}

#[test]
fn endless_sleep_runs_the_loop() {
    // X7, S4: a sleep beyond the clock's range never ends, on the thread's own stack too: the loop
    // runs meanwhile
    AioContext::run(|ctx| {
        ctx.schedule_oneshot(|| panic!("the loop runs")).unwrap();
        assert_eq!(panic_of(|| sleep(Duration::MAX)), "the loop runs");
    });
}

#[test]
fn timeouts_nest() {
    // S4: the innermost or the outermost timeout, whichever expires first, reports it; if both
    // have, the outermost does; a timeout without a wait inside returns the value
    AioContext::run(|_| {
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(3600));
        let task = spawn(move || {
            assert_eq!(timeout(long, || timeout(short, || sleep(long))), Ok(Err(TimedOut)));
            assert!(matches!(timeout(short, || timeout(long, || sleep(long))), Err(TimedOut)));
            assert!(matches!(timeout(short, || timeout(short, || sleep(long))), Err(TimedOut)));
            assert_eq!(timeout(Duration::ZERO, || 7), Ok(7));
            assert_eq!(timeout(Duration::MAX, || sleep(Duration::ZERO)), Ok(Ok(())));
            assert_eq!(timeout(long, || sleep(short)), Ok(Ok(())));
            sleep(short).unwrap();
        });
        task.join().unwrap();
    });
}

#[test]
fn callback_uses_its_own_timer() {
    // X7: a callback that receives its own handle arms, disarms and deletes its timer, without
    // owning a handle; it is freed when it has returned
    AioContext::run(|ctx| {
        let log = Log::default();
        let timer = ctx.new_timer_with({
            let (log, drops) = (log.clone(), log.on_drop("dropped"));
            let mut run = 0;
            move |own| {
                let _ = &drops;
                run += 1;
                log.add(run);
                own.arm_at(Instant::now());
                match run {
                    1 => {}
                    2 => own.disarm(),
                    _ => own.delete(),
                }
            }
        });
        let timer = timer.unwrap();
        timer.arm_at(Instant::now());
        assert!(ctx.poll(false) && ctx.poll(false) && !ctx.poll(false));
        assert_eq!(log.take(), "1 2");
        timer.arm_at(Instant::now());
        assert!(ctx.poll(false) && !ctx.poll(false));
        assert_eq!(log.take(), "3 dropped");
        let next = logging(ctx, &log, "next");
        next.arm_at(Instant::now());
        timer.disarm();
        drop(timer);
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "next");
    });
}

#[test]
fn timers_are_listed() {
    // X11: the list shows each timer with its deadline and place, and which callback is running;
    // timers of sleeps included
    AioContext::run(|ctx| {
        let lists = ctx.clone();
        let line = line!() + 1;
        let timer = ctx.new_timer(move || assert!(lists.timers()[0].is_running)).unwrap();
        let listed = ctx.timers();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].deadline, listed[0].has_callback, listed[0].is_running), (None, true, false));
        assert_eq!((listed[0].created_at.file(), listed[0].created_at.line()), (file!(), line));
        let now = Instant::now();
        timer.arm_at(now);
        assert_eq!(ctx.timers()[0].deadline, Some(now));
        assert!(ctx.poll(false));
        let sleeper = spawn(|| sleep(Duration::from_secs(3600)));
        ctx.poll(false);
        let listed = ctx.timers();
        assert_eq!(listed.len(), 2);
        assert!(!listed[1].has_callback && listed[1].deadline.is_some());
        sleeper.cancel();
        assert!(sleeper.join().unwrap().is_err());
    });
}
