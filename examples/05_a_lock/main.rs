//! Lesson 5. A lock between coroutines.
//!
//! All coroutines of a context share a thread, and none is preempted: code between two yields is
//! atomic to the others. So why would they need a lock?
//!
//! Puzzle: A, B and C each read a number from disk, add 1, and write it back. The disk is slow, so
//! they yield between reading and writing. The number was 0: what is it in the end?
//!
//! Hint: there is no data race, and the compiler has no objection.

#[path = "../lesson/mod.rs"]
pub mod lesson;

use std::cell::Cell;
use std::rc::Rc;

use coralio::sync::CoMutex;
use coralio::yield_now;

use lesson::{act, coroutine, run_loop, say};

/// Adds 1 to a number on a slow disk.
fn add_one(number: &Cell<u32>) {
    let read = number.get();
    say(format!("reads {read}"));
    yield_now();
    number.set(read + 1);
    say(format!("writes {}", read + 1));
}

/// Runs `add` once in each of A, B and C.
fn three(title: &str, add: impl Fn(&Cell<u32>) + Clone + 'static) {
    act(title, |context| {
        let number = Rc::new(Cell::new(0));
        let all = ["A", "B", "C"].map(|name| {
            let (number, add) = (Rc::clone(&number), add.clone());
            coroutine(name, move || add(&number))
        });
        all.iter().for_each(|one| one.enter());
        run_loop(context, &all);
        assert!(number.get() == 3, "three coroutines have added 1, and the number is {}", number.get());
    });
}

pub fn main() {
    // Each yields (`yield_now`: until the next iteration) between reading and writing. So all three
    // read 0, and two of the additions are lost.
    three("The puzzle: no lock", add_one);

    // When A is done, B and C have both checked the flag already, and neither checks it again. A
    // condition checked before a yield may no longer hold after it.
    let taken = Rc::new(Cell::new(false));
    three("A fix that fails: yield once if the flag is set", move |number| {
        if taken.get() {
            say("the flag is set: yields");
            yield_now();
        }
        say("sets the flag");
        taken.set(true);
        add_one(number);
        taken.set(false);
    });

    // `while` instead of `if` would be correct, but would keep the loop busy. A CoMutex queues its
    // waiters and passes ownership on release: when A drops its guard it wakes B, and from that
    // moment B owns the lock, although it runs later. No other coroutine can take it in between.
    let lock = Rc::new(CoMutex::new(()));
    three("The fix: a CoMutex", move |number| {
        let guard = lock.lock();
        say("owns the lock");
        add_one(number);
        say("drops its guard");
        drop(guard);
    });
}
