//! Lesson 8. The bug of July 2016.
//!
//! For years a completion had entered the coroutine that waits for it. That was simple and quick, and right: only the loop reaped,
//! and where the loop runs, no coroutine does. Then submit learnt to reap too, as in lesson 7, and was faster still.
//!
//! Puzzle: which coroutine does the reap enter, when A has submitted, and A's request is done at once?
//!
//! Hint: lesson 2.
//!
//! This is the engine that everybody runs on, with one guard taken out: the type parameter says what a completion does.

#[path = "../lesson/mod.rs"]
mod lesson;

use coralio_aio::policy::{OnCompletion, Policy};

use lesson::{Disk, act, attach, coroutine, kernel, read, run_loop};

/// A completion enters the coroutine, whoever that is.
struct July2016;

// SAFETY: it reaps under the lock, and waits for what it has cancelled.
unsafe impl Policy for July2016 {
    const ON_COMPLETION: OnCompletion = OnCompletion::Enter;
}

/// A completion enters the coroutine, unless it is the one that runs. So it was mended in July.
struct NotTheCurrent;

// SAFETY: as above.
unsafe impl Policy for NotTheCurrent {
    const ON_COMPLETION: OnCompletion = OnCompletion::EnterUnlessCurrent;
}

#[derive(PartialEq)]
enum Speed {
    Slow,
    Fast,
}

/// Each reads once.
fn read_once<P: Policy>(title: &str, speed: Speed, names: &[&'static str]) {
    act(title, |context| {
        let kernel = kernel();
        if speed == Speed::Fast {
            (0..2).for_each(|number| kernel.complete_on_submit(number, number));
        }
        let disk: Disk<P> = attach(&kernel, 2);
        let reader = |&name| {
            let disk = disk.clone();
            coroutine(name, move || _ = read(&disk, 0))
        };
        let all: Vec<_> = names.iter().map(reader).collect();
        match all[..] {
            // Outside the loop each request is submitted at once.
            [alone] => alone.enter(),
            // In a round of the loop, requests gather.
            _ => all.iter().for_each(|one| one.schedule().expect("once")),
        }
        run_loop(context, &all);
    });
}

fn main() {
    read_once::<July2016>("Before July: with a slow disk, the loop reaps", Speed::Slow, &["A"]);

    // A enters itself.
    read_once::<July2016>("The puzzle: with a fast disk, A reaps", Speed::Fast, &["A"]);

    // In a round of the loop requests gather, and the loop submits: on its stack nobody is entered. But when a batch is full
    // it goes at once. Here two are a batch, and B is the second: it reaps A's request, which is well, and then its own.
    read_once::<July2016>("A fix that fails: let requests gather, so that the loop submits", Speed::Fast, &["A", "B"]);

    // So it was mended, within the month. Is it enough? See lesson 9.
    read_once::<NotTheCurrent>("The fix: not the coroutine that runs", Speed::Fast, &["A"]);
    read_once::<NotTheCurrent>("The same for two", Speed::Fast, &["A", "B"]);
}
