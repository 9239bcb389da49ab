//! I/O does not allocate in the steady state (rule C10). The allocator of this program counts per
//! thread.

mod common;
#[path = "../runtime/tests/common/counting.rs"]
mod counting;

use std::cell::Cell;
use std::rc::Rc;

use common::scaled;
use coralio::driver::BackendKind;
use coralio::fs::Direct;
use coralio::{AlignedBuf, File, RuntimeBuilder, spawn};
use counting::allocations;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;

/// Runs `f` often enough to fill every pool, then asserts that it no longer allocates.
fn steady(what: &str, mut f: impl FnMut()) {
    (0..100).for_each(|_| f());
    // Before the first count: to read the divisor allocates.
    let rounds = scaled(1000);
    let before = allocations();
    (0..rounds).for_each(|_| f());
    assert_eq!(allocations() - before, 0, "{what}: allocations in the steady state");
}

/// Runs `f` on the disk, where requests complete later, and in memory, where they complete within
/// submit; direct and page-cached.
fn on_each(f: impl Fn(&Rc<File>, &str)) {
    for place in [std::env::temp_dir().to_str().unwrap(), "/dev/shm"] {
        for direct in [Direct::Auto, Direct::Never] {
            for backend in [BackendKind::Aio, BackendKind::Uring] {
                let temp = common::Temp::with(place.as_ref(), vec![1; BLOCK * BLOCKS as usize]);
                let ran = RuntimeBuilder::new().backend(backend).run(|| {
                    f(&Rc::new(temp.open(direct)), &format!("{place}, {direct:?}, {backend}"));
                });
                match ran {
                    Err(error) if common::is_refused(backend, &error) => {}
                    ran => ran.unwrap(),
                }
            }
        }
    }
}

#[test]
fn counting_allocator_counts() {
    // C10: (a check of this test itself) an allocation in a coroutine is counted
    coralio::run(|| {
        let before = allocations();
        spawn(|| drop(std::hint::black_box(Box::new(7)))).join().unwrap();
        assert!(allocations() > before);
    });
}

#[test]
fn successive_requests_do_not_allocate() {
    // C10: `read_at` and `write_at`, aligned and unaligned, short at the end of the file, and the
    // syncs do not allocate
    on_each(|file, what| {
        let mut buf = AlignedBuf::new(2 * BLOCK, BLOCK);
        let mut round = 0;
        steady(what, || {
            let at = round % BLOCKS * BLOCK as u64;
            round += 1;
            file.write_at(&buf[..BLOCK], at).unwrap();
            file.read_exact_at(&mut buf[..BLOCK], at).unwrap();
            file.read_exact_at(&mut buf[1..100], at + 7).unwrap();
            file.write_at(&buf[1..100], at + 7).unwrap();
            assert_eq!(file.read_at(&mut buf, (BLOCKS - 1) * BLOCK as u64).unwrap(), BLOCK);
        });
        file.sync_data().unwrap();
        let before = allocations();
        file.sync_data().unwrap();
        file.sync_all().unwrap();
        assert_eq!(allocations() - before, 0, "{what}: a sync");
    });
}

#[test]
fn coroutine_per_request_does_not_allocate() {
    // C10: spawning a coroutine, I/O on a buffer of its own stack, and joining do not allocate
    on_each(|file, what| {
        let mut round = 0;
        steady(what, || {
            let (file, at) = (Rc::clone(file), round % BLOCKS * BLOCK as u64);
            round += 1;
            let task = spawn(move || {
                let mut buf = [0u8; 512];
                file.read_exact_at(&mut buf, at).unwrap();
                buf[0]
            });
            assert_eq!(task.join().unwrap(), 1);
        });
    });
}

#[test]
fn concurrent_requests_do_not_allocate() {
    // C10: thirty-two coroutines in flight, under a plug, do not allocate
    const COROUTINES: u64 = 32;
    on_each(|file, what| {
        let mut tasks = Vec::with_capacity(COROUTINES as usize);
        steady(what, || {
            let plug = coralio::driver::plug().unwrap();
            for number in 0..COROUTINES {
                let file = Rc::clone(file);
                tasks.push(spawn(move || {
                    let mut buf = [0u8; 512];
                    file.read_exact_at(&mut buf, number * BLOCK as u64).unwrap();
                    file.write_at(&buf, number * BLOCK as u64).unwrap();
                }));
            }
            drop(plug);
            for task in tasks.drain(..) {
                task.join().unwrap();
            }
        });
    });
}

#[test]
fn queue_that_is_never_empty_does_not_grow() {
    // C10, E2: with many more coroutines than the queue is deep, requests are pending at all times;
    // new ones take the memory of submitted ones
    const DEPTH: u32 = 4;
    // Here each request completes within submit, so every run is the same.
    let temp = common::Temp::with("/dev/shm".as_ref(), vec![1; 512]);
    let ran = RuntimeBuilder::new().backend(BackendKind::Aio).queue_depth(DEPTH).run(|| {
        let file = temp.open(Direct::Never);
        let read = || file.read_exact_at(&mut [0u8; 512], 0).unwrap();
        let done = Cell::new(false);
        coralio::scope(|scope| {
            for _ in 1..64 {
                scope.spawn(|| {
                    while !done.get() {
                        read();
                    }
                });
            }
            // The queue is longest when the loop has held all of them back, which is seldom.
            (0..400).for_each(|_| read());
            steady("64 coroutines, four requests", read);
            done.set(true);
        });
    });
    if !ran.as_ref().is_err_and(|error| common::is_refused(BackendKind::Aio, error)) {
        ran.unwrap();
    }
}
