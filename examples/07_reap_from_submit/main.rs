//! Lesson 7. Reaping from submit.
//!
//! Some requests complete before the system call that submits them returns: reads from the page
//! cache, for instance. So after each submit the engine checks the ring, on the submitter's stack.
//!
//! Puzzle: A waits for a letter from B, which is ready to write it. Until there is one, A reads
//! from the disk, so that others can run meanwhile. With a slow disk that works. And with a fast
//! one?
//!
//! Hint: what makes a call yield?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use std::cell::Cell;
use std::rc::Rc;

use coralio::coroutine::Coroutine;
use coralio::yield_now;

use lesson::{Disk, act, attach, backend, coroutine, read, run_loop, say};

/// Runs A, which reads until there is a letter, at most three times, and then B, in one iteration
/// of the loop. With a queue depth of 1 each request is a full batch, and submitted immediately.
fn wait_for_letter(title: &str, disk_is_fast: bool, before_each_read: fn(Coroutine)) {
    act(title, |context| {
        let backend = backend();
        if disk_is_fast {
            (0..3).for_each(|number| backend.complete_on_submit(number, number));
        }
        let disk: Disk = attach(&backend, 1);
        let letter = Rc::new(Cell::new(false));
        let b = coroutine("B", {
            let letter = Rc::clone(&letter);
            move || {
                letter.set(true);
                say("writes the letter");
            }
        });
        let reads = Rc::new(Cell::new(0));
        let a = coroutine("A", {
            let reads = Rc::clone(&reads);
            move || {
                while !letter.get() && reads.get() < 3 {
                    before_each_read(b);
                    read(&disk, 0);
                    reads.set(reads.get() + 1);
                }
            }
        });
        a.schedule().expect("once");
        b.schedule().expect("once");
        run_loop(context, &[a, b]);
        assert!(reads.get() < 3, "B did not run until A gave up, after three reads");
    });
}

pub fn main() {
    // The request is in flight, so A waits for it, and B runs meanwhile.
    wait_for_letter("With a slow disk", false, |_b| {});

    // Each read is done when A first checks for it, so A does not yield, and B waits until A gives
    // up. The engine limits this: after 16 immediate submits in an iteration, the next read waits
    // for the iteration's end. (Outside an iteration there is no limit.)
    wait_for_letter("The puzzle: with a fast disk", true, |_b| {});

    // B was ready before, so a wake changes nothing. It still needs a yield of A to run.
    wait_for_letter("A fix that fails: A wakes B first", true, |b| {
        say("wakes B, which is ready already");
        b.wake();
    });

    // A call that may yield need not. To let others run, call `yield_now`. A continues in the next
    // iteration; its read does not yield there either.
    wait_for_letter("The fix: A calls yield_now", true, |_b| yield_now());
}
