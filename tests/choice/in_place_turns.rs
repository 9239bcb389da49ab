//! What else runs while a coroutine makes requests in place: other coroutines, timers, descriptors.

use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coralio::context::AioContext;
use coralio::driver::{BackendKind, stats};
use coralio::fs::Direct;
use coralio::net::CoFd;
use coralio::task::spawn_now;
use coralio::{run, spawn, yield_now};

use crate::common::{content, is_all};
use crate::in_place::{on_tmpfs, without_interfaces};
use crate::{Temp, chosen};

#[test]
fn request_in_place_lets_others_run() {
    // W3, E16: a coroutine that makes requests in place without end lets others run, also in the
    // course of one long read, be it vectored or not
    let temp = Temp::with("/dev/shm".as_ref(), vec![7; 8 << 20]);
    run(|| {
        let file = temp.open(Direct::Auto);
        let turns = Rc::new(Cell::new(0));
        let other = {
            let turns = Rc::clone(&turns);
            spawn(move || {
                while turns.get() < 1000 {
                    turns.set(turns.get() + 1);
                    yield_now();
                }
            })
        };
        let before = turns.get();
        (0..1000).for_each(|_| file.read_exact_at(&mut [0; 4096], 0).unwrap());
        let during_reads = turns.get() - before;
        let before = turns.get();
        let mut long = vec![0; 8 << 20];
        file.read_exact_at(&mut long, 0).unwrap();
        let during_one = turns.get() - before;
        assert!(is_all(&long, 7));
        let before = turns.get();
        let (first, second) = long.split_at_mut(5 << 20);
        let mut vectors = [IoSliceMut::new(second), IoSliceMut::new(first)];
        assert_eq!(file.read_vectored_at(&mut vectors, 4096).unwrap(), (8 << 20) - 4096);
        let during_vectored = turns.get() - before;
        assert!(during_reads >= 50 && during_one >= 7 && during_vectored >= 7);
        turns.set(1000);
        other.join().unwrap();
    });
}

#[test]
fn request_in_place_lets_events_in() {
    // W3, X5, X7, E16: a coroutine that makes requests in place without end delays a bottom half and a
    // timer by sixteen requests, and by twice as many a coroutine that waits for a descriptor
    let temp = on_tmpfs();
    run(|| {
        let file = temp.open(Direct::Auto);
        let context = AioContext::current().unwrap();
        file.write_at(&[1; 4096], 0).unwrap();
        let event = Arc::new(AtomicBool::new(false));
        let sets = || {
            let event = Arc::clone(&event);
            move || event.store(true, Ordering::Relaxed)
        };
        let check = |what: &str, most| {
            let has_not_come = |_: &usize| {
                file.read_exact_at(&mut [0; 4096], 0).unwrap();
                !event.swap(false, Ordering::Relaxed)
            };
            let reads = (0..1000).take_while(has_not_come).count();
            assert!(reads < most, "{reads} reads before a {what}");
        };
        for _ in 0..5 {
            context.schedule_oneshot(sets()).unwrap();
            check("bottom half", 18);
            let timer = context.new_timer(sets()).unwrap();
            timer.arm_at(context.now());
            check("timer", 18);
            let ((socket, mut peer), sets) = (UnixStream::pair().unwrap(), sets());
            let waiter = spawn_now(move || {
                CoFd::new(socket).unwrap().read_exact(&mut [0]).unwrap();
                sets();
            });
            peer.write_all(b"!").unwrap();
            check("descriptor", 34);
            waiter.join().unwrap();
        }
    });
}

/// Checks that a long write to tmpfs is not performed in place.
fn long_write_is_left_to_others() {
    let temp = on_tmpfs();
    run(|| {
        let file = temp.open(Direct::Auto);
        let data = content(3 << 20);
        let in_place = |write: &dyn Fn() -> std::io::Result<usize>, len| {
            let before = stats().in_place;
            assert_eq!(write().unwrap(), len);
            stats().in_place - before
        };
        let (first, second) = data.split_at(1 << 20);
        assert_eq!(in_place(&|| file.write_at(first, 0), 1 << 20), 1);
        assert_eq!(in_place(&|| file.write_at(second, 1 << 20), 2 << 20), 0);
        let vectors = [IoSlice::new(second), IoSlice::new(first)];
        assert_eq!(in_place(&|| file.write_vectored_at(&vectors, 3 << 20), 3 << 20), 0);
        assert_eq!(in_place(&|| file.write_vectored_at(&[IoSlice::new(second); 1], 6 << 20), 2 << 20), 0);
        let mut back = vec![0; 8 << 20];
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(back == [&data, second, first, second].concat());
        // Native AIO would perform them within submit.
        let on_threads = if chosen().backend() == BackendKind::Aio { 3 } else { 0 };
        assert_eq!(stats().offloaded, on_threads);
    });
}

#[test]
fn long_write_to_tmpfs_does_not_occupy_the_loop() {
    // W3, E16: a write of more than 1 MiB is left to a worker of the engine
    long_write_is_left_to_others();
}

#[test]
fn long_write_to_tmpfs_does_not_occupy_the_loop_without_io_uring() {
    // W3, E14, E16: the same where native AIO takes the place of io_uring, and where threads do
    without_interfaces(
        "in_place_turns::long_write_to_tmpfs_does_not_occupy_the_loop_without_io_uring",
        long_write_is_left_to_others,
    );
}
