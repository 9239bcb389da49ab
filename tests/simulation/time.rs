//! Virtual time: the kernel and the context share one clock, and an hour of it passes in a moment.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use coralio::context::AioContext;
use coralio::simulate::{Fault, Faults, Latency, Simulation};
use coralio::{simulate, sleep, spawn, timeout};

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn virtual_hour_passes_immediately() {
    // E17, X7: sleeps with nothing in flight, and during requests that take an hour each; timers in
    // order, none early.
    let began = Instant::now();
    let slow = Simulation::new().latency(Latency::fixed(HOUR)).faults(Faults::none());
    slow.run(0..20, |sim| {
        let file = sim.create("a", 512);
        let log = Rc::new(RefCell::new(Vec::new()));
        let ticker = spawn({
            let (log, sim) = (Rc::clone(&log), sim.clone());
            move || {
                for _ in 0..5 {
                    sleep(HOUR / 2).unwrap();
                    log.borrow_mut().push(("tick", sim.now().as_secs() / 60));
                }
            }
        });
        for _ in 0..2 {
            file.read_at(&mut [0; 512], 0)?;
            log.borrow_mut().push(("read", sim.now().as_secs() / 60));
        }
        ticker.join().unwrap();
        // A completion and a timer at the same time, in either order, end in the same minute.
        let mut log = log.borrow().clone();
        log.sort_by_key(|&(what, minute)| (minute, what));
        let expected =
            [("tick", 30), ("read", 60), ("tick", 60), ("tick", 90), ("read", 120), ("tick", 120), ("tick", 150)];
        assert_eq!(log, expected);
        Ok(())
    });
    // Fifty hours of virtual time; the bound only excludes real waiting.
    assert!(began.elapsed() < HOUR);
}

#[test]
fn expired_timeout_cancels_a_hanging_request() {
    // E11, S4: the context's clock is the kernel's: a request that takes longer than the timeout is
    // cancelled, or waited for.
    simulate(0..200, |sim| {
        let file = sim.create("a", 512);
        sim.inject(coralio::simulate::Fault::Delay(HOUR));
        let before = AioContext::current().unwrap().now();
        let read = timeout(Duration::from_secs(1), || file.read_at(&mut [0; 512], 0));
        let took = AioContext::current().unwrap().now() - before;
        assert!(read.is_err() || took >= HOUR);
        assert!(took >= Duration::from_secs(1) && took < 2 * HOUR);
        Ok(())
    });
}

#[test]
fn busy_checking_sees_time_pass() {
    // E17: time passes in a loop that never sleeps.
    simulate(0..20, |sim| {
        let file = sim.create("a", 512);
        let reader = spawn(move || file.read_at(&mut [0; 512], 0));
        while !reader.is_finished() {
            coralio::yield_now();
        }
        let until = sim.now() + Duration::from_millis(1);
        while sim.now() < until {
            coralio::yield_now();
        }
        reader.join().unwrap().map(drop)
    });
}

#[test]
fn sleep_does_not_hide_a_stuck_request() {
    // E17, S6: timers continue, and the deadlock is reported when they are over.
    let failure = Simulation::new().max_shrink_runs(0).search(0..1, |_| {
        let (sender, receiver) = coralio::sync::channel::bounded::<()>(1);
        let ticker = spawn(move || {
            for _ in 0..100 {
                sleep(HOUR).unwrap();
            }
            coralio::coroutine::suspend();
            drop(sender);
        });
        let _ = receiver.recv();
        ticker.join().unwrap();
        io::Result::Ok(())
    });
    let message = failure.unwrap_err().message;
    assert!(message.starts_with("deadlock: every coroutine waits"), "{message}");
}

#[test]
fn longest_delay_does_not_panic_out_of_a_submit() {
    // E13, E17: a time beyond the end of the clock is its end; a panic would leave the request that
    // the same submit has accepted uncounted, and its buffer with the kernel
    for latency in [Duration::MAX, Duration::from_secs(1)] {
        Simulation::new().latency(Latency::fixed(latency)).faults(Faults::none()).run(0..1, |sim| {
            let file = Rc::new(sim.create("a", 1024));
            sim.inject(Fault::Delay(Duration::ZERO));
            sim.inject(Fault::Delay(Duration::MAX));
            let readers = [0, 512].map(|offset| {
                let file = Rc::clone(&file);
                spawn(move || file.read_at(&mut [1; 512], offset))
            });
            readers.into_iter().try_for_each(|reader| reader.join().unwrap().map(drop))
        });
    }
}

#[test]
fn sleep_beyond_the_clocks_range_is_a_deadlock() {
    // E17: a sleep within the clock's 584 years takes one step; a longer one is reported as what never
    // ends, like the longest
    let sleeps = |seconds| {
        Simulation::new().search(0..1, |sim| {
            let time = Duration::from_secs(seconds);
            sleep(time)?;
            assert!(sim.now() >= time);
            Ok(())
        })
    };
    sleeps(1 << 34).unwrap();
    for seconds in [1 << 35, 1 << 50, u64::MAX] {
        let failure = sleeps(seconds).unwrap_err();
        assert!(failure.message.contains("deadlock: every coroutine waits"), "{seconds}: {failure}");
    }
}
