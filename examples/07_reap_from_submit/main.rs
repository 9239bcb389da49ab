//! Lesson 7. Reaping from submit.
//!
//! Some requests are done before the system call that submits them returns: what is in the page cache, for instance. So
//! after each submit the engine looks at the ring, on the stack of whoever submitted.
//!
//! Puzzle: A waits for a letter from B, who is ready to write it. While there is none, A reads the disk, in order to let others
//! run meanwhile. That goes well with a slow disk. How does it go with a fast one?
//!
//! Hint: what would A yield for?

#[path = "../lesson/mod.rs"]
mod lesson;

use std::cell::Cell;
use std::rc::Rc;

use coralio_aio::{Coroutine, yield_now};

use lesson::{Disk, act, attach, coroutine, kernel, read, run_loop, say};

/// A reads, at most three times, until there is a letter.
fn wait_for_letter(title: &str, disk_is_fast: bool, before_each_read: fn(Coroutine)) {
    act(title, |context| {
        let kernel = kernel();
        if disk_is_fast {
            (0..3).for_each(|number| kernel.complete_on_submit(number, number));
        }
        let disk: Disk = attach(&kernel, 8);
        let letter = Rc::new(Cell::new(false));
        let b = coroutine("B", {
            let letter = Rc::clone(&letter);
            move || {
                letter.set(true);
                say("a letter");
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
        b.schedule().expect("once");
        a.enter();
        run_loop(context, &[a, b]);
        assert!(reads.get() < 3, "A has read three times, and B never came to run");
    });
}

fn main() {
    wait_for_letter("With a slow disk", false, |_b| {});

    // Each result is there when A looks for it first. It never yields, and B waits until A gives up.
    wait_for_letter("The puzzle: with a fast disk", true, |_b| {});

    // Ready is what B was before. To be ready is not to run.
    wait_for_letter("A fix that fails: A makes sure that B is ready", true, |b| b.wake());

    // A call that may yield is not one that does. Whoever wants to give way says so.
    wait_for_letter("The fix: A gives way", true, |_b| yield_now());
}
