//! The bug of 2016, where it was met: a qcow2 image that is read through native AIO, three requests at a time, and a lock on its
//! tables. Each historic guard fails here, in this very code, on some seed; today's does not.

#![allow(unsafe_code)]

mod common;

use std::io;
use std::process::Command;
use std::rc::Rc;

use coralio_aio::policy::{Current, OnCompletion, Policy};
use coralio_aio::simulate::{Faults, Sim, Simulation};
use coralio_aio::{AlignedBuf, spawn};
use coralio_qcow2::{CreateOptions, Options, Qcow2, open};

/// Bytes of a cluster; an L2 table has 64 entries then, for 32 KiB of the disk.
const CLUSTER: u64 = 512;
const TABLE: u64 = 64 * CLUSTER;
/// The disk: three L2 tables.
const SIZE: u64 = 3 * TABLE;
/// Seeds that are tried.
const SEEDS: u64 = 2000;

/// A completion enters the coroutine that waits for it.
struct July2016;

// SAFETY: it reaps under the lock, and waits for what it has cancelled.
unsafe impl Policy for July2016 {
    const ON_COMPLETION: OnCompletion = OnCompletion::Enter;
}

/// It does, unless that is the one that runs.
struct September2016;

// SAFETY: as above.
unsafe impl Policy for September2016 {
    const ON_COMPLETION: OnCompletion = OnCompletion::EnterUnlessCurrent;
}

/// What is at this offset.
fn byte(offset: u64) -> u8 {
    (offset / CLUSTER % 251) as u8
}

/// Three requests, of an image none of whose tables is in memory: two of them want the same one, and the first holds the lock while
/// it reads it. Half of what the kernel gets is done within its submit.
fn three_requests(sim: &Sim) -> io::Result<()> {
    // Nothing completes within submit while the image is made: that would fail too, and is not what this is about.
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

/// A queue of two: with the second request a batch is full, and goes at once, from the stack of whoever has made it.
fn machine<P: Policy>() -> Simulation {
    Simulation::new().depth(2).policy::<P>()
}

fn search<P: Policy>() {
    let told = (0..SEEDS).inspect(|seed| eprintln!("seed {seed}"));
    let found = machine::<P>().most_shrinking(0).search(told, three_requests);
    panic!("{}", found.map_or_else(|failure| failure.message, |runs| format!("{runs} runs, and none fails")));
}

/// Says in a child process which guard is to be tried.
const GUARD: &str = "CORALIO_QCOW2_GUARD";

/// In a process of its own, since the failure leaves coroutines behind that cannot be unwound in peace. Returns what it said.
fn in_child(test: &str, guard: &str) -> String {
    let me = std::env::current_exe().unwrap();
    let child = Command::new(me).args(["--exact", test, "--nocapture"]).env(GUARD, guard).output().unwrap();
    assert!(!child.status.success(), "{guard}: none of {SEEDS} seeds fails");
    String::from_utf8_lossy(&child.stderr).into_owned()
}

#[test]
fn each_guard_of_2016_fails_in_this_code() {
    // H1, H2: recursive entry, by a completion that is reaped within the submit of another request
    match std::env::var(GUARD).as_deref() {
        Ok("july") => return search::<July2016>(),
        Ok("september") => return search::<September2016>(),
        _ => {}
    }
    for guard in ["july", "september"] {
        let said = in_child("each_guard_of_2016_fails_in_this_code", guard);
        let seed = said.lines().rfind(|line| line.starts_with("seed ")).unwrap_or("no seed");
        assert!(said.contains("recursive entry"), "{guard}: {said}");
        eprintln!("{guard} 2016: recursive entry, {seed}");
    }
}

#[test]
fn today_none_does() {
    // E6: on the same seeds
    machine::<Current>().run(0..SEEDS, three_requests);
}
