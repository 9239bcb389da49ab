//! Replacing a file under power failures: atomic and durable, and each of its syncs is needed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use coralio::File;
use coralio::fs::{WriteFlags, create_dir, hard_link, remove_dir_all, rename, replace_file, sync_dir, try_exists};
use coralio::simulate::{Faults, Latency, Sim, Simulation};

use crate::small;

const OLD: [u8; 40] = [0; 40];
const NEW: [u8; 40] = [7; 40];

/// The steps of `replace_file`, with one left out.
#[derive(Clone, Copy, PartialEq)]
enum Forgets {
    TheContents,
    TheDirectory,
}

fn replace(forgets: Forgets) -> io::Result<()> {
    let new = File::options().write(true).create_new(true).open("dir/new")?;
    new.write_at(&NEW, 0)?;
    if forgets != Forgets::TheContents {
        new.sync_all()?;
    }
    rename("dir/new", "dir/file")?;
    if forgets == Forgets::TheDirectory { Ok(()) } else { sync_dir("dir") }
}

fn survives(sim: &Sim, replace: impl Fn() -> io::Result<()>) -> io::Result<()> {
    sim.create("dir/file", OLD.len() as u64);
    let ended = sim.crash_during(replace);
    let there = sim.contents("dir/file").expect("old or new");
    assert!(there == OLD || there == NEW, "neither old nor new: {there:?}");
    assert!(!matches!(ended, Some(Ok(()))) || there == NEW, "acknowledged, and old");
    Ok(())
}

fn disk() -> Simulation {
    small().sector_size(8).torn_writes(false).faults(Faults::none()).latency(Latency::fixed(Duration::from_micros(50)))
}

#[test]
fn replaced_file_is_old_or_new_after_a_crash() {
    // E20, E17: after a power failure at any moment the contents are old or new, and new if that was
    // acknowledged: on every tape
    let tapes = disk().explore_all(|sim| survives(sim, || replace_file("dir/file", NEW))).unwrap();
    assert!(tapes > 100, "{tapes}");
    small().run(0..500, |sim| survives(sim, || replace_file("dir/file", NEW)));
}

#[test]
fn replacement_makes_the_same_run_each_time() {
    // E17: neither the process nor its earlier runs change a run: its names and its log repeat
    let run = |_: &Sim| {
        replace_file("dir/file", OLD)?;
        replace_file("dir/file", NEW)?;
        Err(io::Error::other("a failure, for its log"))
    };
    let [first, second] = [(); 2].map(|()| (small().fingerprint(1, run), small().search(1..2, run).unwrap_err().log));
    assert_eq!(first, second);
    assert!(first.1.contains(".coralio-1.tmp"), "{}", first.1);
}

#[test]
fn replacement_without_a_sync_is_detected() {
    // E20: without either of its syncs a crash shows a torn file, or the old one
    for (forgets, why) in
        [(Forgets::TheContents, "neither old nor new"), (Forgets::TheDirectory, "acknowledged, and old")]
    {
        let failure = disk().explore_all(|sim| survives(sim, || replace(forgets))).unwrap_err();
        assert!(failure.message.contains(why), "{failure}");
    }
}

#[test]
fn directory_changes_are_lost_until_synced() {
    // E19, E17: a created directory, a link and a removed tree may be undone by a crash until their
    // directory is synced, and not after
    let seen = |synced: bool| {
        let seen = RefCell::new(BTreeSet::new());
        let run = |sim: &Sim| {
            drop(sim.create("old/file", 8));
            create_dir("new")?;
            hard_link("old/file", "new/link")?;
            remove_dir_all("old")?;
            if synced {
                sync_dir("old")?;
            }
            sim.crash();
            let there = ["new", "new/link", "old/file"].map(|name| try_exists(name).unwrap());
            seen.borrow_mut().insert(there);
            Ok(())
        };
        disk().explore_all(run).unwrap();
        seen.into_inner().into_iter().collect::<Vec<_>>()
    };
    let done = [true, true, false];
    assert_eq!(seen(false), [[false, false, true], [true, false, true], done, [true, true, true]]);
    assert_eq!(seen(true), [done]);
}

#[test]
fn write_with_dsync_survives_a_crash() {
    // E22, E17: a write with DSYNC is durable when it returns, and one without is found to be not
    let search = |flags| {
        disk().search(0..200, |sim| {
            let file = sim.create("file", 8);
            if let Some(Ok(_)) = sim.crash_during(|| file.write_at_with(&[7; 8], 0, flags)) {
                assert_eq!(sim.contents("file").unwrap(), [7; 8], "acknowledged");
            }
            Ok(())
        })
    };
    search(WriteFlags::DSYNC).unwrap();
    assert!(search(WriteFlags::DONTCACHE).unwrap_err().message.contains("acknowledged"));
}
