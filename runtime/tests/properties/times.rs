//! Timers and sleeps that expire while the program runs. Exact times depend on the machine; the
//! required order does not.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coralio_runtime::{AioContext, sleep, spawn};

use crate::common::scaled;
use crate::generate::Dice;

/// A completed sleep: requested at `asked`, for `long`, over at `woken`.
#[derive(Clone, Copy)]
struct Slept {
    asked: Instant,
    long: Duration,
    woken: Instant,
}

fn some_time(dice: &mut Dice) -> Duration {
    Duration::from_micros(40 * dice.below(10) as u64)
}

#[test]
fn timers_fire_in_order_of_time() {
    // X7: timers fire not before their deadline, in order of deadline, then in order of arming
    for seed in 0..scaled(200) as u64 {
        let mut dice = Dice::new(seed);
        AioContext::run(|ctx| {
            let rang = Arc::new(Mutex::new(Vec::new()));
            let start = Instant::now();
            let mut armed: Vec<_> = (0..2 + dice.below(8)).map(|id| (start + some_time(&mut dice), id)).collect();
            let timers: Vec<_> = armed
                .iter()
                .map(|&(deadline, id)| {
                    let rang = Arc::clone(&rang);
                    ctx.new_timer(move || {
                        assert!(Instant::now() >= deadline, "seed {seed}: before its time");
                        rang.lock().unwrap().push((deadline, id));
                    })
                    .unwrap()
                })
                .collect();
            for (timer, &(deadline, _)) in timers.iter().zip(&armed) {
                timer.arm_at(deadline);
            }
            while rang.lock().unwrap().len() < timers.len() {
                ctx.poll(true);
            }
            armed.sort_unstable();
            assert_eq!(*rang.lock().unwrap(), armed, "seed {seed}");
        });
    }
}

#[test]
fn sleepers_wake_in_order_of_time() {
    // S4, X7: no sleep ends before its deadline, and the earlier deadline wakes first
    for seed in 0..scaled(200) as u64 {
        let mut dice = Dice::new(seed);
        AioContext::run(|ctx| {
            let slept = Rc::new(RefCell::new(Vec::new()));
            let count = 2 + dice.below(8);
            for _ in 0..count {
                let (slept, long) = (Rc::clone(&slept), some_time(&mut dice));
                drop(spawn(move || {
                    let asked = Instant::now();
                    sleep(long).expect("the sleep is not cancelled");
                    slept.borrow_mut().push(Slept { asked, long, woken: Instant::now() });
                }));
            }
            ctx.poll(false);
            let all_asleep = Instant::now();
            std::thread::sleep(Duration::from_millis(1));
            while slept.borrow().len() < count {
                ctx.poll(true);
            }
            let slept: Vec<Slept> = slept.take();
            assert!(slept.iter().all(|it| it.woken >= it.asked + it.long), "seed {seed}: before its time");
            // A sleep whose deadline has passed when it begins has no timer, only a turn after the
            // timers. All others had begun before `all_asleep` and have a timer.
            let later: Vec<_> = slept.iter().filter(|it| it.asked + it.long > all_asleep).collect();
            for (at, first) in later.iter().enumerate() {
                // The other deadline came before this one's, whenever exactly the two sleeps began.
                let overtaken = later[at..].iter().any(|it| all_asleep + it.long < first.asked + first.long);
                assert!(!overtaken, "seed {seed}: a sleep of {:?} was overtaken", first.long);
            }
        });
    }
}
