//! Lesson 12. Two threads, and a count below zero.
//!
//! A context belongs to a thread. But another one may poll it as well, without blocking: it reaps, and leaves the coroutines to
//! their home. For that the context has a lock, which the loop holds while it is in a round.
//!
//! Puzzle: the engine counts the requests in flight. Three are on the ring, and the thread at home has just looked at the first
//! one. Now the other thread polls; it takes the lock, as it must. What is the count in the end?
//!
//! Hint: does it keep anybody out?

#[path = "../lesson/mod.rs"]
mod lesson;

use coralio_aio::policy::{Current, Policy};

use lesson::{Disk, act, attach, coroutine, kernel, meet_another_thread, poll_if_free, read, run_loop};

/// As of 2018: when submit reaps, it does not take the lock.
struct Unlocked2018;

// SAFETY: the other thread acts only while this one waits for it.
unsafe impl Policy for Unlocked2018 {
    const REAP_LOCKS: bool = false;
}

/// Three read, and the third submit finds all three done. When the first has been looked at, and not yet been
/// counted, another thread polls, if the lock is to be had.
fn three_reads<P: Policy>(title: &str, other_thread: bool) {
    act(title, |context| {
        let kernel = kernel();
        (0..3).for_each(|number| kernel.complete_on_submit(number, 2));
        let disk: Disk<P> = attach(&kernel, 3);
        let readers = ["A", "B", "C"].map(|name| {
            let disk = disk.clone();
            coroutine(name, move || _ = read(&disk, 0))
        });
        if other_thread {
            meet_another_thread(&kernel, context, poll_if_free);
        }
        readers.iter().for_each(|reader| reader.enter());
        run_loop(context, &readers);
    });
}

fn main() {
    three_reads::<Unlocked2018>("One thread: no lock is needed", false);

    // The other thread takes all three off the ring. The thread at home counts the one that it has seen, once more.
    three_reads::<Unlocked2018>("The puzzle, and a fix that fails: one of the two takes a lock", true);

    // Whoever reaps holds it: from the look at a completion to the move of the cursor, nobody else is there.
    three_reads::<Current>("The fix: both do", true);
}
