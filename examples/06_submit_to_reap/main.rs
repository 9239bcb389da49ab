//! Lesson 6. I/O, from submit to reap.
//!
//! A read is a *request*. It is *pending* until it is submitted; then *in flight*: the kernel has it, and the buffer with it;
//! when the kernel is done, it puts a completion on a ring in memory. To *reap* is to take it off the ring, and to wake the
//! coroutine whose request it was.
//!
//! Puzzle: A reads, from a disk that takes its time. Somebody cannot wait, and enters A again. The buffer lies on A's stack, and
//! has not been filled yet. What does A do?
//!
//! Hint: A has been told to go on, and not why.

#[path = "../lesson/mod.rs"]
mod lesson;

use coralio_aio::{AioContext, Coroutine};

use lesson::{Disk, act, attach, coroutine, kernel, read, say};

/// A reads; then somebody tries to bring it to its end.
fn one_read(title: &str, then: fn(&AioContext, Coroutine)) {
    act(title, |context| {
        let disk: Disk = attach(&kernel(), 8);
        let a = coroutine("A", move || say(format!("{} bytes", read(&disk, 0))));
        a.enter();
        then(context, a);
        assert!(a.has_ended(), "A is still waiting");
    });
}

fn main() {
    // It looks whether its request is done, and yields again. A coroutine may be woken for any reason: so whoever waits
    // waits in a loop, and nobody sees a buffer that is not filled.
    one_read("The puzzle: A is entered again", |_context, a| {
        a.enter();
        a.enter();
    });

    // A round looks at the ring, where nothing is yet. It may be repeated, and keeps a processor busy with that.
    one_read("A fix that fails: a round of the loop that does not block", |context, _a| {
        context.poll(false);
    });

    // With nothing to do, this one sleeps in the kernel until there is a completion; then it reaps.
    one_read("The fix: a round of the loop that may block", |context, _a| {
        context.poll(true);
    });

    lesson::print(
        "\nSee the end of 1 and 2: the context ends, and A is unwound. That waits for the disk first: no frame goes\n\
         while the kernel has a buffer in it.\n",
    );
}
