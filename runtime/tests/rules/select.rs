//! Select and race: the first branch to end cancels the others; all have ended on return.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::common::{Log, panic_of};
use coralio_runtime::{
    AioContext, Cancelled, Notify, TimedOut, channel, check_cancelled, race, select, shield, sleep, spawn, suspend,
    timeout, yield_now,
};

const HOUR: Duration = Duration::from_secs(3600);
const MS: Duration = Duration::from_millis(1);

#[test]
fn first_end_cancels_the_other_branches() {
    // S9: in a coroutine and on the thread's own stack: branches borrow, the first return cancels
    // the others, and all have ended when the call returns
    for own_stack in [true, false] {
        let log = Log::default();
        let inner = log.clone();
        let body = move || {
            let (log, mut count) = (&inner, 0);
            let (first, second, third) = select((
                || {
                    yield_now();
                    log.add("first");
                    "value"
                },
                || {
                    let slept = sleep(HOUR);
                    shield(|| (0..3).for_each(|_| yield_now()));
                    log.add("second");
                    slept
                },
                || {
                    count += 1;
                    suspend();
                    check_cancelled().is_err()
                },
            ));
            log.add("returned");
            assert_eq!((first, second, third, count), ("value", Err(Cancelled), true, 1));
        };
        AioContext::run(|_| if own_stack { body() } else { spawn(body).join().unwrap() });
        assert_eq!(log.take(), "first second returned");
    }
}

#[test]
fn select_returns_what_a_loser_was_granted() {
    // S9, S4: a message is handed to a waiting branch before another branch ends: both values are
    // returned
    let run = AioContext::builder().run_coroutine(|_| {
        let (sender, receiver) = channel::bounded(1);
        let (sent, received) = select((
            || {
                yield_now();
                sender.try_send(7)
            },
            || receiver.recv(),
        ));
        assert_eq!((sent, received), (Ok(()), Ok(7)));
    });
    run.unwrap();
}

#[test]
fn race_returns_the_first_result_and_drops_the_others() {
    // S9: arrays, vectors and tuples; the losers' results are dropped before the race returns; a
    // branch that has not started is not run
    AioContext::run(|_| {
        let log = Log::default();
        let ended = race([3, 1, 2].map(|turns| {
            let log = &log;
            move || {
                (0..turns).for_each(|_| yield_now());
                (turns, log.on_drop(turns))
            }
        }));
        log.add("returned");
        assert_eq!(ended.0, 1);
        drop(ended);
        assert_eq!(log.take(), "2 3 returned 1");

        let first = race(vec![|| 1]);
        let immediate = race((|| 2, || -> i32 { unreachable!("the race is over") }));
        assert_eq!((first, immediate), (1, 2));
        let said = panic_of(|| race(Vec::<fn()>::new()));
        assert!(said.contains("a race of no branches"), "{said}");
    });
}

#[test]
fn panic_of_a_branch_propagates_after_the_others_ended() {
    // S9, C8: a panic counts as an end; that of a cancelled branch propagates too, and of two the
    // first
    AioContext::run(|_| {
        let log = Log::default();
        let waits = || {
            assert_eq!(sleep(HOUR), Err(Cancelled));
            yield_now();
            log.add("ended");
        };
        let panics = || -> () {
            yield_now();
            panic!("first")
        };
        let said = panic_of(|| select((waits, panics)));
        assert_eq!((said.as_str(), log.take().as_str()), ("first", "ended"));
        let said = panic_of(|| race((waits, panics)));
        assert_eq!((said.as_str(), log.take().as_str()), ("first", "ended"));
        let said = panic_of(|| race((panics, || -> () { sleep(HOUR).expect("second") })));
        assert_eq!(said, "first");
        let said = panic_of(|| race((yield_now, || -> () { sleep(HOUR).expect("cancelled") })));
        assert!(said.starts_with("cancelled"), "{said}");
    });
}

#[test]
fn cancelling_the_caller_cancels_every_branch() {
    // S9, S4: the caller is cancelled, or its timeout expires: all branches end, and a timeout
    // counts as hit
    AioContext::run(|ctx| {
        let both = || select((|| sleep(HOUR), || Notify::new().notified()));
        let task = spawn(both);
        ctx.poll(false);
        task.cancel();
        assert_eq!(task.join().unwrap(), (Err(Cancelled), Err(Cancelled)));
        let timed = spawn(move || timeout(MS, both));
        assert_eq!(timed.join().unwrap(), Err(TimedOut));
        let timed = spawn(|| timeout(HOUR, || race((|| sleep(MS), || sleep(HOUR)))));
        assert_eq!(timed.join().unwrap(), Ok(Ok(())));
    });
}

#[test]
fn context_end_unwinds_a_select() {
    // S9, C9: the context ends while branches wait: they are unwound before the values that they
    // borrow
    let log = Log::default();
    let inner = log.clone();
    let run = AioContext::builder().report_unwound(false).run(|ctx| {
        drop(spawn(move || {
            let frame = inner.on_drop("frame");
            let wait = |name: &'static str| {
                let _caught = (inner.on_drop(name), &frame);
                suspend();
            };
            select((|| wait("a"), || wait("b")));
            inner.add("went-on");
        }));
        (0..3).for_each(|_| _ = ctx.poll(false));
    });
    run.unwrap();
    assert_eq!(log.take(), "a b frame");
}

#[test]
fn selects_nest() {
    // S9: eight branches, one of which selects itself; results are in the order of the branches
    AioContext::run(|_| {
        let order = RefCell::new(Vec::new());
        let turns = Cell::new(0);
        let wait = |name: char| {
            let waited = sleep(HOUR);
            order.borrow_mut().push(name);
            waited.is_err()
        };
        let all = select((
            || wait('a'),
            || wait('b'),
            || wait('c'),
            || select((|| wait('d'), || wait('e'))),
            || wait('f'),
            || wait('g'),
            || wait('h'),
            || {
                yield_now();
                turns.set(1);
                'i'
            },
        ));
        assert_eq!(all, (true, true, true, (true, true), true, true, true, 'i'));
        assert_eq!(order.borrow().iter().collect::<String>(), "abcfghde");
        assert!(catch_unwind(AssertUnwindSafe(|| select((|| (), || ())))).is_ok());
    });
}
