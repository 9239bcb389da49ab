//! Closures and results of any size and alignment, moved into and out of coroutines, and dropped
//! once.

use crate::common::panic_of;
use coralio_runtime::{AioContext, Coroutine, spawn, yield_now};

#[test]
fn results_and_closures_keep_their_alignment() {
    // C1: captures and results of a coroutine are aligned as their types require
    #[repr(align(64))]
    #[derive(Clone, Copy)]
    struct Line([u8; 64]);
    #[repr(align(512))]
    #[derive(Clone, Copy)]
    struct Sector([u8; 512]);
    fn aligned<T>(value: &T) -> bool {
        std::ptr::from_ref(value).addr() % align_of::<T>() == 0
    }
    AioContext::run(|_| {
        let (line, sector) = (Line([3; 64]), Sector([4; 512]));
        let tasks: Vec<_> = (0..50)
            .map(|_| {
                spawn(move || {
                    let line = line;
                    assert!(aligned(&line));
                    yield_now();
                    assert!(aligned(&sector));
                    (line, sector)
                })
            })
            .collect();
        for task in tasks {
            let (line, sector) = task.join().unwrap();
            assert!(line.0 == [3; 64] && sector.0 == [4; 512]);
        }
        let line = spawn(move || line).join().unwrap();
        assert!(aligned(&line) && line.0 == [3; 64]);
    });
}

#[test]
fn closures_of_every_size_run() {
    // C1: a closure may capture any amount of data; a large closure does not use up the coroutine's
    // stack
    fn check<const N: usize>() {
        let caught = [N as u8; N];
        let task = spawn(move || {
            let caught = std::hint::black_box(caught);
            yield_now();
            caught.iter().all(|&byte| byte == N as u8)
        });
        assert!(task.join().unwrap(), "{N} bytes");
    }
    AioContext::run(|_| {
        check::<0>();
        check::<500>();
        check::<512>();
        check::<513>();
        check::<1000>();
        check::<1008>();
        check::<1016>();
        check::<1024>();
        check::<1025>();
        check::<20_000>();
    });
}

#[test]
fn large_result_is_returned_whole_or_rejected() {
    // C8: a result too large for the stack is rejected with the remedy, before anything runs
    AioContext::run(|_| {
        let task = spawn(|| [7u8; 4096]);
        assert!(task.join().unwrap().iter().all(|&byte| byte == 7));
        const LARGE: usize = 100 * 1024;
        let refused = panic_of(|| spawn(|| [0u8; LARGE]));
        assert!(refused.starts_with("cannot spawn a coroutine: a coroutine's result of 1024"), "{refused}");
        assert!(refused.contains("return it in a Box, or set a larger stack_size"), "{refused}");
        let boxed = spawn(|| Box::new([9u8; LARGE]));
        assert_eq!(boxed.join().unwrap()[LARGE - 1], 9);
        let roomy = Coroutine::builder().stack_size(4 << 20).spawn(|| [8u8; LARGE]).unwrap();
        assert_eq!(roomy.join().unwrap()[LARGE - 1], 8);
    });
}

#[test]
fn largest_accepted_result_fits() {
    // C11: any result size that spawn accepts can also be returned without overflowing the stack
    fn check<const N: usize>(accepted: &mut usize) {
        let Ok(task) = Coroutine::builder().stack_size(64 * 1024).spawn(|| std::hint::black_box([5u8; N])) else {
            return;
        };
        assert!(task.join().unwrap().iter().all(|&byte| byte == 5));
        *accepted += 1;
    }
    let accepted = AioContext::run(|_| {
        let mut accepted = 0;
        check::<1000>(&mut accepted);
        check::<4000>(&mut accepted);
        check::<8000>(&mut accepted);
        check::<12_000>(&mut accepted);
        check::<16_000>(&mut accepted);
        check::<20_000>(&mut accepted);
        check::<24_000>(&mut accepted);
        check::<28_000>(&mut accepted);
        accepted
    });
    assert!(accepted >= 2, "a result of a page fits on 64 KiB");
}
