//! Timers, and the waits that they end.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Log, panic_of, scaled};
use coralio_runtime::{AioContext, Interest, TimedOut, Timer, sleep, spawn, suspend, timeout};
use parking_lot::Mutex;

/// Creates a timer that logs when it fires.
fn logging(ctx: &AioContext, log: &Log, what: &'static str) -> Timer {
    let log = log.clone();
    ctx.new_timer(move || log.add(what)).unwrap()
}

#[test]
fn timers_fire_in_order_and_never_early() {
    // X7: timers fire in order of deadline, then in order of arming, and none before its deadline
    AioContext::run(|ctx| {
        let log = Log::default();
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let timers = ["c", "a", "b", "d", "e"].map(|what| logging(ctx, &log, what));
        for (timer, ms) in timers.iter().zip([3, 1, 2, 3, 3]) {
            timer.arm_at(at(ms));
        }
        timers[4].disarm();
        let mut left = 4;
        while left > 0 {
            let before = Instant::now();
            left -= log
                .take()
                .split_whitespace()
                .inspect(|&what| {
                    let due =
                        [("a", 1), ("b", 2), ("c", 3), ("d", 3)].iter().find(|(name, _)| *name == what).unwrap().1;
                    assert!(before >= at(due), "{what} came too early");
                })
                .count();
            if left > 0 {
                ctx.poll(true);
            }
        }
        timers[0].arm_at(now);
        timers[1].arm_at(at(3600));
        timers[1].arm_at(now);
        timers[2].arm_at(now - Duration::from_millis(1));
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "b c a");
        assert!(!ctx.poll(false) && timers.iter().all(|timer| timer.deadline().is_none()));
    });
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
fn callback_can_rearm_cancel_and_drop_its_timer() {
    // X7: a timer rearmed within its own callback fires in the next iteration, not in this one or
    // in a nested poll; disarmed and dropped within it, it does not fire again
    AioContext::run(|ctx| {
        let slot = Arc::new(Mutex::new(None::<Timer>));
        let (inner, runs, polls) = (Arc::clone(&slot), Arc::new(AtomicUsize::new(0)), ctx.clone());
        let counted = Arc::clone(&runs);
        let timer = ctx
            .new_timer(move || {
                let run = counted.fetch_add(1, Ordering::Relaxed);
                if run == 3 {
                    return drop(inner.lock().take());
                }
                inner.lock().as_ref().unwrap().arm_at(Instant::now());
                polls.poll(false);
                assert_eq!(counted.load(Ordering::Relaxed), run + 1, "it is not entered again");
            })
            .unwrap();
        timer.arm_at(Instant::now());
        *slot.lock() = Some(timer);
        for expected in 1..=4 {
            assert!(ctx.poll(false));
            assert_eq!(runs.load(Ordering::Relaxed), expected);
        }
        assert!(!ctx.poll(false));
        assert_eq!(Arc::strong_count(&slot), 1, "its closure is gone");
    });
}

#[test]
fn nested_poll_continues_the_iteration() {
    // X2, X7: a nested poll fires the timers that the outer iteration took up and has not fired;
    // none is lost or fires twice
    AioContext::run(|ctx| {
        let log = Log::default();
        let (polls, seen) = (ctx.clone(), log.clone());
        let first = ctx
            .new_timer(move || {
                seen.add("first");
                polls.poll(false);
                seen.add("end-of-first");
            })
            .unwrap();
        let (second, third) = (logging(ctx, &log, "second"), logging(ctx, &log, "third"));
        let now = Instant::now();
        [&first, &second, &third].iter().for_each(|timer| timer.arm_at(now));
        ctx.poll(false);
        assert_eq!(log.take(), "first second third end-of-first");
    });
}

#[test]
fn panicking_callback_does_not_drop_other_timers() {
    // C8, X7: a panic propagates from the poll; the timer can be armed again, and other due timers
    // fire in the next iteration
    AioContext::run(|ctx| {
        let log = Log::default();
        let fails = ctx.new_timer(|| panic!("in a timer")).unwrap();
        let other = logging(ctx, &log, "other");
        for _ in 0..2 {
            let now = Instant::now();
            fails.arm_at(now);
            other.arm_at(now);
            assert_eq!(panic_of(|| ctx.poll(false)), "in a timer");
            ctx.poll(false);
            assert_eq!(log.take(), "other");
        }
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
    // X7: of a million timers, armed in any order, rearmed, and half of them disarmed, each
    // remaining one fires once, in order
    AioContext::run(|ctx| {
        let count = scaled(1_000_000);
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
fn sleep_lasts_its_duration() {
    // X7, S4: no sleep ends before its deadline, and each ends; on the thread's own stack, a sleep
    // runs the loop meanwhile. The property tests check the order in which sleepers wake
    AioContext::run(|_| {
        let tasks = [3, 1, 2].map(|ms| {
            spawn(move || {
                let before = Instant::now();
                sleep(Duration::from_millis(ms)).unwrap();
                assert!(before.elapsed() >= Duration::from_millis(ms));
            })
        });
        while !tasks.iter().all(|task| task.is_finished()) {
            sleep(Duration::from_millis(1)).unwrap();
        }
        tasks.into_iter().for_each(|task| task.join().unwrap());
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
fn sleepers_are_unwound() {
    // C9, X7: a context that ends with sleeping coroutines unwinds them, and drops their timers
    let log = Log::default();
    AioContext::builder()
        .report_unwound(false)
        .run(|ctx| {
            let gone = log.on_drop("unwound");
            drop(spawn(move || {
                let _gone = gone;
                let _ = timeout(Duration::from_secs(1), || sleep(Duration::MAX));
                suspend();
            }));
            ctx.poll(false);
        })
        .unwrap();
    assert_eq!(log.take(), "unwound");
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
