//! Lesson 10. The fix.
//!
//! A completion wakes the waiting coroutine, unless that coroutine is entered: then it is left
//! alone. So no coroutine is ever entered twice. A coroutine whose request was completed while it
//! was entered continues in its own time, and comes to the point where it yields.
//!
//! Puzzle: the completion has come and gone. How does A learn that its request is done?
//!
//! Hint: A is entered, so it continues after its submit. What comes next in its code?
//!
//! The first four acts use a toy: one request, whose result is a number in a cell.

#[path = "../lesson/mod.rs"]
pub mod lesson;

#[path = "../09_september_2016/schedule.rs"]
mod schedule;

use std::cell::Cell;
use std::rc::Rc;

use coralio::coroutine::{Coroutine, suspend};
use coralio::engine::guards::AllGuards;

use lesson::{act, coroutine, say};

type Result = Cell<Option<u32>>;

/// Completes the request, with the right guard.
fn complete(result: &Result, waiter: Coroutine) {
    result.set(Some(512));
    say("the request is done");
    waiter.enter_unless_entered();
}

/// Runs A, which waits by `wait` for a request that is completed immediately or later.
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
                assert!(result.get().is_some(), "A has continued without a result");
            }
        });
        a.enter();
        if !at_once {
            a.enter(); // for another reason, such as a timeout
            complete(&result, a);
        }
        assert!(a.has_ended(), "A waits for a completion that has been processed already");
    });
}

pub fn main() {
    // The completion came while A was entered, and left it alone. No other will come.
    one_request("The puzzle: A yields until it is woken", true, |_result| suspend());

    // Checking before the yield finds a completion that came while A was entered.
    let look_and_yield: fn(&Result) = |result| {
        if result.get().is_none() {
            suspend();
        }
    };
    one_request("A first fix: A checks before it yields", true, look_and_yield);

    // A yields, is entered with the request still in flight, and takes that for the completion.
    one_request("Where that fails: A is entered for another reason", false, look_and_yield);

    // A checks before each yield, and so also after each.
    one_request("The fix: A checks before each yield", false, |result| {
        while result.get().is_none() {
            suspend();
        }
    });

    // The engine does both. A is entered when its request completes: it is left alone, finds the
    // result, and does not yield.
    act("The engine: A alone", schedule::a_alone::<AllGuards>);
    // The engine differs from July's in a second way: a completion wakes instead of entering, and a
    // wake from a coroutine enters nothing. So X runs after A has yielded, and A is not on the
    // stack when Y submits. Entering unless entered would suffice in this act as well: Y would
    // leave A alone. Waking also keeps the stack shallow, and runs no other coroutine within A's
    // read.
    act("The engine: A, X and Y", schedule::three_and_a_lock::<AllGuards>);
}
