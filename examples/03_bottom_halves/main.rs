//! Lesson 3. The loop and its bottom halves.
//!
//! Nothing runs by itself. The *loop* is a function, `poll`, that the program calls; each call runs
//! at least one *iteration*. A *bottom half* is a callback for later. It does not run within the call
//! that schedules it, but when the loop comes to it.
//!
//! Puzzle: three times a letter is put into a box, and the postman is scheduled: a bottom half that
//! takes one letter. Then the loop runs one iteration. How many letters are left?
//!
//! Hint: what does the loop remember of three calls of `schedule`?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use coralio::context::BottomHalf;

use lesson::{act, say};

/// The box. A bottom half may be scheduled from any thread, so its closure must be `Send`.
type Letters = Arc<AtomicU32>;

fn take_one(letters: &Letters) {
    let left = letters.fetch_sub(1, Ordering::Relaxed) - 1;
    say(format!("takes one letter, leaves {left}"));
}

/// Schedules the postman for each of three letters, then runs `rounds` iterations of the loop. The
/// postman is also passed itself.
fn deliver(title: &str, rounds: usize, postman: fn(&Letters, &BottomHalf)) {
    act(title, |context| {
        let letters = Letters::default();
        let postman = context
            .new_bottom_half_with({
                let letters = Arc::clone(&letters);
                move |itself| postman(&letters, itself)
            })
            .unwrap();
        for letter in 1..=3 {
            letters.fetch_add(1, Ordering::Relaxed);
            say(format!("letter {letter}: schedules the postman"));
            postman.schedule();
        }
        for _ in 0..rounds {
            let progress = context.poll(false); // false: never sleeps
            say(format!("made progress: {progress}"));
        }
        let left = letters.load(Ordering::Relaxed);
        assert!(left == 0, "letters left: {left}");
    });
}

pub fn main() {
    // Scheduled three times before it ran, the postman runs once: scheduling only sets a flag.
    deliver("The puzzle: one iteration", 1, |letters, _| take_one(letters));

    // The flag is cleared, and nothing sets it again: the other iterations find nothing to do.
    deliver("A fix that fails: three iterations", 3, |letters, _| take_one(letters));

    // The flag is cleared before the callback runs, not after it: so a schedule during the callback
    // is not lost, and makes it run again, in the next iteration.
    deliver("A fix that takes three iterations: the postman schedules itself", 3, |letters, itself| {
        take_one(letters);
        if letters.load(Ordering::Relaxed) > 0 {
            say("schedules itself");
            itself.schedule();
        }
    });

    // A run means that at least one event has occurred since the last run, not how many. So the
    // callback checks how much there is to do.
    deliver("The fix: a postman that empties the box", 1, |letters, _| {
        while letters.load(Ordering::Relaxed) > 0 {
            take_one(letters);
        }
    });
}
