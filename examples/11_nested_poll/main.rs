//! Lesson 11. Polls within polls.
//!
//! Whoever runs in the loop may call the loop: it *polls*, nested, until something has happened that it cannot do without. Storage
//! code does that where it cannot yield, in a destructor, say. What the outer round was about to do must not be lost meanwhile.
//!
//! Puzzle: A and B read. Both requests are done when the loop looks at the ring. It takes the two completions off, and enters A, who
//! polls until B has its block. When does that happen?
//!
//! Hint: where is B's completion?

#[path = "../lesson/mod.rs"]
mod lesson;

use std::cell::Cell;
use std::panic::resume_unwind;
use std::rc::Rc;

use coralio_aio::policy::{Current, Cursor, Policy};

use lesson::{Disk, act, attach, kernel, read, say, spawn};

/// As of 2014: a reap takes all that is on the ring, and then goes through it.
struct Batch2014;

// SAFETY: it reaps under the lock, and waits for what it has cancelled.
unsafe impl Policy for Batch2014 {
    const CURSOR: Cursor = Cursor::Private;
}

/// A reads, and polls until B has read, but three times at most.
fn poll_for_b<P: Policy>(title: &str, blocking: bool) {
    act(title, |context| {
        let disk: Disk<P> = attach(&kernel(), 8);
        let b_has_read = Rc::new(Cell::new(false));
        let a = spawn("A", {
            let (disk, b_has_read, context) = (disk.clone(), Rc::clone(&b_has_read), context.clone());
            move || {
                read(&disk, 0);
                for _ in 0..3 {
                    if !b_has_read.get() {
                        say("B has not read: I poll");
                        context.poll(blocking);
                    }
                }
                assert!(b_has_read.get(), "A has polled three times, and B has not read");
            }
        });
        let b = spawn("B", move || {
            read(&disk, 512);
            b_has_read.set(true);
        });
        while !(a.is_finished() && b.is_finished()) {
            context.poll(true);
        }
        a.join().unwrap_or_else(|payload| resume_unwind(payload));
        b.join().unwrap_or_else(|payload| resume_unwind(payload));
    });
}

fn main() {
    // In a batch on the loop's stack, beneath A. The nested poll sleeps for something that has happened; on a real disk, for
    // ever. (The scripted kernel knows that nothing will come.)
    poll_for_b::<Batch2014>("The puzzle: the loop takes both off the ring", true);

    // Not for want of rounds.
    poll_for_b::<Batch2014>("A fix that fails: A's polls do not block", false);

    // A reap takes one completion, moves the cursor, and only then lets anybody run. What it has not come to is still on the ring,
    // for whoever looks next. When it comes back it looks again itself: borrowed or remembered it has nothing.
    poll_for_b::<Current>("The fix: one at a time, and the cursor is shared", true);
}
