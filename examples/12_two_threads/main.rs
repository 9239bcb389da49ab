//! Lesson 12. Two threads, and a count below zero.
//!
//! A context belongs to its home thread (in the pictures: `thread`). Another thread (`thread 1`)
//! may poll it too, without blocking: it reaps, and leaves running the coroutines to the home
//! thread. So the context has a lock, which the loop holds during an iteration.
//!
//! In 2018 submit reaped without taking that lock. In the field, the engine's count of requests in
//! flight was seen at 4294967280, which is 2^32 - 16, and requests completed twice.
//!
//! Puzzle: three completions are on the ring, and the home thread has just read the first one. Now
//! another thread polls, and takes the lock, as it must. What is `in_flight` in the end?
//!
//! Hint: from what does a lock protect a thread that does not take it?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use coralio::engine::guards::{AllGuards, Guards};

use lesson::{Disk, act, attach, backend, coroutine, meet_another_thread, poll_if_free, read, run_loop, say};

/// As of 2018: submit reaps without the lock.
struct Unlocked2018;

// SAFETY: the other thread acts only while this one waits for it.
unsafe impl Guards for Unlocked2018 {
    const REAP_LOCKS: bool = false;
}

/// Runs three readers; the third submit finds all three requests done. When it has read the first
/// completion and not counted it yet, another thread polls if it gets the lock.
fn three_reads<G: Guards>(title: &str, other_thread: bool) {
    act(title, |context| {
        let backend = backend();
        (0..3).for_each(|number| backend.complete_on_submit(number, 2));
        let disk: Disk<G> = attach(&backend, 3);
        let readers = ["A", "B", "C"].map(|name| {
            let disk = disk.clone();
            coroutine(name, move || _ = read(&disk, 0))
        });
        if other_thread {
            meet_another_thread(&backend, context, poll_if_free);
        }
        readers.iter().for_each(|reader| reader.enter());
        run_loop(context, &readers);
    });
}

pub fn main() {
    // Only the home thread reaps, and counts each of the three completions once.
    three_reads::<Unlocked2018>("One thread: no lock needed", false);

    // The home thread reaps without the lock. The other one takes the lock, and all three
    // completions off the ring. The home thread then counts the one that it had read a second time:
    // 0 - 1. The lock helps only if both threads take it.
    three_reads::<Unlocked2018>("The puzzle, and a fix that fails: only one of two threads takes the lock", true);

    // Every reap holds the lock from reading a completion to advancing the cursor. The other
    // thread's attempt to take it fails, and it does not poll.
    three_reads::<AllGuards>("The fix: both threads take the lock", true);

    sixteen_at_a_time();
}

/// Does the arithmetic of 2018, without an engine.
fn sixteen_at_a_time() {
    // Why sixteen, and not one? A reap read all the completions that were on the ring, here
    // sixteen, before it counted them; and it did not check the subtraction. Today each completion
    // is counted by itself, and a count below zero panics.
    act("How in_flight came to 4294967280", |_context| {
        let in_flight = 16_u32;
        let (home, other) = (16, 16);
        say("both threads have read the same sixteen completions");
        let in_flight = in_flight.wrapping_sub(other);
        say(format!("the other thread subtracts them: {in_flight}"));
        let in_flight = in_flight.wrapping_sub(home);
        say(format!("the home thread subtracts them: {in_flight}"));
        assert!(in_flight == 0, "in_flight is {in_flight}, with nothing in flight");
    });
}
