//! Lesson 2. Who is entered.
//!
//! A coroutine is *entered* while it is on the stack: it runs, or it has entered another one and waits for that to come back.
//! It has one stack, which goes on in one place: nobody can enter it a second time.
//!
//! Puzzle: A has something to do, and hands it to a helper, who is to call A back when it is done. The helper does so by
//! entering A. When does that work?
//!
//! Hint: the helper may have been done at once, while A was still handing over.

#[path = "../lesson/mod.rs"]
mod lesson;

use std::cell::Cell;
use std::rc::Rc;

use coralio_aio::{Coroutine, suspend};

use lesson::{act, coroutine, say};

/// How to call somebody back.
type CallBack = fn(Coroutine);

/// A hands over; a plain function, or another coroutine, is done at once and calls back.
fn hand_over(title: &str, to_coroutine: bool, call_back: CallBack) {
    act(title, |_context| {
        let done = Rc::new(Cell::new(false));
        let is_done = Rc::clone(&done);
        let a = coroutine("A", move || {
            let a = Coroutine::current().expect("this is A");
            let helper = move || {
                done.set(true);
                call_back(a);
            };
            if to_coroutine {
                coroutine("B", helper).enter()
            } else {
                helper()
            }
            while !is_done.get() {
                suspend();
            }
            say("it is done");
        });
        a.enter();
    });
}

fn main() {
    hand_over("The puzzle: the helper is a function, and enters A", false, |a| a.enter());

    // The first thought: A must not enter itself.
    let unless_it_runs: CallBack = |a| {
        if Coroutine::current() != Some(a) {
            a.enter();
        }
    };
    hand_over("A fix that fails: it enters A unless A is the one that runs", false, unless_it_runs);

    // Now the one that runs is B. But A is on the stack all the same, beneath it.
    hand_over("The same, and the helper is a coroutine", true, unless_it_runs);

    // It asks the right question. And A looks whether it is done before it yields: nobody needs to enter it for that.
    hand_over("The fix: it enters A unless A is entered", true, |a| _ = a.enter_unless_entered());
}
