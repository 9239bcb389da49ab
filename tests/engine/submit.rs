//! Rules E1 and E2: one engine per context; requests that the kernel does not take stay queued and
//! never get stuck.

use coralio::context::AioContext;
use coralio::coroutine::Coroutine;
use coralio::engine::Engine;
use coralio::{JoinHandle, spawn};

use crate::{Log, Watch, Watched, rounds_until, touch, with_engine};

/// Spawns a coroutine for each offset, all in one iteration.
fn spawn_at(engine: &Watch, offsets: &[u64]) -> Vec<JoinHandle<Result<usize, i32>>> {
    let spawn_one = |&offset| {
        let engine = engine.clone();
        spawn(move || touch(&engine, offset))
    };
    offsets.iter().map(spawn_one).collect()
}

fn join(tasks: Vec<JoinHandle<Result<usize, i32>>>) -> Vec<Result<usize, i32>> {
    rounds_until(|| tasks.iter().all(JoinHandle::is_finished));
    tasks.into_iter().map(|task| task.join().unwrap()).collect()
}

#[test]
fn second_engine_is_rejected() {
    // E1: a context accepts one engine, whatever its backend
    with_engine(4, |_, _, first| {
        let error = Engine::<Watched>::attach(Watched::new(4), 4).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
        assert!(error.to_string().contains("the context already has one; share that one"), "{error}");
        let task = join(spawn_at(first, &[0]));
        assert_eq!(task, [Ok(0)], "the first engine still works");
    });
    with_engine(4, |_, _, engine| assert_eq!(join(spawn_at(engine, &[0])), [Ok(0)], "the next context has its own"));
}

#[test]
fn invalid_depth_is_rejected() {
    // E14: a depth of zero, or above the kernel's capacity, is rejected with the valid range
    AioContext::run(|_| {
        for depth in [0, 9, 1_000_000] {
            let error = Engine::<Watched>::attach(Watched::new(8), depth).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
            assert_eq!(error.to_string(), format!("invalid queue depth {depth}: must be 1 to 8"));
        }
        assert!(Engine::<Watched>::attach(Watched::new(8), 8).is_ok(), "a refused engine does not occupy the context");
    });
}

#[test]
fn requests_not_accepted_stay_queued() {
    // E2: the kernel takes two of five requests; the rest is submitted, in order, after a
    // completion was reaped and not before
    with_engine(8, |context, backend, engine| {
        backend.script.take_at_most(2);
        backend.script.hold(0);
        backend.script.hold(1);
        let tasks = spawn_at(engine, &[10, 11, 12, 13, 14]);
        for _ in 0..5 {
            context.poll(false);
        }
        assert_eq!(backend.transcript(), "10,11,12,13,14>2");
        let stats = engine.stats();
        assert_eq!((stats.in_flight, stats.pending, stats.requests), (2, 3, 5));
        // A later request queues behind them.
        let last = spawn_at(engine, &[15]);
        context.poll(false);
        assert_eq!(backend.transcript(), "");
        backend.script.release(1);
        assert_eq!(join(last), [Ok(0)]);
        assert_eq!(backend.transcript(), "12,13,14,15>4 wait");
        backend.script.release(0);
        assert_eq!(join(tasks), [Ok(0); 5]);
        assert_eq!(engine.stats().pending, 0);
    });
}

#[test]
fn in_flight_never_exceeds_the_depth() {
    // E2: no more requests are in flight than the depth allows, though the kernel would take more
    AioContext::run(|context| {
        let backend = Watched::new(100);
        let engine = Engine::attach(backend.clone(), 2).unwrap();
        (0..5).for_each(|number| backend.script.hold(number));
        let tasks = spawn_at(&engine, &[1, 2, 3, 4, 5]);
        for _ in 0..5 {
            context.poll(false);
        }
        assert_eq!(backend.transcript(), "1,2>2");
        backend.script.release(0);
        context.poll(false);
        assert_eq!(backend.transcript(), "3>1");
        assert_eq!((engine.stats().in_flight, backend.script.in_flight()), (2, 2));
        (1..3).for_each(|number| backend.script.release(number));
        context.poll(false);
        assert_eq!(backend.transcript(), "4,5>2");
        (3..5).for_each(|number| backend.script.release(number));
        assert_eq!(join(tasks), [Ok(0); 5]);
    });
}

#[test]
fn eagain_with_requests_in_flight_waits_for_a_completion() {
    // E2: after "try again" with a request in flight, nothing is submitted until a completion was
    // reaped
    with_engine(8, |context, backend, engine| {
        backend.script.hold(0);
        let first = spawn_at(engine, &[1]);
        context.poll(false);
        backend.script.refuse(libc::EAGAIN);
        let second = spawn_at(engine, &[2]);
        for _ in 0..5 {
            context.poll(false);
        }
        assert_eq!(backend.transcript(), "1>1 2>again");
        backend.script.release(0);
        assert_eq!(join(second), [Ok(0)]);
        assert_eq!(backend.transcript(), "2>1 wait");
        assert_eq!(join(first), [Ok(0)]);
    });
}

#[test]
fn failed_request_is_progress() {
    // E2, X1: a poll in which nothing happens but the failure of a request returns true, whether or
    // not others were submitted after it
    with_engine(4, |context, backend, engine| {
        for others in [0, 1] {
            let plug = engine.plug();
            let made: Vec<_> = (0..=others)
                .map(|offset| {
                    let engine = engine.clone();
                    let made = Coroutine::new(move || _ = touch(&engine, offset));
                    made.enter();
                    made
                })
                .collect();
            backend.script.hold(0);
            backend.script.refuse(libc::EBADF);
            drop(plug);
            assert!(context.poll(false));
            assert!(made[0].has_ended());
            assert_eq!((engine.stats().pending, u64::from(engine.stats().in_flight)), (0, others));
            assert!(!context.poll(false));
        }
        backend.script.release(0);
        assert!(context.poll(false));
    });
}

#[test]
fn retried_bad_request_lets_the_loop_run() {
    // E2, E8: a coroutine that repeats a request that fails at submit does not keep the loop in one
    // submit forever
    const TRIES: usize = 1000;
    with_engine(2, |context, backend, engine| {
        (0..TRIES).for_each(|_| backend.script.refuse(libc::EBADF));
        let stubborn = spawn({
            let engine = engine.clone();
            move || (0..TRIES).filter(|_| touch(&engine, 1) == Err(libc::EBADF)).count()
        });
        let mut rounds = 0;
        while !stubborn.is_finished() {
            context.poll(false);
            rounds += 1;
        }
        assert_eq!(stubborn.join().unwrap(), TRIES);
        // At most 32 requests of a coroutine that is alone, see `MAX_LONE_WORK`.
        assert!(rounds >= TRIES / 33, "{TRIES} failures in {rounds} rounds");
    });
}

#[test]
fn request_rejected_outside_the_loop_does_not_yield() {
    // E2, E7: a request refused outside the loop does not yield: its result is there before the
    // coroutine would; the next request is submitted as usual (H5)
    with_engine(8, |_, backend, engine| {
        let log = Log::default();
        backend.script.refuse(libc::EBADF);
        backend.script.complete_on_submit(0, 0);
        let co = Coroutine::new({
            let (engine, log) = (engine.clone(), log.clone());
            move || {
                log.add(format!("{:?}", touch(&engine, 1)));
                log.add(format!("{:?}", touch(&engine, 2)));
            }
        });
        co.enter();
        assert!(co.has_ended());
        assert_eq!(log.take(), "Err(9) Ok(0)");
        assert_eq!(backend.transcript(), "1>error9 2>1");
    });
}
