//! Lesson 14. Crash and sync.
//!
//! The kernel of this lesson is a simulated one. It has files, and a crash: the power goes, and comes back. A seed decides what
//! the disk has then; each act is tried with a hundred of them, and shows one that fails, if there is one.
//!
//! Puzzle: the file says "old". A program writes "new" over it, and the write returns without an error. The program tells its user
//! that it is saved. Then the power goes. What does the file say?
//!
//! Hint: to whom has the write been handed?

#[path = "../lesson/mod.rs"]
mod lesson;

use std::io;

use coralio_aio::File;
use coralio_aio::simulate::Sim;

use lesson::{say, simulated_act};

fn write(file: &File) -> io::Result<()> {
    say("I write new");
    file.write_at(b"new", 0).map(drop)
}

/// Saves in some way, and loses power.
fn save_and_crash(title: &str, save: fn(&File) -> io::Result<()>) {
    simulated_act(title, |sim: &Sim| {
        let file = sim.create("file", 3);
        sim.corrupt("file", 0, b"old"); // that is on the disk for good
        save(&file).map_err(|error| error.to_string())?;
        say("it is saved");
        sim.crash();
        say("the power was gone");
        let found = String::from_utf8(sim.contents("file").expect("it was made for good")).expect("old or new");
        say(format!("the file says {found}"));
        if found == "new" { Ok(()) } else { Err(format!("\"it is saved\", and the file says {found}")) }
    });
}

fn main() {
    // A write is done when the kernel has the data. The disk may not.
    save_and_crash("The puzzle: write", write);

    // Who reads is told what was written last, wherever that is.
    save_and_crash("A fix that fails: write, and read it back", |file| {
        write(file)?;
        let mut found = [0; 3];
        say("I read it back");
        file.read_exact_at(&mut found, 0)?;
        say(format!("it says {}", String::from_utf8_lossy(&found)));
        Ok(())
    });

    // When a sync returns, what was written before is on the disk for good. That is what takes time, and why one sync should
    // serve many writes.
    save_and_crash("The fix: write, and sync", |file| {
        write(file)?;
        say("I sync");
        file.sync_data()
    });
}
