//! Group commit: one sync for many writers, and no acknowledged record is ever lost.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::rc::Rc;

use coralio::commit::GroupCommit;
use coralio::fs::remove_file;
use coralio::simulate::{Fault, Faults, Sim, Simulation, simulate};
use coralio::task::{Cancelled, OsCode};
use coralio::{File, run, spawn, yield_now};

/// How a log makes a batch durable at an offset.
type Commit = fn(&File, &[u8], u64) -> io::Result<()>;

fn sound(file: &File, batch: &[u8], end: u64) -> io::Result<()> {
    file.write_at(batch, end)?;
    file.sync_data()
}

/// Runs writers that append numbers, until the power fails. Each acknowledged number must be in the
/// file.
fn acknowledged_numbers_survive(sim: &Sim, commit: Commit) -> io::Result<()> {
    drop(sim.create("log", 0));
    let acknowledged = Rc::new(RefCell::new(Vec::new()));
    sim.crash_during(|| {
        let (file, mut end) = (sim.open("log")?, 0);
        let log = Rc::new(GroupCommit::new(move |batch: &mut Vec<u8>| {
            commit(&file, batch, end)?;
            end += batch.len() as u64;
            batch.clear();
            Ok(())
        }));
        let next = Rc::new(Cell::new(0));
        let writer = |pauses| {
            let (log, next, acknowledged) = (Rc::clone(&log), Rc::clone(&next), Rc::clone(&acknowledged));
            spawn(move || {
                for _ in 0..4 {
                    (0..pauses).for_each(|_| yield_now());
                    let number = log.append(|batch| {
                        let number: u64 = next.replace(next.get() + 1);
                        batch.extend((number + 1).to_le_bytes());
                        number
                    })?;
                    acknowledged.borrow_mut().push(number);
                }
                io::Result::Ok(())
            })
        };
        let writers: Vec<_> = (0..4).map(|pauses| writer(pauses * 3)).collect();
        writers.into_iter().try_for_each(|writer| writer.join().unwrap())
    });
    let there = sim.contents("log").unwrap();
    for &number in acknowledged.borrow().iter() {
        let found = there.get(number as usize * 8..).and_then(|rest| rest.get(..8));
        assert_eq!(found, Some(&(number + 1).to_le_bytes()[..]), "record {number} was acknowledged");
    }
    Ok(())
}

/// Returns a disk on which some requests fail.
fn failing() -> Simulation {
    Simulation::new().sector_size(16).faults(Faults::harmless().errors(0.1)).max_shrink_runs(200)
}

#[test]
fn acknowledged_record_survives_a_crash() {
    // E23, E17: after a power failure at any moment, and with failed writes and syncs, every
    // acknowledged record is there
    simulate(0..500, |sim| acknowledged_numbers_survive(sim, sound));
    failing().run(0..500, |sim| acknowledged_numbers_survive(sim, sound));
}

#[test]
fn early_acknowledgement_is_detected() {
    // E23: a commit that does not sync, or syncs before it writes, is found to lose records
    let unsynced: Commit = |file, batch, end| file.write_at(batch, end).map(drop);
    let too_early: Commit = |file, batch, end| {
        file.sync_data()?;
        file.write_at(batch, end).map(drop)
    };
    for commit in [unsynced, too_early] {
        let failure = Simulation::new().search(0..100, |sim| acknowledged_numbers_survive(sim, commit)).unwrap_err();
        assert!(failure.message.contains("was acknowledged"), "{failure}");
    }
}

#[test]
fn retried_failed_sync_is_detected() {
    // E23: a commit that syncs again after a failed sync is found to lose records: the second sync
    // succeeds, without the data of the first
    let retried: Commit = |file, batch, end| {
        file.write_at(batch, end)?;
        file.sync_data().or_else(|_| file.sync_data())
    };
    let failure = failing().search(0..500, |sim| acknowledged_numbers_survive(sim, retried)).unwrap_err();
    assert!(failure.message.contains("was acknowledged"), "{failure}");
}

#[test]
fn failed_sync_poisons_the_group() {
    // E23: after a failed sync every call returns the original error, also of writers that waited
    // for the next batch, and nothing is synced again
    Simulation::new().faults(Faults::none()).run(0..1, |sim| {
        let file = Rc::new(sim.create("file", 512));
        let syncs = Rc::new(GroupCommit::of_file(Rc::clone(&file)));
        syncs.sync_or_poison()?;
        sim.inject(Fault::Error(libc::EIO));
        let waits = |syncs: &Rc<GroupCommit<(), _>>| {
            let syncs = Rc::clone(syncs);
            spawn(move || syncs.sync_or_poison().unwrap_err())
        };
        let first = [waits(&syncs), waits(&syncs)];
        (0..3).for_each(|_| yield_now());
        let next = waits(&syncs);
        let mut errors: Vec<_> = first.into_iter().chain([next]).map(|waits| waits.join().unwrap()).collect();
        assert!(syncs.is_poisoned());
        errors.push(syncs.sync_or_poison().unwrap_err());
        errors.push(syncs.append(|()| panic!("adds nothing")).unwrap_err());
        for error in errors {
            assert_eq!(error.os_code(), Some(libc::EIO));
            let text = error.to_string();
            assert!(text.starts_with("nothing more is acknowledged after a failed commit: syncing: "), "{text}");
        }
        assert_eq!(syncs.commits(), 1);
        file.sync_data()?;
        syncs.sync_or_poison().unwrap_err();
        Ok(())
    });
}

#[test]
fn one_commit_serves_all_that_arrived_before_it() {
    // E23: writers that are ready share one commit; one that arrives during it is in the next, and is
    // not acknowledged before that
    let path = std::env::temp_dir().join(format!("coralio-commit-{}", std::process::id()));
    run(|| {
        let file = File::options().write(true).create(true).open(&path).unwrap();
        let during = Rc::new(Cell::new(0));
        let group = Rc::new(GroupCommit::new({
            let during = Rc::clone(&during);
            move |batch: &mut Vec<u32>| {
                during.set(during.get() + 1);
                (0..5).for_each(|_| yield_now());
                assert!(!batch.is_empty());
                batch.clear();
                file.sync_data()
            }
        }));
        let writer = |number| {
            let group = Rc::clone(&group);
            spawn(move || {
                group.append(|batch| batch.push(number)).unwrap();
                group.commits()
            })
        };
        let first: Vec<_> = (0..32).map(writer).collect();
        while during.get() == 0 {
            yield_now();
        }
        let second: Vec<_> = (0..32).map(writer).collect();
        assert!(first.into_iter().all(|writer| writer.join().unwrap() >= 1));
        assert!(second.into_iter().all(|writer| writer.join().unwrap() == 2));
        assert_eq!((group.commits(), during.get()), (2, 2));
        remove_file(&path).unwrap();
    });
}

#[test]
fn cancelled_writer_fails_no_other() {
    // E23, E11: a cancelled coroutine adds nothing; one that is cancelled while it leads completes the
    // commit
    simulate(0..20, |sim| {
        let file = Rc::new(sim.create("file", 512));
        let syncs = Rc::new(GroupCommit::of_file(file));
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let syncs = Rc::clone(&syncs);
                spawn(move || {
                    syncs.sync_or_poison()?;
                    syncs.append(|()| panic!("adds nothing"))
                })
            })
            .collect();
        (0..2).for_each(|_| yield_now());
        writers.iter().for_each(|writer| writer.cancel());
        for writer in writers {
            assert!(Cancelled::is_cause_of(&writer.join().unwrap().unwrap_err()));
        }
        assert_eq!((syncs.commits(), syncs.is_poisoned()), (1, false));
        Ok(())
    });
}

#[test]
fn panic_of_a_commit_poisons_the_group() {
    // E23: a panic reaches the writer that leads, and the others get an error
    run(|| {
        let group = Rc::new(GroupCommit::new(|(): &mut ()| -> io::Result<()> { panic!("in the commit") }));
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let group = Rc::clone(&group);
                spawn(move || group.sync_or_poison())
            })
            .collect();
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        assert_eq!(ended.iter().filter(|ended| ended.is_err()).count(), 1);
        for error in ended.into_iter().flatten() {
            let error = error.unwrap_err();
            assert!(error.kind() == ErrorKind::Other && error.to_string().contains("panicked"), "{error}");
        }
        assert!(group.is_poisoned() && group.sync_or_poison().is_err());
    });
}
