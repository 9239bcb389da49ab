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
fn requests_are_accepted_one_at_a_time() {
    // E2: a kernel that takes one request per call gets all of them, in order
    with_engine(8, |_, backend, engine| {
        for _ in 0..4 {
            backend.script.take_at_most(1);
        }
        assert_eq!(join(spawn_at(engine, &[1, 2, 3, 4])), [Ok(0); 4]);
        assert_eq!(backend.transcript(), "1,2,3,4>1 wait 2,3,4>1 wait 3,4>1 wait 4>1 wait");
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
fn eagain_with_nothing_in_flight_does_not_wedge() {
    // E2, H6: after "try again" with nothing in flight, no completion would wake the loop, so its
    // next iteration retries
    with_engine(8, |_, backend, engine| {
        for _ in 0..3 {
            backend.script.refuse(libc::EAGAIN);
        }
        assert_eq!(join(spawn_at(engine, &[1, 2])), [Ok(0); 2]);
        assert_eq!(backend.transcript(), "1,2>again 1,2>again 1,2>again 1,2>2 wait");
        assert_eq!(join(spawn_at(engine, &[3])), [Ok(0)]);
    });
}

#[test]
fn eagain_outside_the_loop_does_not_wedge() {
    // E2, H6: the same for a coroutine entered from the thread's own stack
    with_engine(8, |_, backend, engine| {
        backend.script.refuse(libc::EAGAIN);
        let co = Coroutine::new({
            let engine = engine.clone();
            move || assert_eq!(touch(&engine, 7), Ok(0))
        });
        co.enter();
        assert!(!co.has_ended());
        rounds_until(|| co.has_ended());
        assert_eq!(backend.transcript(), "7>again 7>1 wait");
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
fn bad_first_request_fails_alone() {
    // E2, H5: a bad first request fails alone; the rest is submitted immediately, since nothing in
    // flight could wake the loop
    with_engine(8, |_, backend, engine| {
        backend.script.refuse(libc::EBADF);
        assert_eq!(join(spawn_at(engine, &[1, 2, 3])), [Err(libc::EBADF), Ok(0), Ok(0)]);
        assert_eq!(backend.transcript(), "1,2,3>error9 2,3>2 wait");
        assert_eq!(join(spawn_at(engine, &[4])), [Ok(0)], "and so are later ones");
    });
}

#[test]
fn bad_middle_request_fails_alone() {
    // E2: for [good, bad, good] Linux takes the first; the bad one is then first and fails alone,
    // and the last one is submitted
    with_engine(8, |_, backend, engine| {
        backend.script.take_at_most(1);
        backend.script.refuse(libc::EINVAL);
        assert_eq!(join(spawn_at(engine, &[1, 2, 3])), [Ok(0), Err(libc::EINVAL), Ok(0)]);
        assert_eq!(backend.transcript(), "1,2,3>1 wait 2,3>error22 3>1 wait");
        let stats = engine.stats();
        assert_eq!((stats.requests, stats.completions, stats.pending, stats.in_flight), (3, 2, 0, 0));
    });
}

#[test]
fn all_bad_requests_fail() {
    // E2, H5: all of [bad, bad, bad] fail; in [bad, "try again" once, good] only the bad one does
    with_engine(8, |_, backend, engine| {
        for errno in [libc::EBADF, libc::EINVAL, libc::EFAULT] {
            backend.script.refuse(errno);
        }
        assert_eq!(join(spawn_at(engine, &[1, 2, 3])), [libc::EBADF, libc::EINVAL, libc::EFAULT].map(Err));
        assert_eq!(backend.transcript(), "1,2,3>error9 2,3>error22 3>error14");
        for errno in [libc::EBADF, libc::EAGAIN] {
            backend.script.refuse(errno);
        }
        assert_eq!(join(spawn_at(engine, &[4, 5])), [Err(libc::EBADF), Ok(0)]);
        assert_eq!(backend.transcript(), "4,5>error9 5>again 5>1 wait");
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
        assert!(rounds >= TRIES / 8, "{TRIES} failures in {rounds} rounds");
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
