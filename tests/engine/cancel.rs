//! Rule E11: requests whose coroutines are cancelled.

use std::io;
use std::time::Duration;

use coralio::task::{Cancelled, TimedOut, shield};
use coralio::{JoinHandle, sleep, spawn, spawn_now, timeout};

use crate::{Watch, read, rounds_until, with_engine};

fn reader(engine: &Watch, offset: u64) -> JoinHandle<io::Result<usize>> {
    let engine = engine.clone();
    spawn(move || read(&engine, &mut [0; 8], offset))
}

#[track_caller]
fn assert_cancelled(result: io::Result<usize>) {
    let error = result.unwrap_err();
    assert!(Cancelled::is_cause_of(&error), "{error}");
}

#[test]
fn cancelled_pending_request_leaves_the_queue() {
    // E11: a request cancelled while pending never reaches the kernel, and its coroutine is resumed
    // immediately; the others keep their order
    with_engine(1, |context, backend, engine| {
        backend.script.hold(0);
        let tasks = [0, 1, 2, 3].map(|offset| reader(engine, offset));
        context.poll(false);
        assert_eq!(backend.transcript(), "0>1");
        tasks[2].cancel();
        assert!(tasks[2].is_finished());
        let stats = engine.stats();
        assert_eq!((stats.in_flight, stats.pending, stats.requests), (1, 2, 4));
        backend.script.release(0);
        rounds_until(|| tasks.iter().all(JoinHandle::is_finished));
        assert!(!backend.transcript().contains('2'));
        let [first, second, cancelled, last] = tasks.map(|task| task.join().unwrap());
        assert_cancelled(cancelled);
        assert_eq!([first, second, last].map(Result::unwrap), [0; 3]);
        assert_eq!((engine.stats().in_flight, engine.stats().pending), (0, 0));
    });
}

#[test]
fn cancelled_request_in_flight_is_waited_for() {
    // E11, H12: a request cancelled in flight stays in flight: the kernel may write to its buffer
    // until completion
    with_engine(4, |context, backend, engine| {
        backend.script.hold(0);
        let task = reader(engine, 0);
        context.poll(false);
        task.cancel();
        (0..5).for_each(|_| _ = context.poll(false));
        assert!(!task.is_finished());
        backend.script.release(0);
        rounds_until(|| task.is_finished());
        // It succeeded in spite of the cancellation.
        assert_eq!(task.join().unwrap().unwrap(), 0);
        assert_eq!(backend.script.taken(), 1);
    });
}

#[test]
fn successful_request_returns_its_result_after_a_timeout() {
    // S4, E11: a deadline that expires while the kernel has the request, which cannot be cancelled
    // and succeeds, does not lose the result
    with_engine(4, |context, backend, engine| {
        backend.script.hold(0);
        let task = spawn({
            let engine = engine.clone();
            move || timeout(Duration::from_millis(1), || read(&engine, &mut [0; 8], 0))
        });
        context.poll(false);
        // This timer is the later one, so the reader has been resumed and has seen its deadline
        // expire.
        let later = spawn(|| sleep(Duration::from_millis(2)));
        while !later.is_finished() {
            context.poll(false);
        }
        assert!(!task.is_finished());
        backend.script.release(0);
        rounds_until(|| task.is_finished());
        assert_eq!(task.join().unwrap().unwrap().unwrap(), 0);
        drop(later);
    });
}

#[test]
fn cancelled_coroutine_begins_no_request() {
    // E11, S4: I/O of a cancelled coroutine fails immediately, except within a shield; so does I/O
    // after an expired timeout
    with_engine(4, |context, backend, engine| {
        let task = spawn({
            let engine = engine.clone();
            move || {
                coralio::coroutine::suspend();
                assert_cancelled(read(&engine, &mut [0; 8], 1));
                shield(|| read(&engine, &mut [0; 8], 2)).unwrap()
            }
        });
        context.poll(false);
        task.cancel();
        rounds_until(|| task.is_finished());
        assert_eq!(task.join().unwrap(), 0);
        assert_eq!(backend.transcript(), "2>1 wait");
        let late = spawn({
            let engine = engine.clone();
            move || timeout(Duration::ZERO, || read(&engine, &mut [0; 8], 3))
        });
        rounds_until(|| late.is_finished());
        assert!(matches!(late.join().unwrap(), Err(TimedOut)));
        assert_eq!(backend.transcript(), "");
    });
}

#[test]
fn retried_request_lets_others_run() {
    // E10, E11: a file system that answers EINTR within submit, and does not stop. A coroutine that
    // is entered outside the loop yields all the same, and can be cancelled
    const TIMES: usize = 1000;
    with_engine(1, |context, backend, engine| {
        for number in 0..TIMES {
            backend.script.set_result(number, -i64::from(libc::EINTR));
            backend.script.complete_on_submit(number, number);
        }
        let task = spawn_now({
            let engine = engine.clone();
            move || read(&engine, &mut [0; 8], 0)
        });
        assert_eq!(backend.script.taken(), 1);
        for _ in 0..10 {
            context.poll(false);
        }
        task.cancel();
        rounds_until(|| task.is_finished());
        assert_cancelled(task.join().unwrap());
        assert!(backend.script.taken() < TIMES);
    });
}
