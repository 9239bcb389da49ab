//! Lesson 9. The fix that did not suffice.
//!
//! Since July a completion enters the coroutine that waits, unless that is the one that runs: lesson 8 ends well with it. In
//! September somebody's program failed again.
//!
//! Puzzle: find three coroutines and a lock for which it fails.
//!
//! Hint: the one that runs is at the top of the stack. Who is beneath it?

#[path = "../lesson/mod.rs"]
mod lesson;

mod schedule;

use coralio_aio::policy::{OnCompletion, Policy};

use schedule::{a_alone, three_and_a_lock};

/// What failed in September 2016, July's guard: not the coroutine that runs.
struct September2016;

// SAFETY: it reaps under the lock, and waits for what it has cancelled.
unsafe impl Policy for September2016 {
    const ON_COMPLETION: OnCompletion = OnCompletion::EnterUnlessCurrent;
}

fn main() {
    lesson::act("July's guard, A alone: it does what it is for", a_alone::<September2016>);

    // A submits, and reaps X's request. X goes on on top of A; it gives the lock up and ends. Y, the next in line, goes on in
    // X's place, still on top of A, and submits. Y reaps A's request. A is not the one that runs; but it is on the stack.
    // `schedule.rs` has the three.
    lesson::act("The puzzle: a fix that fails, for A, X and Y", three_and_a_lock::<September2016>);

    lesson::print(
        "\nBelow the violation everything unwinds: first Y, whose read must be over before its buffer goes, then A.\n\
         Who is entered is the right question, as in lesson 2. The fix is in lesson 10.\n",
    );
}
