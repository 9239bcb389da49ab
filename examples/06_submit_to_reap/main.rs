//! Lesson 6. I/O, from submit to reap.
//!
//! A read is a *request*. It is *pending* until it is submitted; then *in flight*: the kernel has
//! it, and its buffer. When the kernel is done, it puts a completion on a ring in shared memory.
//! *Reaping* takes the completion off the ring and wakes the coroutine that made the request.
//!
//! The kernel of these lessons is scripted: unless an act says otherwise, requests complete when
//! the loop sleeps, or when unwinding waits for them.
//!
//! Puzzle: A reads from a slow disk. Impatient code enters A again before the read is done. The
//! buffer, on A's stack, is not filled yet. What does A do?
//!
//! Hint: what does A know when its yield returns?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use coralio::context::AioContext;
use coralio::coroutine::Coroutine;

use lesson::{Disk, act, attach, backend, coroutine, read, say};

/// A reads; then `then` tries to make A finish.
fn one_read(title: &str, then: fn(&AioContext, Coroutine)) {
    act(title, |context| {
        let disk: Disk = attach(&backend(), 8);
        let a = coroutine("A", move || say(format!("{} bytes", read(&disk, 0))));
        a.enter();
        then(context, a);
        assert!(a.has_ended(), "A's read is not done");
    });
}

pub fn main() {
    // A is right, the impatient code is not. A coroutine may be entered for any reason, so every
    // wait is a loop, and no code sees a buffer that is not filled. In short, `read` does this:
    //
    // - `submit(&request);`
    // - `while !request.is_done() { suspend(); }`
    one_read("The puzzle: A is entered again", |_context, a| {
        a.enter();
        a.enter();
    });
    lesson::print(
        "\nThe last rows: the context ends and unwinds A. Unwinding first waits for the read to complete: no stack frame\n\
         is freed while the kernel has a buffer in it. That completion comes while A is entered, so A is left alone (the\n\
         cross beside its dot): it is about to check for the result itself.\n",
    );

    // The iteration finds the ring empty. Repeating it would work, and keep a CPU busy.
    one_read("A fix that fails: an iteration of the loop that does not block", |context, _a| {
        context.poll(false);
    });

    // With nothing to do, the loop sleeps in the kernel until a completion arrives, then reaps it.
    one_read("The fix: an iteration of the loop that may block", |context, _a| {
        context.poll(true);
    });
}
