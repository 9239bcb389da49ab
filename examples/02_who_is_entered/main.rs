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

/// Who is to call back.
#[derive(Clone, Copy, PartialEq)]
enum Helper {
    /// A plain function, done at once.
    Function,
    /// Another coroutine, done at once.
    Coroutine,
    /// Somebody who is done when A has yielded.
    Later,
}

/// A hands over to the helper, and yields until it is done.
fn hand_over(title: &str, helper: Helper, call_back: CallBack) {
    act(title, |_context| {
        let done = Rc::new(Cell::new(false));
        let is_done = Rc::clone(&done);
        let help = move |a| {
            done.set(true);
            say("done: I call A back");
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
            say("it is done");
        });
        a.enter();
        if helper == Helper::Later {
            help(a);
        }
    });
}

fn main() {
    // A has yielded by then. It waits for exactly this.
    hand_over("It works when the helper is late", Helper::Later, |a| a.enter());

    hand_over("The puzzle: the helper is a function, done at once, and enters A", Helper::Function, |a| a.enter());

    // The first thought: A must not enter itself.
    let unless_it_runs: CallBack = |a| {
        if Coroutine::current() != Some(a) {
            a.enter();
        }
    };
    hand_over("A first fix: it enters A unless A is the one that runs", Helper::Function, unless_it_runs);

    // Now the one that runs is B. But A is on the stack all the same, beneath it.
    hand_over("Where that fails: the helper is a coroutine", Helper::Coroutine, unless_it_runs);

    // It asks the right question. And A looks whether it is done before it yields: nobody needs to enter it for that.
    hand_over("The fix: it enters A unless A is entered", Helper::Coroutine, |a| _ = a.enter_unless_entered());
}
