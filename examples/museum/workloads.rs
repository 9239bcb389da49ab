//! The workloads that each version runs. A workload passes if it returns, and fails if it panics,
//! in the engine or in its own checks.
//!
//! Nothing here can hang: loop iterations are limited, and the scripted backend panics in a sleep
//! that would never end.

use std::cell::Cell;
use std::fs::File as StdFile;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::rc::Rc;

use coralio::context::AioContext;
use coralio::engine::guards::Guards;
use coralio::engine::scripted::ScriptedBackend;
use coralio::engine::{Opcode, Operation};
use coralio::{File, JoinHandle};

use super::lesson::{Disk, attach, backend, coroutine, meet_another_thread, poll_if_free, read, say, spawn, try_read};
use super::schedule::{a_alone, three_and_a_lock};

/// The number of workloads.
pub const WORKLOADS: usize = 12;

/// A workload for an engine.
pub struct Workload {
    pub name: &'static str,
    pub what: &'static str,
    pub run: fn(&AioContext),
}

/// Returns all workloads for one version of the engine.
pub fn all<G: Guards>() -> [Workload; WORKLOADS] {
    let workload = |name, what, run| Workload { name, what, run };
    [
        workload("own", "a request completes within its own submit", a_alone::<G>),
        workload("lock", "three coroutines, two of which share a lock, as in lesson 9", three_and_a_lock::<G>),
        workload("thread", "another thread polls during a reap, as in lesson 12", another_thread::<G>),
        workload("nested", "a coroutine polls until another has read, as in lesson 11", nested_poll::<G>),
        workload("bad", "the first of three requests is refused", |context| refused::<G>(context, libc::EBADF)),
        workload("again", "the kernel returns EAGAIN with nothing in flight", |context| {
            refused::<G>(context, libc::EAGAIN);
        }),
        workload("part", "the kernel accepts only the first of three requests", part_taken::<G>),
        workload("plug", "a plug is dropped while the queue is full", full_plug::<G>),
        workload("long", "eight reads in a row, each completed within its submit", long_file::<G>),
        workload("short", "the first read of a file is short", short_read::<G>),
        workload("cancel", "a read is cancelled in flight", cancel_in_flight::<G>),
        workload("depth1", "queue depth 1, and a coroutine polls until another has read", nested_at_depth_one::<G>),
    ]
}

/// Runs loop iterations until `done`. The loop may sleep while requests are in flight.
fn rounds<G: Guards>(context: &AioContext, disk: &Disk<G>, done: impl Fn() -> bool) {
    for _ in 0..40 {
        if done() {
            return;
        }
        context.poll(disk.stats().in_flight > 0);
    }
    let stats = disk.stats();
    assert!(
        stats.pending + stats.in_flight > 0,
        "lost: after 40 iterations a request is neither pending nor in flight"
    );
    panic!("stuck: after 40 iterations {} pending, {} in flight", stats.pending, stats.in_flight);
}

/// Polls until `done`, at most ten times.
fn poll_until(context: &AioContext, done: impl Fn() -> bool) {
    for _ in 0..10 {
        if done() {
            return;
        }
        context.poll(true);
    }
    panic!("stuck: polled ten times");
}

fn join<T>(task: JoinHandle<T>) -> T {
    task.join().unwrap_or_else(|payload| resume_unwind(payload))
}

fn another_thread<G: Guards>(context: &AioContext) {
    let backend = backend();
    (0..3).for_each(|number| backend.complete_on_submit(number, 2));
    let disk: Disk<G> = attach(&backend, 3);
    let readers = ["A", "B", "C"].map(|name| {
        let disk = disk.clone();
        coroutine(name, move || _ = read(&disk, 0))
    });
    meet_another_thread(&backend, context, poll_if_free);
    readers.iter().for_each(|reader| reader.enter());
    rounds(context, &disk, || readers.iter().all(|reader| reader.has_ended()));
}

fn nested_poll<G: Guards>(context: &AioContext) {
    let disk: Disk<G> = attach(&backend(), 8);
    let b_has_read = Rc::new(Cell::new(false));
    let a = spawn("A", {
        let (disk, b_has_read, context) = (disk.clone(), Rc::clone(&b_has_read), context.clone());
        move || {
            read(&disk, 0);
            poll_until(&context, || b_has_read.get());
        }
    });
    let b = spawn("B", {
        let disk = disk.clone();
        move || {
            read(&disk, 512);
            b_has_read.set(true);
        }
    });
    rounds(context, &disk, || a.is_finished() && b.is_finished());
    join(a);
    join(b);
}

/// Submits three requests in one iteration, to which the script reacts, and later one more.
fn three_and_a_later_one<G: Guards>(context: &AioContext, backend: &ScriptedBackend) -> Vec<io::Result<usize>> {
    let disk: Disk<G> = attach(backend, 8);
    let reader = |name| {
        let disk = disk.clone();
        spawn(name, move || try_read(&disk, 0))
    };
    let mut readers = Vec::from(["A", "B", "C"].map(reader));
    let finished = |readers: &[JoinHandle<_>]| readers.iter().all(JoinHandle::is_finished);
    rounds(context, &disk, || finished(&readers));
    readers.push(reader("D"));
    rounds(context, &disk, || finished(&readers));
    readers.into_iter().map(join).collect()
}

fn refused<G: Guards>(context: &AioContext, errno: i32) {
    let backend = backend();
    backend.refuse(errno);
    let results = three_and_a_later_one::<G>(context, &backend);
    let failed = results.iter().filter(|result| result.is_err()).count();
    let expected = usize::from(errno != libc::EAGAIN);
    assert!(failed == expected, "wrong: {failed} of four have failed");
}

fn part_taken<G: Guards>(context: &AioContext) {
    let backend = backend();
    backend.take_at_most(1);
    let results = three_and_a_later_one::<G>(context, &backend);
    assert!(results.iter().all(Result::is_ok), "wrong: some have failed");
}

fn full_plug<G: Guards>(context: &AioContext) {
    let backend = ScriptedBackend::new(2);
    let disk: Disk<G> = attach(&backend, 2);
    let enter_reader = |name| {
        let disk = disk.clone();
        let reader = coroutine(name, move || _ = read(&disk, 0));
        reader.enter();
        reader
    };
    // Two are in flight, so the next two fill the queue and stay pending.
    (0..2).for_each(|number| backend.hold(number));
    let mut readers = vec![enter_reader("A"), enter_reader("B")];
    let plug = disk.plug();
    readers.extend([enter_reader("C"), enter_reader("D")]);
    drop(plug);
    (0..2).for_each(|number| backend.release(number));
    rounds(context, &disk, || readers.iter().all(|reader| reader.has_ended()));
    let taken = backend.taken();
    let late = enter_reader("E");
    let at_once = backend.taken() > taken;
    rounds(context, &disk, || late.has_ended());
    assert!(at_once, "delay: a request waits for a plug that was dropped");
}

fn long_file<G: Guards>(context: &AioContext) {
    let backend = backend();
    (0..8).for_each(|number| backend.complete_on_submit(number, number));
    let disk: Disk<G> = attach(&backend, 8);
    let a = spawn("A", {
        let disk = disk.clone();
        move || (0..8).for_each(|_| _ = read(&disk, 0))
    });
    rounds(context, &disk, || a.is_finished());
    join(a);
}

fn short_read<G: Guards>(context: &AioContext) {
    let backend = backend();
    backend.shorten(0, 128);
    let disk: Disk<G> = attach(&backend, 8);
    let null = OwnedFd::from(StdFile::open("/dev/null").expect("a descriptor"));
    let file = File::with_engine(&disk, null).expect("it is of this context");
    let a = spawn("A", move || file.read_at(&mut [0; 512], 0).expect("the script has no errors"));
    rounds(context, &disk, || a.is_finished());
    let read = join(a);
    assert!(read == 512, "cut: {read} bytes of 512, and no error");
}

fn cancel_in_flight<G: Guards>(context: &AioContext) {
    let backend = backend();
    backend.hold(0);
    let disk: Disk<G> = attach(&backend, 8);
    let buffer = Box::leak(Box::new([0_u8; 512])).as_mut_ptr();
    let a = spawn("A", {
        let disk = disk.clone();
        move || {
            let operation = Operation { opcode: Opcode::Read, fd: 0, addr: buffer as u64, len: 512, offset: 0 };
            // SAFETY: leaked memory is valid forever, and no reference to it exists.
            let _ = unsafe { disk.transfer(&operation) };
            say("has the buffer back");
        }
    });
    context.poll(false);
    say("A is cancelled");
    a.cancel();
    context.poll(false);
    let over_before = a.is_finished();
    say("now the kernel completes the read");
    backend.release(0);
    rounds(context, &disk, || a.is_finished() && disk.stats().in_flight == 0);
    assert!(!over_before, "wrong: the call returned before the kernel was done");
    join(a);
}

fn nested_at_depth_one<G: Guards>(context: &AioContext) {
    let disk: Disk<G> = attach(&backend(), 1);
    let a = spawn("A", {
        let (disk, context) = (disk.clone(), context.clone());
        move || {
            read(&disk, 0);
            let b = spawn("B", move || _ = read(&disk, 512));
            poll_until(&context, || b.is_finished());
            join(b);
        }
    });
    rounds(context, &disk, || a.is_finished());
    join(a);
}
