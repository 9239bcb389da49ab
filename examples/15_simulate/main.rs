//! Lesson 15. Simulation: seed, tape, shrinking.
//!
//! On a real disk a crash test loses power now and then, and fails once a month. On a simulated
//! machine everything that the kernel and the disk decide is a number: when a request completes,
//! when the power fails, which sectors survive. The list of these numbers is the run's *tape*. A
//! *seed* generates a tape; the same tape gives the same run. 0 is always the harmless choice.
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

use coralio::File;
use coralio::simulate::{Faults, Latency, Sim, Simulation};

use lesson::{durable_file, say, search_act};

/// A way to write the data, and the mark.
type Save = fn(&File) -> io::Result<()>;

/// Saves, and loses power during it or afterwards; from then on each request fails with errno 5
/// (EIO). The mark must not be there without the data.
fn save_and_crash(sim: &Sim, save: Save) -> io::Result<()> {
    let file = durable_file(sim, "file", "no mark.old data");
    sim.crash_during(|| save(&file));
    say("power was lost, and is back");
    let found = String::from_utf8(sim.contents("file").expect("it was durable")).expect("ASCII");
    say(format!("the file contains {found:?}"));
    if found.starts_with("valid!!!") && !found.ends_with("new data") {
        return Err(io::Error::other("the mark says that the data is valid, and it is not"));
    }
    Ok(())
}

fn write_data(file: &File) -> io::Result<()> {
    say("writes the data");
    file.write_at(b"new data", 8).map(drop)
}

fn write_mark(file: &File) -> io::Result<()> {
    say("writes the mark");
    file.write_at(b"valid!!!", 0).map(drop)
}

fn sync_at_the_end(file: &File) -> io::Result<()> {
    write_data(file)?;
    write_mark(file)?;
    file.sync_data()
}

/// Runs `save` on `machine` with each of the seeds, until one fails.
fn try_seeds(title: &str, machine: &Simulation, seeds: u64, save: Save) {
    let test = |sim: &Sim| save_and_crash(sim, save);
    search_act(title, machine, machine.search(0..seeds, test), test);
}

pub fn main() {
    // Sectors of 8 bytes, which are not torn: the mark is one, the data another.
    let machine = Simulation::new().sector_size(8).torn_writes(false);
    try_seeds("The puzzle: one seed", &machine, 1, sync_at_the_end);

    // One run says little. Of many, one fails. Its tape contains every decision, also those that
    // have nothing to do with the failure: slow requests, a sleep that ended early.
    try_seeds("A thousand seeds", &machine.clone().max_shrink_runs(0), 1000, sync_at_the_end);

    // So the search *shrinks* the tape: it removes choices and replaces them by 0 as long as the
    // run still fails. Each choice left is needed: at which step the power fails, and which sector
    // survives. `0*15` stands for fifteen zeros. With the variable set, a test makes this run alone.
    try_seeds("The same, shrunk", &machine, 1000, sync_at_the_end);

    // The folklore of two syncs. Between the writes there is still none.
    try_seeds("A fix that fails: sync twice at the end", &machine, 1000, |file| {
        sync_at_the_end(file)?;
        file.sync_data()
    });

    // A sync says nothing about the order of the writes before it. So the order needs its own. Here
    // not a thousand tapes are tried, but every one that a machine without faults can make.
    let test = |sim: &Sim| {
        save_and_crash(sim, |file| {
            write_data(file)?;
            file.sync_data()?;
            write_mark(file)?;
            file.sync_data()
        })
    };
    let small = machine.faults(Faults::none()).latency(Latency::fixed(Duration::from_millis(1)));
    search_act("The fix: a sync between the writes, all tapes", &small, small.explore_all(test), test);
}
