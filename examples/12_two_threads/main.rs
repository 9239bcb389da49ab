//! Lesson 12. Two threads, and a count below zero.
//!
//! A context belongs to its home thread. Another thread may poll it too, without blocking: it
//! reaps, and leaves running the coroutines to the home thread. So the context has a lock, which
//! the loop holds during an iteration.
//!
//! In 2018 submit reaped without taking that lock. In the field, the engine's count of requests in
//! flight was seen at 4294967280. That is 2^32 - 16: both threads had counted sixteen completions.
//!
//! Puzzle: three completions are on the ring, and the home thread has just read the first one. Now
//! another thread polls, and takes the lock, as it must. What is `in_flight` in the end?
//!
//! Hint: which thread does the lock exclude?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use coralio::engine::guards::{AllGuards, Guards};

use lesson::{Disk, act, attach, backend, coroutine, meet_another_thread, poll_if_free, read, run_loop};

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
    three_reads::<Unlocked2018>("One thread: no lock needed", false);

    // The other thread takes all three completions off the ring. The home thread then counts the
    // one that it had read a second time: 0 - 1. (In the field there was no check, the reap had
    // read sixteen completions at once, and all sixteen were counted twice.) The lock helps only if
    // both threads take it. `C ends` here: the panic unwinds it. Taking the lock has no row.
    three_reads::<Unlocked2018>("The puzzle, and a fix that fails: only one of two threads takes the lock", true);

    // Every reap holds the lock from reading a completion to advancing the cursor. The other
    // thread's attempt to take it fails, and it does not poll.
    three_reads::<AllGuards>("The fix: both threads take the lock", true);
}
