//! How much of its stack a coroutine has used.

mod common;

use std::hint::black_box;

use coralio_runtime::{AioContext, Coroutine, spawn, suspend, yield_now};

/// Writes to a frame of `N` bytes.
#[inline(never)]
fn use_stack<const N: usize>() {
    black_box([1u8; N]);
}

/// Frames of the runtime, of unoptimised code, and of black_box, which may copy its argument.
const REST: usize = 8 * 1024;

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "AddressSanitizer keeps locals off the stack")]
fn high_water_rises_and_stays() {
    // C11: the high-water mark is the maximum use so far, for a suspended or running coroutine
    AioContext::run(|_| {
        let co = Coroutine::builder()
            .measure_stack(true)
            .create(|| {
                suspend();
                use_stack::<{ 20 * 1024 }>();
                suspend();
                use_stack::<1024>();
                let me = Coroutine::current().unwrap();
                assert!(me.stack_high_water().unwrap() > 20 * 1024);
                suspend();
            })
            .unwrap();
        let fresh = co.stack_high_water().unwrap();
        co.enter();
        let small = co.stack_high_water().unwrap();
        assert!(fresh < 1024 && fresh < small && small < REST, "{fresh} {small}");
        co.enter();
        let large = co.stack_high_water().unwrap();
        assert!((20 * 1024 + 1..3 * 20 * 1024 + REST).contains(&large), "{large}");
        co.enter();
        assert_eq!(co.stack_high_water(), Some(large));
        co.enter();
        assert!(co.has_ended() && co.stack_high_water().is_none());
    });
}

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "AddressSanitizer keeps locals off the stack")]
fn high_water_of_one_that_has_finished() {
    // C11: a join handle returns the mark until the result is fetched
    AioContext::run(|ctx| {
        let task = Coroutine::builder().measure_stack(true).spawn(use_stack::<{ 30 * 1024 }>).unwrap();
        while !task.is_finished() {
            ctx.poll(true);
        }
        assert!(task.stack_high_water().unwrap() > 30 * 1024);
        task.join().unwrap();
        assert!(spawn(|| ()).stack_high_water().is_none());
    });
}

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "AddressSanitizer keeps locals off the stack")]
fn high_water_on_a_stack_that_was_used_before() {
    // C11: the mark does not include earlier users of the stack, and being measured is not
    // inherited with the stack
    AioContext::run(|_| {
        let measured = |f: fn()| Coroutine::builder().measure_stack(true).create(f).unwrap();
        let first = measured(|| {
            use_stack::<{ 50 * 1024 }>();
            suspend();
        });
        first.enter();
        let most = first.stack_high_water().unwrap();
        first.enter();
        let second = measured(suspend);
        second.enter();
        assert!(most > 50 * 1024 && second.stack_high_water().unwrap() < REST);
        second.enter();
        let plain = Coroutine::new(suspend);
        assert!(plain.stack_high_water().is_none());
    });
}

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "AddressSanitizer keeps locals off the stack")]
fn high_water_for_a_whole_context() {
    // C11: a context may measure all of its coroutines, except those that opt out
    let context = AioContext::builder().measure_stack(true).stack_size(64 * 1024);
    context
        .run(|ctx| {
            let task = spawn(|| {
                use_stack::<{ 10 * 1024 }>();
                yield_now();
            });
            let other = Coroutine::builder().measure_stack(false).create(suspend).unwrap();
            ctx.poll(false);
            assert!(task.stack_high_water().unwrap() > 10 * 1024);
            assert!(other.stack_high_water().is_none());
        })
        .unwrap();
}
