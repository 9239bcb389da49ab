//! Lesson 9. The insufficient fix.
//!
//! Since July 2016 a completion enters the waiting coroutine unless that is the current one, and
//! lesson 8 ends well. In September 2016 the symptom of July was seen again, in a program with a
//! lock between its coroutines.
//!
//! Puzzle: find three coroutines and a lock for which July's guard fails.
//!
//! Hint: draw the stack at the moment of a reap. Of which coroutines may the completions be?

#[path = "../lesson/mod.rs"]
pub mod lesson;

mod schedule;

use coralio::context::AioContext;
use coralio::engine::guards::{Guards, WakeGuard};

use lesson::{Disk, act, attach, backend, coroutine, read, run_loop};
use schedule::{a_alone, three_and_a_lock};

/// July's guard, which failed in September 2016: the current coroutine is not entered.
struct September2016;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for September2016 {
    const WAKE_GUARD: WakeGuard = WakeGuard::EnterUnlessCurrent;
}

/// Runs X, which reads twice, and A, which reads once. X's first request completes when A submits,
/// and A's when X submits again.
fn two_without_a_lock(context: &AioContext) {
    let backend = backend();
    backend.complete_on_submit(0, 1);
    backend.complete_on_submit(1, 2);
    let disk: Disk<September2016> = attach(&backend, 8);
    let reader = |name, times| {
        let disk = disk.clone();
        coroutine(name, move || (0..times).for_each(|_| _ = read(&disk, 0)))
    };
    let (a, x) = (reader("A", 1), reader("X", 2));
    x.enter();
    a.enter();
    run_loop(context, &[a, x]);
}

pub fn main() {
    // The case that July's fix was made for: A reaps its own completion, and is current.
    act("July's guard, A alone: works", a_alone::<September2016>);

    // X reads with the lock, Y waits for the lock, and A reads without it (`schedule.rs` has their
    // code). A submits, and reaps X's request. X is entered on top of A, drops its guard, so the
    // lock passes to Y, and ends. Y was woken, so it runs in X's place (lesson 4; no line of code
    // says "enters Y"), still on top of A, and submits. Y reaps A's request. The current coroutine
    // is Y, so the guard lets it enter A; but A is entered.
    act("The puzzle: a fix that fails with A, X and Y", three_and_a_lock::<September2016>);
    lesson::print(
        "\nAfter the violation the stacks unwind: first Y, whose read must complete before its buffer is freed, then A.\n",
    );

    // Is the lock needed? No: it is how it happened in the field. Any coroutine that runs on top of
    // A and submits can reap A's request.
    act("The same with two coroutines and no lock", two_without_a_lock);
    lesson::print("\nThe right condition is \"entered\", not \"current\", as in lesson 2. The fix is in lesson 10.\n");
}
