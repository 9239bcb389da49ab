//! Intervals, and waits until a time, on a virtual clock.

use std::time::{Duration, Instant};

use coralio_runtime::{
    AioContext, Cancelled, Coroutine, MissedTickBehavior, TimedOut, VirtualClock, interval, interval_at, sleep,
    sleep_until, timeout, timeout_at,
};

const MS: Duration = Duration::from_millis(1);

/// Runs `f` in a coroutine, in a context with a virtual clock.
fn with_virtual_clock(f: impl FnOnce(&AioContext, &VirtualClock)) {
    let clock = VirtualClock::new();
    AioContext::builder().virtual_clock(clock.clone()).run_coroutine(|ctx| f(ctx, &clock)).unwrap();
}

/// Returns the time in milliseconds since `began`.
fn ms(began: Instant, then: Instant) -> u128 {
    (then - began).as_millis()
}

#[test]
fn interval_ticks_immediately_then_each_period() {
    // S12: the first tick is due immediately, or at the given start; `reset` begins a new period
    with_virtual_clock(|ctx, clock| {
        let began = ctx.now();
        let mut every = interval(10 * MS);
        let mut tick = || (ms(began, every.tick().unwrap()), clock.elapsed().as_millis());
        assert_eq!([tick(), tick(), tick()], [(0, 0), (10, 10), (20, 20)]);
        clock.advance(5 * MS);
        every.reset();
        assert_eq!((ms(began, every.tick().unwrap()), every.period()), (35, 10 * MS));

        let mut later = interval_at(began + 50 * MS, 10 * MS);
        assert_eq!(ms(began, later.tick().unwrap()), 50);
        assert_eq!(ms(began, later.tick().unwrap()), 60);
        let mut rare = interval(Duration::MAX);
        rare.tick().unwrap();
        assert_eq!(timeout(MS, || rare.tick()), Err(TimedOut));
    });
}

#[test]
fn missed_ticks_are_made_up_for_as_set() {
    // S12: an interval is late by 25 of 10 ms: at which times it returns, according to the setting
    let expected = [
        (MissedTickBehavior::Burst, [0, 35, 35, 35, 40, 50]),
        (MissedTickBehavior::Delay, [0, 35, 45, 55, 65, 75]),
        (MissedTickBehavior::Skip, [0, 35, 40, 50, 60, 70]),
    ];
    for (behavior, expected) in expected {
        with_virtual_clock(|_, clock| {
            let mut every = interval(10 * MS);
            every.set_missed_tick_behavior(behavior);
            let mut tick = || {
                every.tick().unwrap();
                clock.elapsed().as_millis()
            };
            let first = tick();
            clock.advance(35 * MS);
            assert_eq!([first, tick(), tick(), tick(), tick(), tick()], expected, "{behavior:?}");
        });
    }
}

#[test]
fn cancelled_tick_is_not_skipped() {
    // S12, S4: after a timeout the next call waits for the same tick
    with_virtual_clock(|ctx, _| {
        let began = ctx.now();
        let mut every = interval_at(began + 10 * MS, 10 * MS);
        assert_eq!(timeout(4 * MS, || every.tick()), Err(TimedOut));
        assert_eq!(ms(began, every.tick().unwrap()), 10);
    });
}

#[test]
fn absolute_times_are_those_of_the_contexts_clock() {
    // S12: `sleep_until` and `timeout_at`, before and after the time; on the thread's own stack too
    with_virtual_clock(|ctx, clock| {
        let began = ctx.now();
        assert_eq!(sleep_until(began + 10 * MS), Ok(()));
        assert_eq!(sleep_until(began), Ok(()), "it is over");
        assert_eq!(clock.elapsed(), 10 * MS);
        assert_eq!(timeout_at(began + 12 * MS, || sleep(MS)), Ok(Ok(())));
        assert_eq!(timeout_at(began + 12 * MS, || sleep(5 * MS)), Err(TimedOut));
        assert_eq!(timeout_at(began, || sleep(MS)), Err(TimedOut));
        assert_eq!(clock.elapsed(), 12 * MS);
        Coroutine::current().unwrap().cancel();
        assert_eq!(sleep_until(began + 20 * MS), Err(Cancelled));
    });
    let clock = VirtualClock::new();
    let run = AioContext::builder().virtual_clock(clock.clone()).run(|ctx| sleep_until(ctx.now() + MS));
    assert_eq!((run.unwrap(), clock.elapsed()), (Ok(()), MS));
}
