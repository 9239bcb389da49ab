//! Lesson 8. The bug of July 2016.
//!
//! For years a completion had entered the coroutine that waited for it. That was simple, fast, and
//! correct: only the loop reaped, so the waiting coroutine had always yielded. In July 2016 submit
//! was changed to reap as well (lesson 7), to save the detour through the loop. In the field,
//! programs aborted because a coroutine had entered itself.
//!
//! Puzzle: A submits a request, which is done before submit returns. Who reaps the completion, and
//! which coroutine does that reap enter?
//!
//! Hint: lesson 2.
//!
//! This is the production engine with one guard removed: the type parameter says what a completion
//! does to the waiting coroutine.

#[path = "../lesson/mod.rs"]
pub mod lesson;

use coralio::engine::guards::{Guards, WakeGuard};

use lesson::{Disk, act, attach, backend, coroutine, read, run_loop};

/// As of July 2016: a completion enters its coroutine unconditionally.
struct July2016;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for July2016 {
    const WAKE_GUARD: WakeGuard = WakeGuard::None;
}

/// The fix of July 2016: a completion enters its coroutine, unless that is the current one.
struct NotTheCurrent;

// SAFETY: as above.
unsafe impl Guards for NotTheCurrent {
    const WAKE_GUARD: WakeGuard = WakeGuard::EnterUnlessCurrent;
}

#[derive(PartialEq)]
enum Speed {
    Slow,
    Fast,
}

/// Runs a coroutine for each name, which reads once.
fn read_once<G: Guards>(title: &str, speed: Speed, names: &[&'static str]) {
    act(title, |context| {
        let backend = backend();
        if speed == Speed::Fast {
            (0..2).for_each(|number| backend.complete_on_submit(number, number));
        }
        let disk: Disk<G> = attach(&backend, 2);
        let reader = |&name| {
            let disk = disk.clone();
            coroutine(name, move || _ = read(&disk, 0))
        };
        let all: Vec<_> = names.iter().map(reader).collect();
        match all[..] {
            // Outside the loop each request is submitted immediately.
            [alone] => alone.enter(),
            // In an iteration of the loop requests gather.
            _ => all.iter().for_each(|one| one.schedule().expect("once")),
        }
        run_loop(context, &all);
    });
}

pub fn main() {
    // A has yielded, so the loop may enter it.
    read_once::<July2016>("Before July: with a slow disk, the loop reaps", Speed::Slow, &["A"]);

    // A is running, reaps its own completion, and enters itself.
    read_once::<July2016>("The puzzle: with a fast disk, A reaps", Speed::Fast, &["A"]);

    // In an iteration of the loop requests gather, and the loop submits them at its end, on its own
    // stack. But a full batch is submitted immediately, by the coroutine that fills it. A batch is
    // as large as the queue depth, here two (`attach`): B fills it, reaps A's request, which works,
    // and then its own. (`loop` in the chain is the frame of the iteration.)
    read_once::<July2016>("A fix that fails: let requests gather, so that the loop submits", Speed::Fast, &["A", "B"]);

    // The fix made in July: compare with the current coroutine. A is left alone; it is within its
    // own read, and finds the result there. (The row says "entered", which the current coroutine
    // is; July's guard knows only "current".)
    read_once::<NotTheCurrent>("The fix: do not enter the current coroutine", Speed::Fast, &["A"]);

    // B enters A, which is not current and has yielded, and leaves itself alone. Is that enough?
    // See lesson 9.
    read_once::<NotTheCurrent>("The same fix, two coroutines", Speed::Fast, &["A", "B"]);
}
