//! Lesson 4. Three ways to wake.
//!
//! Entering a coroutine runs it on top of the caller. *Waking* makes it ready and leaves the place
//! to the runtime:
//!
//! - no coroutine is running: it runs immediately;
//! - a coroutine is running: it runs when that one yields or ends. If A is running, the runtime
//!   does this inside the call `a.enter()`, before that call returns;
//! - by `schedule`, or from another thread: it runs in the loop's next iteration.
//!
//! A wake is not counted. A coroutine that is ready already, is entered or has ended is left alone.
//!
//! Puzzle: B, when woken, puts a letter into a box. A wakes B, and looks into the box. What is in
//! it?
//!
//! Hint: which of the three cases is it?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use std::cell::Cell;
use std::rc::Rc;

use coralio::coroutine::{Coroutine, suspend};
use coralio::yield_now;

use lesson::{act, coroutine, run_loop, say};

/// Returns B, suspended, and its box.
fn writer() -> (Coroutine, Rc<Cell<u32>>) {
    let letters = Rc::new(Cell::new(0));
    let b = coroutine("B", {
        let letters = Rc::clone(&letters);
        move || {
            suspend();
            letters.set(1);
            say("puts a letter into the box");
        }
    });
    b.enter();
    (b, letters)
}

/// Runs A, which makes B write by `how`, and then looks into the box.
fn a_makes_b_write(title: &str, how: fn(Coroutine, &Cell<u32>)) {
    act(title, |context| {
        let (b, letters) = writer();
        let seen = Rc::new(Cell::new(0));
        let a = coroutine("A", {
            let seen = Rc::clone(&seen);
            move || {
                how(b, &letters);
                seen.set(letters.get());
                say(format!("letters in the box: {}", seen.get()));
            }
        });
        a.enter();
        run_loop(context, &[a, b]);
        assert!(seen.get() == 1, "A found {} letters", seen.get());
    });
}

pub fn main() {
    // The caller is no coroutine, so `wake` is like `enter`: B has run when it returns.
    act("No coroutine is running: B runs immediately", |_context| {
        let (b, letters) = writer();
        b.wake();
        say(format!("letters in the box: {}", letters.get()));
    });

    // B runs after A has ended, in A's place: no line of code says "enters B", but it happens
    // before `a.enter()` returns. Until then A has the thread to itself, which keeps coroutine code
    // simple.
    a_makes_b_write("The puzzle: A wakes B", |b, _| b.wake());

    // Later still: in the loop's next iteration, after `a.enter()` has returned.
    a_makes_b_write("A fix that fails: A schedules B", |b, _| b.schedule().expect("once"));

    // To let others run, yield; in a loop that checks the condition, since (as in lesson 1) the
    // number of yields that B needs is B's implementation detail. `yield_now` schedules its caller,
    // and yields: A "waits for its turn", which comes in the loop's next iteration.
    a_makes_b_write("The fix: A wakes B, and yields until B has written", |b, letters| {
        b.wake();
        while letters.get() == 0 {
            yield_now();
        }
    });
}
