//! Lesson 13. Plug and batching.
//!
//! A system call costs more than the work that it does for one request, and one call can submit
//! many. So requests should gather and be submitted together, wherever a later submit is certain.
//!
//! Puzzle: main enters A, B and C, one after the other; each reads a block. How many system calls
//! submit? A *plug* delays requests while it exists. Where does it go?
//!
//! Hint: when is it dropped?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use coralio::context::AioContext;
use coralio::coroutine::Coroutine;

use lesson::{Disk, act, attach, backend, coroutine, read, run_loop, say};

/// Runs A, B and C, each entered by `start`, which read; one system call must submit all three.
fn three_reads(title: &str, start: fn(&Disk, &AioContext, &[Coroutine])) {
    three_reads_at_depth(title, 8, 1, start);
}

/// As [`three_reads`], with a queue depth, which is also the size of a full batch, and a number of
/// system calls.
fn three_reads_at_depth(title: &str, depth: u32, expected: u64, start: fn(&Disk, &AioContext, &[Coroutine])) {
    act(title, |context| {
        let disk: Disk = attach(&backend(), depth);
        let readers = ["A", "B", "C"].map(|name| {
            let disk = disk.clone();
            coroutine(name, move || _ = read(&disk, 0))
        });
        start(&disk, context, &readers);
        run_loop(context, &readers);
        let calls = disk.stats().submits;
        say(format!("system calls that have submitted: {calls}"));
        assert!(calls == expected, "{calls} system calls for three requests");
    });
}

fn enter_all(readers: &[Coroutine]) {
    readers.iter().for_each(|reader| reader.enter());
}

pub fn main() {
    // Each row "submit" is a system call; the last row counts them. Outside the loop's iteration
    // the engine does not know whether more requests will follow, or when the loop will run, so it
    // submits each request immediately.
    three_reads("The puzzle: one after the other", |_disk, _context, readers| enter_all(readers));

    // `_` binds nothing: the plug is dropped at the end of the statement.
    three_reads("A fix that fails: let _ = plug()", |disk, _context, readers| {
        let _ = disk.plug();
        say("let _ = disk.plug();");
        enter_all(readers);
    });

    // After the plug is dropped, the loop submits in its next iteration. The destructor itself does
    // not: a submit reaps, which may run other coroutines, and no destructor does that.
    three_reads("The fix: let plug = plug()", |disk, _context, readers| {
        let plug = disk.plug();
        say("let plug = disk.plug();");
        enter_all(readers);
        say("drop(plug);");
        drop(plug);
    });

    // No plug needed: in an iteration of the loop requests gather, and are submitted at its end.
    three_reads("Without a plug: the loop enters them", |_disk, _context, readers| {
        readers.iter().for_each(|reader| reader.schedule().expect("once"));
    });

    // A held plug is a hint, not a guarantee. These are its three exits. The first: the loop is
    // about to sleep, and a sleep with requests that nothing submits would not end.
    three_reads("A plug that is never dropped: the loop submits before it sleeps", |disk, context, readers| {
        let _plug = disk.plug();
        enter_all(readers);
        run_loop(context, readers);
    });

    // The second: a loop that never sleeps submits in every 16th iteration.
    three_reads("A plug that is never dropped, and a loop that never sleeps", |disk, context, readers| {
        let _plug = disk.plug();
        enter_all(readers);
        while disk.stats().submits == 0 {
            context.poll(false);
        }
    });

    // The third: a full batch is submitted immediately (up to 16 times in an iteration). Here two
    // requests fill it, so three need two calls.
    three_reads_at_depth("A full batch: queue depth 2", 2, 2, |disk, context, readers| {
        let _plug = disk.plug();
        enter_all(readers);
        run_loop(context, readers);
    });
}
