//! Reuse of stacks. In its own program, since it counts the mappings of the whole process.

mod common;

use std::fs;

use common::scaled;
use coralio_runtime::{AioContext, Coroutine, spawn, yield_now};

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

#[test]
fn million_successive_coroutines_reuse_memory() {
    // C10: a million coroutines in sequence (with --release) use the same few stacks: no mapping is
    // added, whether joined, detached or panicked
    AioContext::run(|ctx| {
        let one = |n: usize| {
            let task = spawn(move || {
                if n % 8 == 0 {
                    yield_now();
                }
                n
            });
            if n % 3 == 0 {
                drop(task);
                ctx.poll(false);
            } else {
                assert_eq!(task.join().unwrap(), n);
            }
        };
        (0..1000).for_each(one);
        mappings(); // AddressSanitizer maps memory for the first buffers of each size
        let before = mappings();
        let count = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };
        (0..scaled(count)).for_each(one);
        for _ in 0..scaled(1000) {
            let co = Coroutine::new(|| std::panic::resume_unwind(Box::new(())));
            common::panic_of(|| co.enter());
        }
        assert!(mappings() <= before, "{} mappings, {before} before", mappings());
    });
}
