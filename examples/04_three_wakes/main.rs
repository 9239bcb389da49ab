//! Lesson 4. Waking, the three ways.
//!
//! To enter a coroutine is to run it on top of oneself. To *wake* it is to say that it should go on, and leave the place to the
//! runtime:
//!
//! - nobody's coroutine is running: it goes on at once;
//! - a coroutine is running: it goes on when that one yields or ends;
//! - by `schedule`, or from another thread: it goes on in the loop's next round.
//!
//! Puzzle: B, when woken, puts a letter into a box. A wakes B, and looks into the box. What is in it?
//!
//! Hint: which of the three is it?

#[path = "../lesson/mod.rs"]
mod lesson;

use std::cell::Cell;
use std::rc::Rc;

use coralio_aio::{Coroutine, suspend, yield_now};

use lesson::{act, coroutine, run_loop, say};

/// B, suspended, and its box.
fn writer() -> (Coroutine, Rc<Cell<u32>>) {
    let letters = Rc::new(Cell::new(0));
    let b = coroutine("B", {
        let letters = Rc::clone(&letters);
        move || {
            suspend();
            letters.set(1);
            say("a letter");
        }
    });
    b.enter();
    (b, letters)
}

/// A does something that is to make B write, and looks.
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
        assert!(seen.get() == 1, "A finds {} letters", seen.get());
    });
}

fn main() {
    act("Where no coroutine runs, B goes on at once", |_context| {
        let (b, letters) = writer();
        b.wake();
        say(format!("letters in the box: {}", letters.get()));
    });

    // B goes on when A has ended. In between A has the thread for itself: that is what makes code in coroutines simple.
    a_makes_b_write("The puzzle: A wakes B", |b, _| b.wake());

    // Later still.
    a_makes_b_write("A fix that fails: A schedules B", |b, _| b.schedule().expect("once"));

    // Whoever wants others to run gives way to them; until they have done it, as in lesson 1, however often that is.
    a_makes_b_write("The fix: A wakes B, and gives way until it has written", |b, letters| {
        b.wake();
        while letters.get() == 0 {
            yield_now();
        }
    });
}
