//! Lesson 15. Simulation: seed, tape, shrinking.
//!
//! On a real disk a crash test loses power now and then, and fails once a month. On a simulated
//! machine everything that the kernel and the disk decide is a number: when a request completes,
//! when the power fails, which sectors survive. The list of these numbers is the run's *tape*. A
//! *seed* generates a tape; the same tape gives the same run. In a tape, 0 is always the harmless
//! choice. (Seed 0 is a seed like any other, and its tape is not all zeros.)
//!
//! Puzzle: `save` writes data, then a mark that says "the data is valid", then syncs. The power
//! fails at any moment. The test passes with seed 0. Is `save` correct? If not: how do you find a
//! failing run, and how do you understand it?
//!
//! Hint: what does one sync say about the order of two writes before it?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use std::io;
use std::time::Duration;

use coralio::simulate::{Faults, Latency, Sim, Simulation};

use lesson::{durable_file, say, search_act};

/// A step of `save`.
#[derive(Clone, Copy)]
enum Step {
    Data,
    Mark,
    Sync,
}

use Step::{Data, Mark, Sync};

/// Saves by these steps, and loses power during them or afterwards; from then on each request fails
/// with the I/O error EIO, errno 5. The mark must not be there without the data.
fn save_and_crash(sim: &Sim, steps: &[Step]) -> io::Result<()> {
    let file = durable_file(sim, "file", "no mark.old data");
    // Each message ends with the tape so far, without the zeros at its end.
    let tell = |what: &str| say(format!("{what} [{}]", sim.tape()));
    let save = |step: &Step| {
        tell(["writes the data", "writes the mark", "syncs"][*step as usize]);
        match step {
            Data => file.write_at(b"new data", 8).map(drop),
            Mark => file.write_at(b"valid!!!", 0).map(drop),
            Sync => file.sync_data(),
        }
    };
    let saved = sim.crash_during(|| steps.iter().try_for_each(save));
    tell(if saved.is_some() { "saved; then POWER FAILURE" } else { "EIO: there was a POWER FAILURE" });
    let found = String::from_utf8(sim.contents("file").expect("it was durable")).expect("ASCII");
    say(format!("the file contains {found:?}"));
    if found.starts_with("valid!!!") && !found.ends_with("new data") {
        return Err(io::Error::other("the mark says that the data is valid, and it is not"));
    }
    Ok(())
}

/// Runs `save` on `machine` with each of the seeds, until one fails.
fn try_seeds(title: &str, machine: &Simulation, seeds: u64, steps: &[Step]) {
    let test = |sim: &Sim| save_and_crash(sim, steps);
    search_act(title, machine, machine.search(0..seeds, test), test);
}

pub fn main() {
    // Sectors of 8 bytes, which are not torn: the mark is one, the data another. In the rows: the
    // tape as it grows. This run happens to end well.
    let machine = Simulation::new().sector_size(8).torn_writes(false);
    try_seeds("The puzzle: one seed", &machine, 1, &[Data, Mark, Sync]);

    // One run says little. Of many, one fails. Its tape contains every decision, also those
    // that have nothing to do with the failure: slow requests, for instance.
    try_seeds("A thousand seeds", &machine.clone().max_shrink_runs(0), 1000, &[Data, Mark, Sync]);

    // So the search *shrinks* the tape: it removes choices and replaces them by 0 as long as the
    // run still fails. Each choice left is needed. `0*15` stands for fifteen zeros: nothing special
    // happens until the mark's write has completed. Then 1: the power fails. 0: the mark's sector
    // is kept. 1: the data's is not. The sync comes too late, and fails with errno 5 (EIO), an I/O
    // error. With the variable set, a test makes this run alone.
    try_seeds("The same, shrunk", &machine, 1000, &[Data, Mark, Sync]);

    // The folklore of two syncs. But the power may fail before the first has returned; the second
    // is not even called. And when the first has returned, nothing is left to do for the second.
    try_seeds("A fix that fails: sync twice at the end", &machine, 1000, &[Data, Mark, Sync, Sync]);

    // A sync says nothing about the order of the writes before it. So the order needs its own. Here
    // not a thousand tapes are tried, but every one that a machine without faults can make. (One of
    // them fails for each of the other orders.)
    let test = |sim: &Sim| save_and_crash(sim, &[Data, Sync, Mark, Sync]);
    let small = machine.faults(Faults::none()).latency(Latency::fixed(Duration::from_millis(1)));
    search_act("The fix: a sync between the writes, all tapes", &small, small.explore_all(test), test);
}
