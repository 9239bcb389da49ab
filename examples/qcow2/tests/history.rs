//! The bug of 2016 where it occurred: a qcow2 image that is read through native AIO, with three
//! concurrent requests and a lock on its tables. Each historical guard fails with this code on some
//! seed; today's guard does not.

#![allow(unsafe_code)]

mod common;

use std::io;
use std::process::Command;
use std::rc::Rc;

use coralio::guards::{AllGuards, Guards, WakeGuard};
use coralio::simulate::{Faults, Sim, Simulation};
use coralio::{AlignedBuf, spawn};
use coralio_qcow2::{CreateOptions, Options, Qcow2, open};

/// The cluster size in bytes; an L2 table then has 64 entries, which map 32 KiB of the disk.
const CLUSTER: u64 = 512;
const TABLE: u64 = 64 * CLUSTER;
/// The size of the disk: three L2 tables.
const SIZE: u64 = 3 * TABLE;
/// The number of seeds to try.
const SEEDS: u64 = 2000;

/// A completion enters the waiting coroutine.
struct July2016;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for July2016 {
    const WAKE_GUARD: WakeGuard = WakeGuard::None;
}

/// A completion enters the waiting coroutine unless that one is running.
struct September2016;

// SAFETY: as above.
unsafe impl Guards for September2016 {
    const WAKE_GUARD: WakeGuard = WakeGuard::EnterUnlessCurrent;
}

/// Returns the expected byte at this offset.
fn byte(offset: u64) -> u8 {
    (offset / CLUSTER % 251) as u8
}

/// Issues three requests to an image whose tables are not in memory. Two of them need the same
/// table, and the first holds the lock while reading it. Half of the requests complete during
/// submit.
fn three_requests(sim: &Sim) -> io::Result<()> {
    // No request completes during submit while the image is created: that would fail too, but is
    // not the subject of this test.
    sim.set_faults(Faults::none());
    Qcow2::create("image", &CreateOptions { cluster_size: CLUSTER, ..CreateOptions::new(SIZE) })?;
    let image = open("image", &common::for_writing())?;
    let mut all = AlignedBuf::new(SIZE as usize, 4096);
    all.iter_mut().enumerate().for_each(|(offset, place)| *place = byte(offset as u64));
    image.write_at(&all, 0)?;
    image.flush()?;
    drop(image);

    let image = open("image", &Options::default())?;
    sim.set_faults(Faults::none().at_once(0.5));
    let readers: Vec<_> = [0, 1, TABLE / CLUSTER]
        .map(|cluster| {
            let image = Rc::clone(&image);
            spawn(move || {
                let mut data = AlignedBuf::new(CLUSTER as usize, 4096);
                image.read_at(&mut data, cluster * CLUSTER)?;
                assert!(data.iter().all(|&found| found == byte(cluster * CLUSTER)), "cluster {cluster}");
                Ok(())
            })
        })
        .into();
    readers.into_iter().try_for_each(|reader| reader.join().expect("no reader panics"))
}

/// With a queue depth of two, the second request fills a batch, which is submitted immediately on
/// the stack of the requesting coroutine.
fn machine<G: Guards>() -> Simulation {
    Simulation::new().queue_depth(2).guards::<G>()
}

fn search<G: Guards>() {
    let told = (0..SEEDS).inspect(|seed| eprintln!("seed {seed}"));
    let found = machine::<G>().max_shrink_runs(0).search(told, three_requests);
    panic!("{}", found.map_or_else(|failure| failure.message, |runs| format!("{runs} runs without a failure")));
}

/// Tells a child process which guard to try.
const GUARD: &str = "CORALIO_QCOW2_GUARD";

/// Runs the test in a child process, because the failure leaves coroutines that cannot be unwound.
/// Returns the child's standard error.
fn in_child(test: &str, guard: &str) -> String {
    let me = std::env::current_exe().unwrap();
    let child = Command::new(me).args(["--exact", test, "--nocapture"]).env(GUARD, guard).output().unwrap();
    assert!(!child.status.success(), "{guard}: none of {SEEDS} seeds fails");
    String::from_utf8_lossy(&child.stderr).into_owned()
}

#[test]
fn each_guard_of_2016_fails_with_this_code() {
    // H1, H2: a completion reaped during the submit of another request enters recursively
    match std::env::var(GUARD).as_deref() {
        Ok("july") => return search::<July2016>(),
        Ok("september") => return search::<September2016>(),
        _ => {}
    }
    for guard in ["july", "september"] {
        let said = in_child("each_guard_of_2016_fails_with_this_code", guard);
        let seed = said.lines().rfind(|line| line.starts_with("seed ")).unwrap_or("no seed");
        assert!(said.contains("recursive entry"), "{guard}: {said}");
        eprintln!("{guard} 2016: recursive entry, {seed}");
    }
}

#[test]
fn current_guards_do_not_fail() {
    // E6: on the same seeds
    machine::<AllGuards>().run(0..SEEDS, three_requests);
}
