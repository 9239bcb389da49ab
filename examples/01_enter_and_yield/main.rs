//! Lesson 1. Enter and yield.
//!
//! A coroutine is a function with a stack of its own. *Enter* runs it immediately, on the caller's
//! thread. It may *yield* (`suspend`): it keeps its stack, and continues when it is next entered,
//! if ever.
//!
//! Puzzle: B adds 1, 2 and 3 to a sum, and yields before each number but the first. A enters B, and
//! looks at the sum when `enter` returns. What does A see?
//!
//! Hint: what can B do to make `enter` return?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use std::cell::Cell;
use std::rc::Rc;

use coralio::coroutine::{Coroutine, suspend};

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

/// Runs A, which creates B, enters it by `enter`, and expects the sum to be 6.
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

pub fn main() {
    // B has yielded, not ended. A continues after its call of `enter`; B is still in the middle of
    // its sum. (The last three rows: the context ends, and unwinds B so that its destructors run.)
    ask("The puzzle: A enters B", |b| b.enter());

    // The number of yields is B's implementation detail. Code that relies on it breaks when B
    // changes.
    ask("A fix that fails: A enters B twice", |b| {
        b.enter();
        b.enter();
    });

    // `enter` returning means only that B has given control back. Ask `has_ended`.
    ask("The fix: A enters B until it has ended", |b| {
        while !b.has_ended() {
            b.enter();
        }
    });
}
