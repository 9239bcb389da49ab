//! Lesson 2. Current and entered.
//!
//! A coroutine is *entered* while it is on the stack: either it is running (the *current*
//! coroutine), or it has entered another one and waits for that `enter` to return. It has one stack
//! and one position in it, so it cannot be entered a second time.
//!
//! Puzzle: A hands a job to a helper, which calls A back when the job is done, by entering A. When
//! does that work?
//!
//! Hint: where is A at the moment when it is called back?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use std::cell::Cell;
use std::rc::Rc;

use coralio::coroutine::{Coroutine, suspend};

use lesson::{act, coroutine, say};

/// How to call A back.
type CallBack = fn(Coroutine);

/// The helper that calls A back.
#[derive(Clone, Copy, PartialEq)]
enum Helper {
    /// A plain function that finishes immediately.
    Function,
    /// Another coroutine that finishes immediately.
    Coroutine,
    /// Finishes after A has yielded.
    Later,
}

/// Runs A, which hands the job to the helper and yields until it is done.
fn hand_over(title: &str, helper: Helper, call_back: CallBack) {
    act(title, |_context| {
        let done = Rc::new(Cell::new(false));
        let is_done = Rc::clone(&done);
        let help = move |a| {
            done.set(true);
            say("the job is done: calling A back");
            call_back(a);
        };
        let at_once = help.clone();
        let a = coroutine("A", move || {
            let a = Coroutine::current().expect("this is A");
            match helper {
                Helper::Function => at_once(a),
                Helper::Coroutine => coroutine("B", move || at_once(a)).enter(),
                Helper::Later => {}
            }
            while !is_done.get() {
                suspend();
            }
            say("the job is done: A can continue");
        });
        a.enter();
        if helper == Helper::Later {
            help(a);
        }
    });
}

pub fn main() {
    // A has yielded by then, and waits for this enter.
    hand_over("A helper that finishes later works", Helper::Later, |a| a.enter());

    // A is running, and enters itself. The panic unwinds A: this is not how a coroutine ends that
    // has done its work.
    hand_over("The puzzle: a function that finishes immediately, and enters A", Helper::Function, |a| a.enter());

    // The obvious guard: A must not enter itself. A learns the result all the same: it checks
    // `is_done` before it yields.
    let unless_it_runs: CallBack = |a| {
        if Coroutine::current() != Some(a) {
            a.enter();
        }
    };
    hand_over("A first fix: enter A unless A is current", Helper::Function, unless_it_runs);

    // Now B is current. A is on the stack all the same: it entered B.
    hand_over("Where that fails: the helper is a coroutine", Helper::Coroutine, unless_it_runs);

    // The right condition is "entered", not "current". Again A needs no enter to learn the result.
    hand_over("The fix: enter A unless A is entered", Helper::Coroutine, |a| _ = a.enter_unless_entered());
}
