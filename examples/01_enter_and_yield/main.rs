//! Lesson 1. Enter and yield.
//!
//! A coroutine is a function with a stack of its own. *Enter* runs it at once, on the thread of whoever enters it. It may *yield*
//! (`suspend`): it stays where it is, and is entered again later, or never.
//!
//! Puzzle: B adds 1, 2 and 3. It is a polite coroutine, and yields before each number but the first. A enters B, and when
//! `enter` has returned it looks at the sum. What does it see?
//!
//! Hint: there are two ways in which `enter` can return.

#[path = "../lesson/mod.rs"]
mod lesson;

use std::cell::Cell;
use std::rc::Rc;

use coralio_aio::{Coroutine, suspend};

use lesson::{act, coroutine, say};

/// Adds 1, 2 and 3.
fn add(sum: &Cell<u32>) {
    for number in 1..=3 {
        if number > 1 {
            suspend();
        }
        sum.set(sum.get() + number);
        say(format!("{} so far", sum.get()));
    }
}

/// A makes B, enters it in its own way, and wants to find 6.
fn ask(title: &str, enter: fn(Coroutine)) {
    act(title, |_context| {
        let seen = Rc::new(Cell::new(0));
        let a = coroutine("A", {
            let seen = Rc::clone(&seen);
            move || {
                let sum = Rc::new(Cell::new(0));
                let adding = Rc::clone(&sum);
                let b = coroutine("B", move || add(&adding));
                enter(b);
                say(format!("I see {}", sum.get()));
                seen.set(sum.get());
            }
        });
        a.enter();
        assert!(seen.get() == 6, "A wants 6, and sees {}", seen.get());
    });
}

fn main() {
    // It has yielded, not ended: A goes on where B left off.
    ask("The puzzle: A enters B", |b| b.enter());

    // How often B yields is B's affair. Whoever counts on it is wrong on the day that B yields once more.
    ask("A fix that fails: A enters B twice", |b| {
        b.enter();
        b.enter();
    });

    // Enter says that B has given control back, and nothing else. Whether it has ended is asked for.
    ask("The fix: A enters B until it has ended", |b| {
        while !b.has_ended() {
            b.enter();
        }
    });
}
