//! Virtual time: what uses the context's clock, and what advances it.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Log, Sleeper, in_child};
use coralio_runtime::{
    AioContext, CoMutex, Coroutine, Interest, TimedOut, VirtualClock, sleep, spawn, suspend, timeout, yield_now,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Runs `f` on the stack of a thread whose context has its own virtual clock.
fn virtually<R>(f: impl FnOnce(&AioContext, &VirtualClock) -> R) -> R {
    let clock = VirtualClock::new();
    AioContext::builder().virtual_clock(clock.clone()).report_unwound(false).run(|ctx| f(ctx, &clock)).unwrap()
}

#[test]
fn virtual_hour_passes_immediately() {
    // X7, S4: with a virtual clock sleepers wake in order of deadline, each exactly at its
    // deadline, without real waiting
    virtually(|ctx, clock| {
        let log = Log::default();
        let tasks = [3600, 1, 1800, 60].map(|seconds| {
            let (log, clock) = (log.clone(), clock.clone());
            spawn(move || {
                sleep(seconds * SECOND).unwrap();
                log.add(clock.elapsed().as_secs());
                sleep(seconds * SECOND).unwrap();
                log.add(clock.elapsed().as_secs());
            })
        });
        let began = ctx.now();
        sleep(Duration::from_millis(3500)).unwrap();
        assert_eq!(clock.elapsed(), Duration::from_millis(3500), "on the thread's own stack too");
        tasks.into_iter().for_each(|task| task.join().unwrap());
        assert_eq!(log.take(), "1 2 60 120 1800 3600 3600 7200");
        assert_eq!(ctx.now() - began, 2 * HOUR);
        let elsewhere = ctx.clone();
        assert_eq!(thread::spawn(move || elsewhere.now()).join().unwrap(), clock.now());
    });
}

#[test]
fn timers_fire_at_their_virtual_time() {
    // X7: timers fire in order of deadline and then of arming, with the clock at their deadline;
    // the clock stands still while there is work, and a timer that the clock is advanced past fires
    // late
    virtually(|ctx, clock| {
        let log = Log::default();
        let logging = |what: &'static str| {
            let (log, clock) = (log.clone(), clock.clone());
            ctx.new_timer(move || log.add(format!("{what}@{}", clock.elapsed().as_secs()))).unwrap()
        };
        let timers = ["c", "a", "b", "d"].map(logging);
        timers.iter().zip([3, 1, 2, 3]).for_each(|(timer, at)| timer.arm_after(at * SECOND));
        for _ in 0..100 {
            assert!(!ctx.poll(false));
        }
        assert_eq!(clock.elapsed(), Duration::ZERO, "no time passes without blocking");
        while timers[3].deadline().is_some() {
            ctx.poll(true);
        }
        assert_eq!(log.take(), "a@1 b@2 c@3 d@3");
        timers[0].arm_at(ctx.now() + HOUR);
        clock.advance(2 * HOUR);
        clock.advance_to(ctx.now() - HOUR);
        assert_eq!(clock.elapsed(), 2 * HOUR + 3 * SECOND, "it never goes back");
        assert!(ctx.poll(false));
        assert_eq!(log.take(), "c@7203");
    });
}

#[test]
fn timeouts_use_the_virtual_clock() {
    // S4: a timeout expires exactly at its deadline on the context's clock
    virtually(|_, clock| {
        let clock = clock.clone();
        let task = spawn(move || {
            assert_eq!(timeout(HOUR, || sleep(HOUR - SECOND)), Ok(Ok(())));
            assert_eq!(clock.elapsed(), HOUR - SECOND);
            assert!(matches!(timeout(HOUR, || sleep(2 * HOUR)), Err(TimedOut)));
            assert_eq!(clock.elapsed(), 2 * HOUR - SECOND);
        });
        task.join().unwrap();
    });
}

#[test]
fn idle_bottom_halves_use_the_virtual_clock() {
    // X3: an idle bottom half runs after ten milliseconds of the context's clock; rescheduled while
    // it runs, after ten more
    virtually(|ctx, clock| {
        let (log, clock) = (Log::default(), clock.clone());
        let timer = ctx
            .new_timer({
                let (log, clock) = (log.clone(), clock.clone());
                move || log.add(format!("timer@{}", clock.elapsed().as_millis()))
            })
            .unwrap();
        let seen = log.clone();
        let idle = ctx.new_bottom_half_with(move |own| {
            seen.add(format!("idle@{}", clock.elapsed().as_millis()));
            own.schedule_idle();
        });
        let idle = idle.unwrap();
        idle.schedule_idle();
        timer.arm_after(Duration::from_millis(15));
        for _ in 0..3 {
            ctx.poll(true);
        }
        assert_eq!(log.take(), "idle@10 timer@15 idle@20");
    });
}

#[test]
fn each_context_has_its_own_clock() {
    // X7: contexts with their own clocks do not see each other's time, and a context with the
    // system's clock sees neither
    let clocks = [VirtualClock::new(), VirtualClock::new()];
    let threads =
        clocks.clone().map(|clock| AioContext::builder().virtual_clock(clock).start_thread("virtual").unwrap());
    let real = AioContext::run(|ctx| {
        let before = ctx.now();
        for (thread, hours) in threads.iter().zip([1, 24]) {
            let slept = thread.context().spawn(move || sleep(hours * HOUR).unwrap());
            slept.join().unwrap();
        }
        ctx.now() - before
    });
    assert_eq!(clocks.map(|clock| clock.elapsed()), [HOUR, 24 * HOUR]);
    assert!(real < HOUR, "{real:?}");
}

#[test]
fn wait_durations_use_the_virtual_clock() {
    // X11: a dump shows the duration of waits, and when the next timer is due, by the context's
    // clock
    virtually(|ctx, _| {
        let idler = Coroutine::builder().name("idler").create(suspend).unwrap();
        idler.enter();
        sleep(HOUR).unwrap();
        let timer = ctx.new_timer(|| {}).unwrap();
        timer.arm_after(HOUR);
        let dump = ctx.dump().to_string();
        assert!(dump.contains("'idler' waits for an enter or a wake, for 3600s"), "{dump}");
        assert!(dump.contains("1 armed, next in 3600s"), "{dump}");
    });
}

#[test]
fn clock_stands_still_while_work_is_due() {
    // X6: a loop that is notified as it is about to advance the clock checks first; a loop without
    // timers sleeps until a descriptor is ready, and no time passes
    virtually(|ctx, clock| {
        let timer = ctx.new_timer(|| {}).unwrap();
        timer.arm_after(HOUR);
        let notify = ctx.clone();
        let handler = ctx
            .add_poll_handler(
                move || {
                    notify.notify();
                    false
                },
                || {},
            )
            .unwrap();
        ctx.poll(true);
        assert_eq!(clock.elapsed(), Duration::ZERO);
        drop(handler);
        // The notification may have made the descriptor of the loop's wake-ups ready.
        while clock.elapsed() == Duration::ZERO {
            ctx.poll(true);
        }
        assert_eq!(clock.elapsed(), HOUR);
        let (near, far) = UnixStream::pair().unwrap();
        let ready = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ready);
        let watch = ctx.add_fd_handler(near, Interest::Read, move |_| seen.store(true, Ordering::Relaxed)).unwrap();
        let other = thread::spawn(move || drop(far));
        while !ready.load(Ordering::Relaxed) {
            ctx.poll(true);
        }
        drop(watch);
        other.join().unwrap();
        assert_eq!(clock.elapsed(), HOUR);
    });
}

#[test]
fn time_beyond_the_clocks_range_is_never() {
    // X7: a timer beyond the clock's range does not fire, and does not make the loop spin
    virtually(|ctx, clock| {
        let never = spawn(|| sleep(600 * 366 * 24 * HOUR));
        ctx.poll(false);
        let kicks = ctx.clone();
        let other = thread::spawn(move || kicks.notify());
        ctx.poll(true);
        other.join().unwrap();
        assert!(!never.is_finished());
        assert_eq!(clock.elapsed(), Duration::ZERO);
    });
}

/// Gives the context an engine that sleeps by calling `how`, with an operation in flight forever
/// unless it is `idle`. Returns the number of sleeps.
fn sleeps(ctx: &AioContext, idle: bool, how: impl Fn(Option<Duration>) + Send + Sync + 'static) -> Arc<AtomicUsize> {
    let sleeps = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sleeps);
    let how = move |_: BorrowedFd<'_>, timeout| {
        counted.fetch_add(1, Ordering::Relaxed);
        how(timeout);
    };
    ctx.attach(Arc::new(Sleeper { idle, how })).unwrap();
    sleeps
}

#[test]
fn simulating_source_advances_the_clock() {
    // X7: while I/O is in flight the source advances the clock, in its own steps, however long that
    // takes in real time
    virtually(|ctx, clock| {
        let device = clock.clone();
        let slept = sleeps(ctx, false, move |timeout| {
            let timeout = timeout.unwrap();
            thread::sleep(timeout);
            device.advance(timeout.min(Duration::from_micros(400)));
        });
        sleep(Duration::from_millis(1)).unwrap();
        assert_eq!(clock.elapsed(), Duration::from_millis(1));
        assert_eq!(slept.load(Ordering::Relaxed), 3, "400, 800, 1000 microseconds");
    });
}

#[test]
fn real_source_sleeps_in_real_time() {
    // X7: while real I/O is in flight no virtual time passes until as much real time has passed as
    // remains until the next timer: then that timer fires, at its deadline
    virtually(|ctx, clock| {
        let early = Arc::new(AtomicBool::new(true));
        let is_early = Arc::clone(&early);
        sleeps(ctx, false, move |timeout| {
            if is_early.load(Ordering::Relaxed) {
                return;
            }
            // The loop itself sleeps here, for the requested time.
            thread::sleep(timeout.unwrap());
        });
        let far = ctx.new_timer(|| {}).unwrap();
        far.arm_after(HOUR);
        ctx.poll(true);
        assert_eq!(clock.elapsed(), Duration::ZERO, "something may have completed");
        early.store(false, Ordering::Relaxed);
        sleep(Duration::from_millis(2)).unwrap();
        assert_eq!(clock.elapsed(), Duration::from_millis(2));
    });
}

#[test]
fn deadlock_is_reported_immediately() {
    // S6: with a virtual clock, the loop checks for a deadlock as soon as it is idle, but not while
    // a timer is armed
    let Some(child) = in_child("clock::deadlock_is_reported_immediately") else {
        let builder = AioContext::builder().virtual_clock(VirtualClock::new()).report_deadlocks_after(Some(HOUR));
        return builder
            .run(|ctx| {
                // Returns immediately where a real engine would sleep forever.
                sleeps(ctx, true, |_| {});
                let locks = [(); 2].map(|()| std::rc::Rc::new(CoMutex::new(())));
                for (first, second) in [(0, 1), (1, 0)] {
                    let (first, second) = (locks[first].clone(), locks[second].clone());
                    drop(spawn(move || {
                        let _first = first.lock();
                        yield_now();
                        let _second = second.lock();
                    }));
                }
                while ctx.poll(false) {}
                let timer = ctx.new_timer(|| {}).unwrap();
                timer.arm_after(HOUR);
                ctx.poll(true);
                eprintln!("with a timer armed");
                timer.disarm();
                ctx.poll(true);
                ctx.poll(true);
            })
            .unwrap();
    };
    let said = String::from_utf8_lossy(&child.stderr);
    let (before, after) = said.split_once("with a timer armed").expect("it got there");
    assert!(!before.contains("deadlock"), "{said}");
    assert_eq!(after.matches("deadlock: nothing can wake these 2 coroutines").count(), 1, "{said}");
}

#[test]
fn coroutine_spawned_by_the_last_look_runs_before_the_next_timer() {
    // X5: the loop's last look at a poll handler's source, just before the sleep, spawns a
    // coroutine: the loop runs it instead of sleeping
    virtually(|ctx, clock| {
        let (looks, ran) = (AtomicUsize::new(0), Arc::new(AtomicBool::new(false)));
        let runs = Arc::clone(&ran);
        let is_ready = move || {
            if looks.fetch_add(1, Ordering::Relaxed) == 0 {
                let runs = Arc::clone(&runs);
                drop(spawn(move || runs.store(true, Ordering::Relaxed)));
            }
            false
        };
        let _handler = ctx.add_poll_handler(is_ready, || {}).unwrap();
        let timer = ctx.new_timer(|| {}).unwrap();
        timer.arm_after(HOUR);
        assert!(ctx.poll(true));
        assert!(ran.load(Ordering::Relaxed));
        assert_eq!(clock.elapsed(), Duration::ZERO);
    });
}
