//! Lesson 13. Plug and batching.
//!
//! A system call costs more than what it does for one request. One call can submit many: so requests should gather, and go
//! together. They may as long as somebody is sure to submit them.
//!
//! Puzzle: main enters A, B and C, one after the other; each reads a block. How many calls submit? A *plug* says: let requests
//! gather as long as I live. Where does it go?
//!
//! Hint: how long does it live?

#[path = "../lesson/mod.rs"]
mod lesson;

use coralio_aio::{AioContext, Coroutine};

use lesson::{Disk, act, attach, coroutine, kernel, read, run_loop, say};

/// A, B and C read, brought to it by `start`; one call is to submit.
fn three_reads(title: &str, start: fn(&Disk, &AioContext, &[Coroutine])) {
    act(title, |context| {
        let disk: Disk = attach(&kernel(), 8);
        let readers = ["A", "B", "C"].map(|name| {
            let disk = disk.clone();
            coroutine(name, move || _ = read(&disk, 0))
        });
        start(&disk, context, &readers);
        run_loop(context, &readers);
        let calls = disk.stats().submits;
        assert!(calls == 1, "{calls} calls have submitted three requests");
    });
}

fn enter_all(readers: &[Coroutine]) {
    readers.iter().for_each(|reader| reader.enter());
}

fn main() {
    // Who is entered like this cannot know whether anybody will submit later.
    three_reads("The puzzle: one after the other", |_disk, _context, readers| enter_all(readers));

    // `_` is no name: what is bound to it is dropped in the same line.
    three_reads("A fix that fails: let _ = plug()", |disk, _context, readers| {
        let _ = disk.plug();
        say("the plug was in, and is gone");
        enter_all(readers);
    });

    // When the plug goes, the loop submits in its next round. A destructor itself submits nothing: a submit may run anybody.
    three_reads("The fix: let plug = plug()", |disk, _context, readers| {
        let plug = disk.plug();
        say("the plug is in");
        enter_all(readers);
        say("the plug goes");
        drop(plug);
    });

    // What you get without asking: in a round of the loop requests gather, and it submits at the end of the round.
    three_reads("Nothing to do: the loop enters them", |_disk, _context, readers| {
        readers.iter().for_each(|reader| reader.schedule().expect("once"));
    });
}
