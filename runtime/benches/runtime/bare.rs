//! The peer: corosensei alone, with a stack pool and boxed closures as a typical user would add.

use std::hint::black_box;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, Yielder};

use crate::measure::time;

type Bare = Coroutine<(), (), (), DefaultStack>;

#[inline(never)]
fn resume(co: &mut Bare) {
    co.resume(());
}

#[inline(never)]
fn pause(yielder: &Yielder<(), ()>) {
    yielder.suspend(());
}

/// Resumes a coroutine, which suspends.
pub(crate) fn resume_and_suspend(times: u64) -> f64 {
    let mut left = times + 1;
    let mut co = Bare::new(move |yielder, ()| {
        while left > 0 {
            left -= 1;
            pause(yielder);
        }
    });
    resume(&mut co);
    let ns = time(times, || (0..times).for_each(|_| resume(&mut co)));
    resume(&mut co);
    ns
}

/// Creates a coroutine from a boxed closure on a pooled stack and resumes it; it ends.
pub(crate) fn create_resume_end(times: u64) -> f64 {
    let mut pool = vec![DefaultStack::default()];
    let mut one = |caught| {
        let f: Box<dyn FnOnce()> = black_box(Box::new(move || _ = black_box(caught)));
        let stack = pool.pop().expect("each puts its stack back");
        let mut co = Bare::with_stack(stack, move |_, ()| f());
        resume(&mut co);
        pool.push(co.into_stack());
    };
    one(0);
    time(times, || (0..times).for_each(one))
}
