//! Barrier and OnceCell: coroutines that wait for each other, and for one initializer.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::common::{Log, panic_in, panic_of};
use coralio_runtime::{AioContext, Barrier, Cancelled, IoThread, JoinHandle, OnceCell, spawn, suspend, yield_now};

/// Spawns a coroutine that waits at the barrier and returns whether it led.
fn wait(barrier: &Rc<Barrier>) -> JoinHandle<Result<bool, Cancelled>> {
    let barrier = Rc::clone(barrier);
    spawn(move || Ok(barrier.wait()?.is_leader()))
}

#[test]
fn last_arrival_leads_each_round() {
    // S11: a round is passed when all have arrived; the last one leads; then the next round begins
    AioContext::run(|ctx| {
        let barrier = Rc::new(Barrier::new(3));
        for _ in 0..2 {
            let early = [wait(&barrier), wait(&barrier)];
            ctx.poll(false);
            assert!(early.iter().all(|task| !task.is_finished()));
            let last = wait(&barrier);
            assert_eq!(last.join().unwrap(), Ok(true));
            assert_eq!(early.map(|task| task.join().unwrap()), [Ok(false); 2]);
        }
        assert!(Barrier::new(0).wait().unwrap().is_leader());
        let said = panic_of(|| barrier.wait());
        assert!(said.contains("would block outside a coroutine"), "{said}");
        // That wait was withdrawn.
        let early = [wait(&barrier), wait(&barrier)];
        ctx.poll(false);
        assert!(early.iter().all(|task| !task.is_finished()));
        assert_eq!(wait(&barrier).join().unwrap(), Ok(true));
    });
}

#[test]
fn cancelled_wait_withdraws_its_arrival() {
    // S11, S4: the others wait for one more; a waiter that is cancelled after its round was complete
    // has passed
    AioContext::run(|ctx| {
        let barrier = Rc::new(Barrier::new(2));
        let cancelled = wait(&barrier);
        ctx.poll(false);
        cancelled.cancel();
        assert_eq!(cancelled.join().unwrap(), Err(Cancelled));
        let early = wait(&barrier);
        ctx.poll(false);
        assert!(!early.is_finished());
        assert_eq!(wait(&barrier).join().unwrap(), Ok(true));
        early.cancel();
        assert_eq!(early.join().unwrap(), Ok(false));
    });
}

#[test]
fn barrier_joins_threads() {
    // S11: coroutines of several contexts pass together, many times
    let workers = ["a", "b", "c"].map(|name| IoThread::start(name).unwrap());
    let barrier = Arc::new(Barrier::new(3));
    let tasks = workers.each_ref().map(|worker| {
        let barrier = Arc::clone(&barrier);
        worker.context().spawn(move || (0..100).filter(|_| barrier.wait().unwrap().is_leader()).count())
    });
    assert_eq!(tasks.map(|task| task.join().unwrap()).into_iter().sum::<usize>(), 100);
    workers.into_iter().for_each(|worker| worker.stop().unwrap());
}

#[test]
fn cell_is_initialized_once() {
    // S11: one initializer runs, and suspends; the others wait for its value
    AioContext::run(|_| {
        let (cell, log) = (Rc::new(OnceCell::new()), Log::default());
        let tasks = [1, 2, 3].map(|n| {
            let (cell, log) = (Rc::clone(&cell), log.clone());
            spawn(move || {
                *cell.get_or_init(|| {
                    log.add(n);
                    assert!(cell.get().is_none() && cell.set(9) == Err(9), "it is being initialized");
                    yield_now();
                    n
                })
            })
        });
        assert_eq!(tasks.map(|task| task.join().unwrap()), [1, 1, 1]);
        assert_eq!((log.take().as_str(), cell.get(), cell.set(9)), ("1", Some(&1), Err(9)));
        let mut cell = Rc::into_inner(cell).unwrap();
        *cell.get_mut().unwrap() = 4;
        assert_eq!((format!("{cell:?}").as_str(), cell.into_inner()), ("OnceCell(Some(4))", Some(4)));
        let cell = OnceCell::new();
        assert_eq!((cell.set(1), cell.get()), (Ok(()), Some(&1)));
    });
}

#[test]
fn failed_initializer_is_followed_by_the_next() {
    // S11, C8: an initializer that returns an error, or panics, leaves the cell empty, and the next
    // waiter runs its own
    AioContext::run(|_| {
        let cell = Rc::new(OnceCell::new());
        let attempt = |f: fn() -> Result<u8, &'static str>| {
            let cell = Rc::clone(&cell);
            spawn(move || {
                cell.get_or_try_init(|| {
                    yield_now();
                    f()
                })
                .copied()
            })
        };
        let tasks = [attempt(|| Err("no")), attempt(|| panic!("bad")), attempt(|| Ok(7)), attempt(|| Ok(8))];
        let [failed, panicked, done, late] = tasks;
        assert_eq!(failed.join().unwrap(), Err("no"));
        assert_eq!(panic_in(panicked), "bad");
        assert_eq!([done, late].map(|task| task.join().unwrap()), [Ok(7), Ok(7)]);

        let cell = Rc::new(OnceCell::new());
        let recursive = spawn(move || *cell.get_or_init(|| *cell.get_or_init(|| 1)));
        let said = panic_in(recursive);
        assert!(said.contains("it would wait for itself"), "{said}");
    });
}

#[test]
fn unwound_initializer_leaves_the_cell_empty() {
    // S11, C9: the context ends while the initializer waits: a later one runs
    let cell = Rc::new(OnceCell::new());
    let ran = Rc::new(Cell::new(false));
    AioContext::builder()
        .report_unwound(false)
        .run(|ctx| {
            let (cell, ran) = (Rc::clone(&cell), Rc::clone(&ran));
            drop(spawn(move || {
                _ = cell.get_or_init(|| {
                    ran.set(true);
                    suspend();
                    1
                });
            }));
            ctx.poll(false);
        })
        .unwrap();
    assert!(ran.get() && cell.get().is_none());
    assert_eq!(*cell.get_or_init(|| 2), 2);
}
