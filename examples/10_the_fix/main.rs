//! Lesson 10. The fix.
//!
//! A completion wakes the coroutine that waits, unless that one is entered: then it leaves it alone. So nobody is ever entered
//! twice. A, whose request was done while it was entered, goes on in its own time, and yields.
//!
//! Puzzle: its completion has come and gone. Who tells A?
//!
//! Hint: nobody. When must A look?
//!
//! The first three acts are a toy: one request, whose result is a number in a cell.

#[path = "../lesson/mod.rs"]
mod lesson;

#[path = "../09_september_2016/schedule.rs"]
mod schedule;

use std::cell::Cell;
use std::rc::Rc;

use coralio_aio::policy::Current;
use coralio_aio::{Coroutine, suspend};

use lesson::{act, coroutine, say};

type Result = Cell<Option<u32>>;

/// The request is done. What the right guard does.
fn complete(result: &Result, waiter: Coroutine) {
    result.set(Some(512));
    say("the request is done");
    waiter.enter_unless_entered();
}

/// A has submitted a request, which is done at once or later, and waits for it.
fn one_request(title: &str, at_once: bool, wait: fn(&Result)) {
    act(title, |_context| {
        let result = Rc::new(Result::default());
        let a = coroutine("A", {
            let result = Rc::clone(&result);
            move || {
                if at_once {
                    complete(&result, Coroutine::current().expect("this is A"));
                }
                wait(&result);
                assert!(result.get().is_some(), "A goes on, and there is no result");
            }
        });
        a.enter();
        if !at_once {
            a.enter(); // for another reason: a timeout, say
            complete(&result, a);
        }
        assert!(a.has_ended(), "A waits for what has happened already");
    });
}

fn main() {
    one_request("The puzzle: A yields until it is told", true, |_result| suspend());

    // Who looks before it yields finds what came while it was entered. But it was entered again, and not for this.
    let look_and_yield: fn(&Result) = |result| {
        if result.get().is_none() {
            suspend();
        }
    };
    one_request("A first fix: A looks before it yields", true, look_and_yield);
    one_request("Where that fails: A is entered for another reason", false, look_and_yield);

    // Before it yields, and each time that it goes on.
    one_request("The fix: A looks before each yield", false, |result| {
        while result.get().is_none() {
            suspend();
        }
    });

    // Both halves of it in the engine. A is entered when its request is done: the wake changes nothing, and A does not yield.
    act("The engine: A alone", schedule::a_alone::<Current>);
    // And there is a second change: a completion wakes, where it entered before. While a coroutine runs, that enters nobody. So X goes
    // on when A has yielded, and A is not even beneath Y when Y submits.
    act("The engine: A, X and Y", schedule::three_and_a_lock::<Current>);
}
