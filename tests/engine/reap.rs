//! Rules E4 to E9: completion within submit, the order of events, and the counters.

use std::process::Command;

use coralio::coroutine::Coroutine;
use coralio::{JoinHandle, spawn};

use crate::{Log, panic_of, read, scaled, touch, with_engine, write};

#[test]
fn completion_within_submit_does_not_yield() {
    // E4, E7: a request that completes within submit, outside the loop, does not yield: the result
    // is there before the coroutine would
    with_engine(8, |_, backend, engine| {
        backend.script.complete_on_submit(0, 0);
        backend.script.complete_on_submit(1, 1);
        let co = Coroutine::new({
            let engine = engine.clone();
            move || {
                assert_eq!(write(&engine, b"coral", 3).unwrap(), 5);
                let mut buf = [9; 10];
                assert_eq!(read(&engine, &mut buf, 0).unwrap(), 8);
                assert_eq!(&buf, b"\0\0\0coral\x09\x09");
            }
        });
        co.enter();
        assert!(co.has_ended());
        assert_eq!(backend.transcript(), "3>1 0>1");
        assert_eq!((engine.stats().completions, engine.stats().sleeps), (2, 0));
    });
}

#[test]
fn submit_reaps_completions_of_other_coroutines() {
    // E4, W1: submit reaps other coroutines' completions; those coroutines run when the submitter
    // yields or ends, not on top of it
    with_engine(8, |_, backend, engine| {
        backend.script.complete_on_submit(0, 1);
        backend.script.hold(1);
        backend.script.complete_on_submit(2, 2);
        let log = Log::default();
        let reader = |name: &'static str, times: usize| {
            let (engine, log) = (engine.clone(), log.clone());
            Coroutine::new(move || {
                for _ in 0..times {
                    touch(&engine, 0).unwrap();
                    log.add(name);
                }
            })
        };
        let (first, second) = (reader("first", 2), reader("second", 1));
        first.enter();
        assert_eq!(log.take(), "");
        second.enter();
        assert!(first.has_ended() && !second.has_ended());
        assert_eq!(log.take(), "first first");
        backend.script.release(1);
    });
}

#[test]
fn immediate_completions_cost_one_submit_per_iteration() {
    // E8: there is at most one submit per iteration when requests complete within submit:
    // coroutines woken by a submit collect their next requests for the loop
    const COROUTINES: usize = 7;
    let each = scaled(10_000);
    with_engine(8, |context, backend, engine| {
        (0..COROUTINES * each).for_each(|number| backend.script.complete_on_submit(number, number));
        let tasks: Vec<JoinHandle<()>> = (0..COROUTINES as u64)
            .map(|number| {
                let engine = engine.clone();
                spawn(move || (0..each).for_each(|_| assert_eq!(touch(&engine, number), Ok(0))))
            })
            .collect();
        let mut rounds = 0;
        while !tasks.iter().all(JoinHandle::is_finished) {
            // A non-blocking poll is exactly one iteration.
            context.poll(false);
            rounds += 1;
        }
        let stats = engine.stats();
        assert_eq!(stats.completions as usize, COROUTINES * each);
        assert_eq!(stats.submits as usize, each);
        assert!(stats.submits <= rounds, "{} submits in {rounds} rounds", stats.submits);
        assert_eq!(stats.sleeps, 0);
    });
}

#[test]
fn full_batches_do_not_occupy_the_loop_forever() {
    // E8, E3: full batches do not keep the loop in submit forever: as many coroutines as the queue
    // is deep keep filling it, and the loop still iterates: after 512 requests, or fewer if they are
    // large
    const DEPTH: usize = 4;
    let each = scaled(10_000);
    for (len, requests) in [(0, 512), (8 << 10, 256), (1 << 20, 4)] {
        with_engine(DEPTH as u32, |context, backend, engine| {
            (0..DEPTH * each).for_each(|number| backend.script.complete_on_submit(number, number));
            let spawn_one = |number| {
                let engine = engine.clone();
                spawn(move || {
                    let mut buffer = vec![0; len];
                    (0..each).for_each(|_| assert_eq!(read(&engine, &mut buffer, number).unwrap(), 0));
                })
            };
            let tasks: Vec<JoinHandle<()>> = (0..DEPTH as u64).map(spawn_one).collect();
            let mut rounds = 0;
            while !tasks.iter().all(JoinHandle::is_finished) {
                context.poll(false);
                rounds += 1;
            }
            let submits = engine.stats().submits as usize;
            assert_eq!(submits, each, "every batch is full");
            // One more, at the end of the iteration.
            let most = (requests / DEPTH + 1) * rounds;
            assert!(submits <= most, "{submits} submits in {rounds} rounds of requests of {len} bytes");
        });
    }
}

#[test]
fn counters_add_up() {
    // E9: requests = completed + in flight + pending + refused, at every stage
    with_engine(3, |context, backend, engine| {
        let state = || {
            let stats = engine.stats();
            (stats.requests, stats.completions, stats.in_flight, stats.pending, stats.submits)
        };
        (0..3).for_each(|number| backend.script.hold(number));
        backend.script.refuse(libc::EINVAL);
        for number in 0..5 {
            let engine = engine.clone();
            drop(spawn(move || touch(&engine, number)));
        }
        context.poll(false);
        assert_eq!(state(), (5, 0, 3, 1, 3));
        backend.script.release(1);
        context.poll(false);
        assert_eq!(state(), (5, 1, 3, 0, 4));
        backend.script.release(0);
        backend.script.release(2);
        while engine.stats().in_flight > 0 {
            context.poll(true);
        }
        assert_eq!(state(), (5, 4, 0, 0, 4));
        assert_eq!(backend.transcript(), "0,1,2>error22 1,2>2 3>1 4>1 wait");
    });
}

#[test]
fn repeated_completion_is_detected() {
    // E9: a repeated completion is detected by checked counting; the message contains the engine's
    // state
    with_engine(8, |context, backend, engine| {
        let log = Log::default();
        backend.echo_next();
        let task = spawn({
            let (engine, log) = (engine.clone(), log.clone());
            move || log.add(touch(&engine, 0).unwrap())
        });
        context.poll(false);
        let message = panic_of(|| context.poll(true));
        assert_eq!(
            message,
            "in_flight below zero: a completion was reaped twice (in_flight 0, depth 8, plug depth 0, blocked false, 1 \
             requests submitted, 1 completed)"
        );
        task.join().unwrap();
        assert_eq!(log.take(), "0", "the request itself was completed once");
    });
}

const CHILD: &str = "CORALIO_TEST_CHILD";

#[test]
fn unknown_completion_is_rejected() {
    // E5, E9: a repeated completion whose slot serves the next request is detected by its key. The
    // request whose place in the count it took is not waited for in vain: the child process ends
    if std::env::var_os(CHILD).is_some() {
        with_engine(8, |context, backend, engine| {
            backend.echo_next();
            backend.script.hold(1);
            for number in 0..2 {
                let engine = engine.clone();
                drop(spawn(move || [touch(&engine, number), touch(&engine, 10 + number)]));
            }
            context.poll(false);
            eprintln!("{}", panic_of(|| context.poll(true)));
        });
        return;
    }
    let me = std::env::current_exe().unwrap();
    let test = "reap::unknown_completion_is_rejected";
    let child = Command::new(me).args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(
        said.contains("a completion for a request that is not in flight: key 0x0, result 0 (in_flight 0,"),
        "{said}"
    );
    assert!(said.contains("coralio: a request is neither pending nor in flight: it is lost (in_flight 0,"), "{said}");
    assert!(!child.status.success());
}
