//! Rule E3: plugged requests are collected and submitted together.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::thread;

use coralio::coroutine::Coroutine;
use coralio::{JoinHandle, spawn};

use crate::{Watch, rounds_until, scaled, touch, with_engine};

/// Enters the coroutines immediately, so that their requests are made outside the loop.
fn enter_at(engine: &Watch, offsets: &[u64]) -> Vec<Coroutine> {
    let enter_one = |&offset| {
        let engine = engine.clone();
        let co = Coroutine::new(move || assert_eq!(touch(&engine, offset), Ok(0)));
        co.enter();
        co
    };
    offsets.iter().map(enter_one).collect()
}

#[test]
fn unplugged_requests_are_submitted_immediately() {
    // E3: outside the loop and without a plug, each request is submitted immediately, since no
    // later submit is certain
    with_engine(8, |_, backend, engine| {
        enter_at(engine, &[1, 2]);
        assert_eq!(backend.transcript(), "1>1 2>1");
    });
}

#[test]
fn dropped_plug_submits_the_batch() {
    // E3: dropping the last plug enters no coroutine and submits nothing; the loop's next iteration
    // submits
    with_engine(8, |context, backend, engine| {
        let plug = engine.plug();
        let readers = enter_at(engine, &[1, 2, 3]);
        context.poll(false);
        assert_eq!(backend.transcript(), "");
        assert_eq!((engine.stats().pending, engine.stats().in_flight), (3, 0));
        drop(plug);
        assert_eq!(backend.transcript(), "");
        context.poll(false);
        assert_eq!(backend.transcript(), "1,2,3>3");
        context.poll(true);
        assert!(readers.iter().all(|reader| reader.has_ended()));
    });
}

#[test]
fn plug_held_across_a_suspension_does_not_wedge() {
    // E2, E3: plugged requests are submitted before the loop sleeps, since nothing else would
    // submit them
    with_engine(8, |_, backend, engine| {
        let tasks: Vec<JoinHandle<usize>> = (0..3)
            .map(|number| {
                let engine = engine.clone();
                spawn(move || {
                    let _plug = engine.plug();
                    (0..2).map(|round| touch(&engine, 10 * round + number).unwrap()).sum()
                })
            })
            .collect();
        rounds_until(|| tasks.iter().all(JoinHandle::is_finished));
        for task in tasks {
            assert_eq!(task.join().unwrap(), 0);
        }
        assert_eq!(backend.transcript(), "0,1,2>3 wait 10,11,12>3 wait");
    });
}

#[test]
fn plug_held_across_a_suspension_does_not_wedge_a_busy_loop() {
    // E2, E3: a plug holds requests back for a bounded number of iterations
    with_engine(8, |context, backend, engine| {
        backend.script.complete_on_submit(0, 0);
        let plug = engine.plug();
        let reader = enter_at(engine, &[1])[0];
        for _ in 0..15 {
            context.poll(false);
        }
        assert_eq!(backend.transcript(), "");
        context.poll(false);
        assert_eq!(backend.transcript(), "1>1");
        assert!(reader.has_ended());
        drop(plug);
    });
}

#[test]
fn full_batch_is_submitted_despite_a_plug() {
    // E3: a full batch is submitted although it is plugged: one call could not take more
    with_engine(3, |context, backend, engine| {
        let plug = engine.plug();
        enter_at(engine, &[1, 2]);
        assert_eq!(backend.transcript(), "");
        enter_at(engine, &[3]);
        assert_eq!(backend.transcript(), "1,2,3>3");
        let rest = enter_at(engine, &[4]);
        assert_eq!(backend.transcript(), "");
        drop(plug);
        while !rest[0].has_ended() {
            context.poll(true);
        }
        assert_eq!(backend.transcript(), "wait 4>1 wait");
    });
}

#[test]
fn full_batch_is_submitted_within_an_iteration() {
    // E3: a batch that fills up within an iteration is submitted: seven coroutines at a depth of
    // three; requests already in flight do not count
    with_engine(3, |_, backend, engine| {
        let spawn_one = |offset| {
            let engine = engine.clone();
            spawn(move || touch(&engine, offset))
        };
        let tasks: Vec<_> = (1..8).map(spawn_one).collect();
        for task in tasks {
            assert_eq!(task.join().unwrap(), Ok(0));
        }
        assert_eq!(backend.transcript(), "1,2,3>3 wait 4,5,6>3 wait 7>1 wait");
    });
}

#[test]
fn requests_of_one_iteration_share_one_submit() {
    // E3: the loop plugs around its own dispatch, so the requests of one iteration share one submit
    const COROUTINES: u64 = 20;
    let rounds = scaled(100) as u64;
    with_engine(64, |_, backend, engine| {
        let tasks: Vec<_> = (0..COROUTINES)
            .map(|number| {
                let engine = engine.clone();
                spawn(move || (0..rounds).for_each(|_| assert_eq!(touch(&engine, number), Ok(0))))
            })
            .collect();
        for task in tasks {
            task.join().unwrap();
        }
        let stats = engine.stats();
        assert_eq!((stats.requests, stats.completions), (COROUTINES * rounds, COROUTINES * rounds));
        assert_eq!((stats.submits, stats.sleeps), (rounds, rounds));
        assert_eq!(backend.script.taken() as u64, COROUTINES * rounds);
    });
}

#[test]
fn requests_of_a_bottom_half_are_batched() {
    // E3: requests made by coroutines that a bottom half enters are collected as well
    with_engine(8, |context, backend, engine| {
        let engine = engine.clone();
        let ended = Rc::new(Cell::new(0));
        let two: Vec<_> = [1, 2]
            .map(|offset| {
                let (engine, ended) = (engine.clone(), Rc::clone(&ended));
                Coroutine::new(move || {
                    touch(&engine, offset).unwrap();
                    ended.set(ended.get() + 1);
                })
                .waker()
            })
            .into();
        context.schedule_oneshot(move || two.iter().for_each(|co| co.wake())).unwrap();
        let third = spawn(move || touch(&engine, 3));
        assert_eq!(third.join().unwrap(), Ok(0));
        assert_eq!(ended.get(), 2);
        assert_eq!(backend.transcript(), "1,2,3>3 wait");
    });
}

#[test]
fn plug_does_not_wait_for_the_lock() {
    // E3, X8: a plug is created and dropped while another thread holds the context's lock, so plugs
    // that loops hold of each other's engines cannot make them wait for each other. Hangs if not
    with_engine(8, |context, _, engine| {
        let (send, is_locked) = channel();
        let (dropped, until_dropped) = channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                let _guard = context.acquire();
                send.send(()).unwrap();
                until_dropped.recv().unwrap();
            });
            is_locked.recv().unwrap();
            drop(engine.plug());
            dropped.send(()).unwrap();
        });
    });
}

#[test]
fn plug_can_outlive_its_context() {
    // E3: a plug may outlive its context; its drop does nothing
    let plug = with_engine(8, |_, _, engine| engine.plug());
    drop(plug);
}
