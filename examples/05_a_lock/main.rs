//! Lesson 5. A lock between coroutines.
//!
//! All coroutines of a context share a thread, and none is interrupted: what lies between two yields happens at once. So why
//! should they need a lock?
//!
//! Puzzle: A, B and C each read a number off the disk, add 1, and write it back. The disk is slow: they yield between the
//! reading and the writing. What is on the disk in the end, if it was 0?
//!
//! Hint: there is no data race; the compiler has nothing against it.

#[path = "../lesson/mod.rs"]
mod lesson;

use std::cell::Cell;
use std::rc::Rc;

use coralio_aio::{CoMutex, yield_now};

use lesson::{act, coroutine, run_loop, say};

/// Adds 1 as one does on a slow disk.
fn add_one(number: &Cell<u32>) {
    let read = number.get();
    say(format!("reads {read}"));
    yield_now();
    number.set(read + 1);
    say(format!("writes {}", read + 1));
}

/// A, B and C run `add`, each once.
fn three(title: &str, add: impl Fn(&Cell<u32>) + Clone + 'static) {
    act(title, |context| {
        let number = Rc::new(Cell::new(0));
        let all = ["A", "B", "C"].map(|name| {
            let (number, add) = (Rc::clone(&number), add.clone());
            coroutine(name, move || add(&number))
        });
        all.iter().for_each(|one| one.enter());
        run_loop(context, &all);
        assert!(number.get() == 3, "three have added 1, and the number is {}", number.get());
    });
}

fn main() {
    three("The puzzle: no lock", add_one);

    // When A is done, B and C have both looked already. What was true before a yield may be false after it.
    let taken = Rc::new(Cell::new(false));
    three("A fix that fails: who finds the flag up gives way first", move |number| {
        if taken.get() {
            say("the flag is up: I give way");
            yield_now();
        }
        say("I put the flag up");
        taken.set(true);
        add_one(number);
        taken.set(false);
    });

    // `while` instead of `if` would do, and would keep the loop busy. In a CoMutex's line nobody runs before it is his turn:
    // the lock is his when he is woken.
    let lock = Rc::new(CoMutex::new(()));
    three("The fix: a CoMutex", move |number| {
        let _guard = lock.lock();
        add_one(number);
    });
}
