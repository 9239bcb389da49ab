//! Lesson 3. The loop and its bottom halves.
//!
//! Nothing runs by itself. The *loop* is a function, `poll`, that somebody calls: one call is one *round*. A *bottom half* is a
//! callback for later: whoever schedules it has it run in a round of the loop, on top of nothing that is going on now.
//!
//! Puzzle: three times a letter is put into the box, and each time the postman is scheduled, a bottom half that takes one letter.
//! Then the loop runs a round. How many letters are left?
//!
//! Hint: to schedule is to set a flag.

#[path = "../lesson/mod.rs"]
mod lesson;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lesson::{act, say};

/// The box. A bottom half may be scheduled from any thread, so what it owns must be fit for any thread.
type Letters = Arc<AtomicU32>;

fn take_one(letters: &Letters) {
    let left = letters.fetch_sub(1, Ordering::Relaxed) - 1;
    say(format!("takes one, and leaves {left}"));
}

/// Three letters, for each of which the postman is scheduled, and so many rounds.
fn deliver(title: &str, rounds: usize, postman: fn(&Letters)) {
    act(title, |context| {
        let letters = Letters::default();
        let postman = context
            .bottom_half({
                let letters = Arc::clone(&letters);
                move || postman(&letters)
            })
            .unwrap();
        for letter in 1..=3 {
            letters.fetch_add(1, Ordering::Relaxed);
            say(format!("letter {letter}: the postman is scheduled"));
            postman.schedule();
        }
        for _ in 0..rounds {
            let progress = context.poll(false); // false: it does not wait for anything
            say(format!("was anything done? {progress}"));
        }
        let left = letters.load(Ordering::Relaxed);
        assert!(left == 0, "letters left: {left}");
    });
}

fn main() {
    // Scheduled three times before it ran, it runs once.
    deliver("The puzzle: one round", 1, take_one);

    // The flag is taken down before it runs, so that who schedules it meanwhile has it run again. The other rounds find nothing to do.
    deliver("A fix that fails: three rounds", 3, take_one);

    // That it runs says that something has happened since it ran last, and not how often. So it looks how much there is.
    deliver("The fix: a postman who takes all there is", 1, |letters| {
        while letters.load(Ordering::Relaxed) > 0 {
            take_one(letters);
        }
    });
}
