//! Power failures: synced data is there, unsynced data may be, and code that forgets a sync is
//! detected.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use coralio::fs::{rename, sync_dir};
use coralio::simulate::{Fault, Faults, Latency, Sim, Simulation};
use coralio::task::OsCode;
use coralio::{File, spawn, yield_now};

use crate::{harsh, small};

/// The size of a journal's record; the journal changes two numbers in a file that must always be
/// equal.
const RECORD: usize = 24;

/// What a journal forgets.
#[derive(Clone, Copy, PartialEq)]
enum Forgets {
    Nothing,
    /// To sync the journal before the data is changed.
    TheSync,
    /// To check that the record is complete.
    TheChecksum,
}

fn checksum(number: u64) -> u64 {
    (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Changes both numbers: writes the journal first, then the data, then empties the journal.
fn change(journal: &File, data: &File, number: u64, forgets: Forgets) -> io::Result<()> {
    let record = [number, number, checksum(number)].map(u64::to_le_bytes).concat();
    journal.write_at(&record, 0)?;
    if forgets != Forgets::TheSync {
        journal.sync_data()?;
    }
    data.write_at(&number.to_le_bytes(), 0)?;
    data.write_at(&number.to_le_bytes(), 16)?;
    data.sync_data()?;
    journal.write_at(&[0; RECORD], 0)?;
    journal.sync_data()
}

/// Repeats the change in the journal, if there is one.
fn recover(journal: &File, data: &File, forgets: Forgets) -> io::Result<()> {
    let mut record = [0; RECORD];
    journal.read_exact_at(&mut record, 0)?;
    let [first, second, sum] = [0, 8, 16].map(|at| u64::from_le_bytes(record[at..at + 8].try_into().unwrap()));
    let whole = first == second && sum == checksum(first);
    if whole || forgets == Forgets::TheChecksum && first != 0 {
        data.write_at(&first.to_le_bytes(), 0)?;
        data.write_at(&second.to_le_bytes(), 16)?;
        data.sync_data()?;
    }
    Ok(())
}

fn journal_survives(sim: &Sim, forgets: Forgets) -> io::Result<()> {
    let open = || io::Result::Ok((sim.open("journal")?, sim.open("data")?));
    sim.create("journal", RECORD as u64);
    sim.create("data", 32);
    let acknowledged = Cell::new(0);
    for round in 0..2 {
        sim.crash_during(|| {
            let (journal, data) = open()?;
            recover(&journal, &data, forgets)?;
            for number in round * 3 + 1..round * 3 + 4 {
                change(&journal, &data, number, forgets)?;
                acknowledged.set(number);
            }
            io::Result::Ok(())
        });
    }
    let (journal, data) = open()?;
    recover(&journal, &data, forgets)?;
    let numbers = sim.contents("data").unwrap();
    let [first, second] = [0, 16].map(|at| u64::from_le_bytes(numbers[at..at + 8].try_into().unwrap()));
    assert_eq!(first, second, "half of a change");
    assert!(first >= acknowledged.get(), "{} was acknowledged, and {first} is there", acknowledged.get());
    Ok(())
}

/// Returns a disk with sectors so small that the two numbers, and the parts of a record, are in
/// different ones.
fn disk() -> Simulation {
    small().sector_size(8).torn_writes(false)
}

#[test]
fn correct_journal_survives() {
    // E17: a correct journal survives two power failures at any moment, whatever unsynced data they
    // take.
    let runs = if cfg!(debug_assertions) { 300 } else { 1000 };
    disk().run(0..3 * runs, |sim| journal_survives(sim, Forgets::Nothing));
    disk().faults(harsh()).sector_size(16).run(0..runs, |sim| match journal_survives(sim, Forgets::Nothing) {
        Err(error) if error.raw_os_error().is_none() && error.to_string().contains("os error") => Ok(()),
        other => other,
    });
}

#[test]
fn journal_without_a_sync_is_detected() {
    // E17: a journal that forgets is detected, with a tape short enough to see why.
    for (forgets, why) in [(Forgets::TheSync, "half of a change"), (Forgets::TheChecksum, "half of a change")] {
        let failure = disk().search(0..3000, |sim| journal_survives(sim, forgets)).unwrap_err();
        assert!(failure.message.contains(why) || failure.message.contains("was acknowledged"), "{failure}");
        assert!(failure.nonzero_choices <= 6, "{failure}");
        eprintln!("{} seeds; {} choices: {}", failure.run, failure.nonzero_choices, failure.tape);
    }
}

/// Replaces a file by a new one with other content: a reader finds one of the two, complete.
fn replace(contents: &[u8], syncs: bool) -> io::Result<()> {
    let new = File::options().write(true).create(true).truncate(true).open("dir/new")?;
    new.write_at(contents, 0)?;
    if syncs {
        new.sync_all()?;
    }
    rename("dir/new", "dir/file")?;
    sync_dir("dir")
}

fn a_file_is_replaced(sim: &Sim, syncs: bool) -> io::Result<()> {
    sim.create("dir/file", 40);
    let ended = sim.crash_during(|| replace(&[7; 40], syncs));
    let there = sim.contents("dir/file").expect("one of the two");
    assert!(there == [0; 40] || there == [7; 40], "{there:?}");
    assert!(!matches!(ended, Some(Ok(()))) || there == [7; 40], "it was acknowledged");
    Ok(())
}

#[test]
fn file_replacement_is_atomic() {
    // E15, E17: replacing a file is atomic with the sync, and not without it, on every tape.
    let disk = disk().faults(Faults::none()).latency(Latency::fixed(Duration::from_micros(50)));
    let tapes = disk.explore_all(|sim| a_file_is_replaced(sim, true)).unwrap();
    let failure = disk.explore_all(|sim| a_file_is_replaced(sim, false)).unwrap_err();
    // The name is there, and its file is empty, or has zeroes.
    assert!(tapes > 100 && failure.nonzero_choices <= 3, "{tapes} tapes; {failure}");
}

#[test]
fn files_open_at_a_crash_fail() {
    // E17: after a crash, requests in flight and later ones on files opened before fail; files
    // opened afterwards work.
    Simulation::new().run(0..50, |sim| {
        let old = sim.create("file", 512);
        let reader = spawn({
            let old = sim.open("file")?;
            move || old.read_at(&mut [0; 512], 0)
        });
        yield_now();
        sim.crash();
        let errno = |error: io::Error| error.os_code().unwrap();
        assert_eq!(errno(reader.join().unwrap().unwrap_err()), libc::EIO);
        assert_eq!(errno(old.write_at(b"x", 0).unwrap_err()), libc::EIO);
        assert_eq!(errno(old.len().unwrap_err()), libc::EIO);
        assert_eq!(errno(old.sync_all().unwrap_err()), libc::EIO);
        let new = sim.open("file")?;
        new.write_at(b"x", 0)?;
        assert_eq!(sim.contents("file").unwrap()[0], b'x');
        Ok(())
    });
}

#[test]
fn failed_sync_saves_nothing_later() {
    // E17: code that retries a failed sync and trusts the result loses its data, as on Linux.
    let retries = |sim: &Sim| {
        let file = sim.create("file", 8);
        file.write_at(&[7; 8], 0)?;
        sim.inject(Fault::Error(libc::EIO));
        file.sync_data().unwrap_err();
        file.sync_data()?;
        sim.crash();
        assert_eq!(sim.contents("file").unwrap(), [7; 8]);
        Ok(())
    };
    let failure = disk().search(0..100, retries).unwrap_err();
    assert_eq!(failure.nonzero_choices, 1, "{failure}");
}

#[test]
fn panic_after_the_crash_is_ignored() {
    // E17: a panic after the crash is ignored, since the program is already dead; a panic before it
    // is a failure.
    let kept = Simulation::new().crash_rate(1.0).run(0..20, |sim| {
        let file = sim.create("file", 8);
        let ended = sim.crash_during(|| file.write_at(&[7; 8], 0).unwrap());
        assert_eq!(ended, None);
        Ok(())
    });
    assert_eq!(kept, 20);
    let failure = Simulation::new().search(0..1, |sim| {
        sim.crash_during(|| panic!("alive"));
        Ok(())
    });
    assert_eq!(failure.unwrap_err().message, "alive");
}
