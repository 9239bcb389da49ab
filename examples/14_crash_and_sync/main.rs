//! Lesson 14. Crash and sync.
//!
//! The kernel of this lesson is simulated. It has files, and a crash: power is lost and comes back.
//! A seed decides, among other things, what is on the disk afterwards. Each act is run with seeds 0
//! to 99, and shows the first failing run; "Ends well." means that all 100 did. (Seed 0 is a seed
//! like any other.)
//!
//! Puzzle: a file contains "old". A program writes "new" over it, and the write returns without an
//! error. The program tells its user that the data is saved. Then power is lost. What is in the
//! file?
//!
//! Hint: where is the data when the write returns?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use std::io;

use coralio::File;
use coralio::simulate::Sim;

use lesson::{durable_file, say, simulated_act, spawn};

fn write(file: &File) -> io::Result<()> {
    say("writes new");
    file.write_at(b"new", 0)?;
    say("the kernel has new; the disk has old, or new already");
    Ok(())
}

/// Runs a program that saves by `save`, and loses power.
///
/// The program is a coroutine, which has ended when the power fails. The simulation's own coroutine
/// `main` is not part of the machine that crashes: it is the user, who reads the file afterwards.
fn save_and_crash(title: &str, save: fn(&File) -> io::Result<()>) {
    simulated_act(title, |sim: &Sim| {
        let file = durable_file(sim, "file", "old");
        let program = spawn("program", move || {
            save(&file)?;
            say("tells the user: saved");
            io::Result::Ok(())
        });
        program.join().expect("it does not panic").map_err(|error| error.to_string())?;
        say("POWER FAILURE");
        sim.crash();
        say("power is back");
        let found = String::from_utf8(sim.contents("file").expect("creating it was durable")).expect("old or new");
        say(format!("the file contains {found}"));
        if found == "new" { Ok(()) } else { Err(format!("the user was told \"saved\", and the file contains {found}")) }
    });
}

pub fn main() {
    // A write returns when the kernel has the data. The disk may not have it yet.
    save_and_crash("The puzzle: write", write);

    // A read returns the last data written, from the kernel's cache if it is there.
    save_and_crash("A fix that fails: write, and read back", |file| {
        write(file)?;
        let mut found = [0; 3];
        say("reads it back");
        file.read_exact_at(&mut found, 0)?;
        say(format!("reads {}", String::from_utf8_lossy(&found)));
        Ok(())
    });

    // When a sync returns, all earlier completed writes are durable. That takes time, so one sync
    // should serve many writes.
    save_and_crash("The fix: write, and sync", |file| {
        write(file)?;
        say("syncs");
        file.sync_data()?;
        say("the disk has new");
        Ok(())
    });
}
