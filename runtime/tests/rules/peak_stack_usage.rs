//! How much of its stack a coroutine has used.

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
fn peak_stack_usage_never_decreases() {
    // C11: the high-water mark is the maximum use so far, for a suspended or running coroutine
    AioContext::run(|_| {
        let co = Coroutine::builder()
            .track_stack_usage(true)
            .create(|| {
                suspend();
                use_stack::<{ 20 * 1024 }>();
                suspend();
                use_stack::<1024>();
                let me = Coroutine::current().unwrap();
                assert!(me.peak_stack_usage().unwrap() > 20 * 1024);
                suspend();
            })
            .unwrap();
        let fresh = co.peak_stack_usage().unwrap();
        co.enter();
        let small = co.peak_stack_usage().unwrap();
        assert!(fresh < 1024 && fresh < small && small < REST, "{fresh} {small}");
        co.enter();
        let large = co.peak_stack_usage().unwrap();
        assert!((20 * 1024 + 1..3 * 20 * 1024 + REST).contains(&large), "{large}");
        co.enter();
        assert_eq!(co.peak_stack_usage(), Some(large));
        co.enter();
        assert!(co.has_ended() && co.peak_stack_usage().is_none());
    });
}

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "AddressSanitizer keeps locals off the stack")]
fn peak_stack_usage_of_a_finished_coroutine_is_kept() {
    // C11: a join handle returns the mark until the result is fetched
    AioContext::run(|ctx| {
        let task = Coroutine::builder().track_stack_usage(true).spawn(use_stack::<{ 30 * 1024 }>).unwrap();
        while !task.is_finished() {
            ctx.poll(true);
        }
        assert!(task.peak_stack_usage().unwrap() > 30 * 1024);
        task.join().unwrap();
        assert!(spawn(|| ()).peak_stack_usage().is_none());
    });
}

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "AddressSanitizer keeps locals off the stack")]
fn peak_stack_usage_on_a_reused_stack_starts_anew() {
    // C11: the mark does not include earlier users of the stack, and being measured is not
    // inherited with the stack
    AioContext::run(|_| {
        let measured = |f: fn()| Coroutine::builder().track_stack_usage(true).create(f).unwrap();
        let first = measured(|| {
            use_stack::<{ 50 * 1024 }>();
            suspend();
        });
        first.enter();
        let most = first.peak_stack_usage().unwrap();
        first.enter();
        let second = measured(suspend);
        second.enter();
        assert!(most > 50 * 1024 && second.peak_stack_usage().unwrap() < REST);
        second.enter();
        let plain = Coroutine::new(suspend);
        assert!(plain.peak_stack_usage().is_none());
    });
}

#[test]
#[cfg_attr(feature = "sanitizer", ignore = "AddressSanitizer keeps locals off the stack")]
fn peak_stack_usage_is_tracked_for_a_whole_context() {
    // C11: a context may measure all of its coroutines, except those that opt out
    let context = AioContext::builder().track_stack_usage(true).stack_size(64 * 1024);
    context
        .run(|ctx| {
            let task = spawn(|| {
                use_stack::<{ 10 * 1024 }>();
                yield_now();
            });
            let other = Coroutine::builder().track_stack_usage(false).create(suspend).unwrap();
            ctx.poll(false);
            assert!(task.peak_stack_usage().unwrap() > 10 * 1024);
            assert!(other.peak_stack_usage().is_none());
        })
        .unwrap();
}
