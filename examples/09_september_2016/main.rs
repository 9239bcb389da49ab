//! Lesson 9. The insufficient fix.
//!
//! Since July 2016 a completion enters the waiting coroutine unless that is the current one, and
//! lesson 8 ends well. In September 2016 the symptom of July was seen again, in a program with a
//! lock between its coroutines.
//!
//! Puzzle: find three coroutines and a lock for which July's guard fails.
//!
//! Hint: the current coroutine is at the top of the stack. Which coroutines are below it?

#[path = "../lesson/mod.rs"]
pub mod lesson;

mod schedule;

use coralio::engine::guards::{Guards, WakeGuard};

use schedule::{a_alone, three_and_a_lock};

/// July's guard, which failed in September 2016: the current coroutine is not entered.
struct September2016;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for September2016 {
    const WAKE_GUARD: WakeGuard = WakeGuard::EnterUnlessCurrent;
}

pub fn main() {
    lesson::act("July's guard, A alone: works", a_alone::<September2016>);

    // A submits, and reaps X's request. X is entered on top of A, releases the lock, which passes
    // to Y, and ends. Y was woken, so it runs in X's place (lesson 4; no line of code says "enters
    // Y"), still on top of A, and submits. Y reaps A's request. The current coroutine is Y, so the
    // guard lets it enter A; but A is entered. `schedule.rs` defines the three coroutines.
    //
    // A and X alone fail too, without a lock, if X reads twice. The lock is how it happened in the
    // field.
    lesson::act("The puzzle: a fix that fails with A, X and Y", three_and_a_lock::<September2016>);

    lesson::print(
        "\nAfter the violation the stacks unwind: first Y, whose read must complete before its buffer is freed, then A.\n\
         The right condition is \"entered\", not \"current\", as in lesson 2. The fix is in lesson 10.\n",
    );
}
