//! Power loss at any time, where each sector that was not synced has old, new or torn content. The
//! image must be consistent afterwards and contain the flushed data.
//!
//! ```sh
//! CORALIO_QCOW2_CRASHES=10000 cargo test --release -p coralio-qcow2 --test crash    # per test
//! CORALIO_SIM_SEED=17 cargo test -p coralio-qcow2 --test crash                      # repeats one seed
//! ```

mod common;

use std::cell::RefCell;
use std::io;
use std::process::Command;
use std::rc::Rc;

use common::check::{Leaks, check};
use common::{Scratch, has_qemu};
use coralio::simulate::{Faults, Sim, Simulation};
use coralio::{AlignedBuf, spawn};
use coralio_qcow2::{CreateOptions, Format, Image, Zeroes, open};

/// The unit in which the disk is tracked and written.
const GRAIN: u64 = 64;
const WORKERS: u64 = 3;
/// `qemu-img check` also checks one image in this number, chosen at random.
const SAMPLE: u32 = 100;

fn crashes() -> u64 {
    let number = |name| Some(std::env::var(name).ok()?.parse::<u64>().expect("a number"));
    let most = if cfg!(debug_assertions) { 120 } else { 2000 };
    number("CORALIO_QCOW2_CRASHES").unwrap_or(most / number("CORALIO_TEST_DIVISOR").unwrap_or(1))
}

/// The values that a grain may have after a crash.
#[derive(Clone)]
struct Grain {
    /// Number, value, and whether the write has returned; oldest first.
    values: Vec<(u64, u8, bool)>,
}

/// The expected values of all grains. Kept outside the simulated crash.
struct Watch {
    grains: Vec<Grain>,
    next: u64,
}

impl Watch {
    fn new(size: u64, value: impl Fn(u64) -> u8) -> Watch {
        let grain = |n| Grain { values: vec![(0, value(n * GRAIN), true)] };
        Watch { grains: (0..size / GRAIN).map(grain).collect(), next: 1 }
    }

    fn of(&mut self, offset: u64, len: u64) -> &mut [Grain] {
        &mut self.grains[(offset / GRAIN) as usize..((offset + len) / GRAIN) as usize]
    }

    fn begin(&mut self, value: u8, offset: u64, len: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        self.of(offset, len).iter_mut().for_each(|grain| grain.values.push((number, value, false)));
        number
    }

    fn end(&mut self, number: u64, offset: u64, len: u64) {
        let ours = |grain: &mut Grain| {
            grain.values.iter_mut().filter(|(at, ..)| *at == number).for_each(|(_, _, done)| *done = true);
        };
        self.of(offset, len).iter_mut().for_each(ours);
    }

    /// Returns for each grain the newest value that a flush starting now makes durable.
    fn done(&self) -> Vec<u64> {
        let newest = |grain: &Grain| grain.values.iter().filter(|(.., done)| *done).map(|(at, ..)| *at).max();
        self.grains.iter().map(|grain| newest(grain).expect("the durable one")).collect()
    }

    fn flushed(&mut self, done: &[u64]) {
        for (grain, &from) in self.grains.iter_mut().zip(done) {
            grain.values.retain(|&(at, ..)| at >= from);
        }
    }

    /// Checks that each byte of the disk has a permitted value, which becomes its only expected
    /// value.
    fn check(&mut self, bytes: &[u8]) {
        for (n, (grain, bytes)) in self.grains.iter_mut().zip(bytes.chunks(GRAIN as usize)).enumerate() {
            // A short write may have ended anywhere.
            let mut found = bytes.to_vec();
            found.sort_unstable();
            found.dedup();
            for value in &found {
                let allowed = grain.values.iter().any(|(_, allowed, _)| allowed == value);
                assert!(allowed, "at {}: found {value}, allowed are {:?}", n as u64 * GRAIN, grain.values);
            }
            grain.values = found.into_iter().map(|value| (0, value, true)).collect();
        }
    }
}

/// Performs one operation of a worker, which has its own clusters, and its own grains in the shared
/// clusters.
fn step(sim: &Sim, image: &dyn Image, watch: &RefCell<Watch>, worker: u64, setup: Setup) -> io::Result<()> {
    let Setup { cluster, clusters, .. } = setup;
    let choose = |bound: u64| u64::from(sim.choose(bound as u32));
    if choose(6) == 1 {
        let done = watch.borrow().done();
        image.flush()?;
        watch.borrow_mut().flushed(&done);
        return Ok(());
    }
    let grains = cluster / GRAIN;
    // Of four clusters, the first is shared, and every third grain in it is this worker's; the
    // other three clusters belong to one worker.
    let group = choose(clusters / 4);
    let own = (group / WORKERS * WORKERS + worker) % (clusters / 4 / WORKERS * WORKERS) * 4 + 1;
    let (value, offset, len) = match choose(3) {
        0 => {
            let grain = choose((grains - worker).div_ceil(WORKERS)) * WORKERS + worker;
            (true, group * 4 * cluster + grain * GRAIN, GRAIN)
        }
        1 => {
            let first = choose(grains);
            (true, own * cluster + first * GRAIN, (1 + choose(grains - first)) * GRAIN)
        }
        _ => (choose(3) > 0, own * cluster, cluster * (1 + choose(3))),
    };
    let new = if value { 1 + choose(200) as u8 } else { 0 };
    let number = watch.borrow_mut().begin(new, offset, len);
    match value {
        true => {
            // Aligned, because the address decides whether the request is copied through an aligned
            // buffer, and the same tape must give the same run.
            let mut data = AlignedBuf::new(len as usize, 4096);
            data.fill(new);
            image.write_at(&data, offset)?;
        }
        false if choose(2) == 0 => image.discard(offset, len)?,
        false => image.write_zeroes(offset, len, Zeroes { keep_allocated: choose(2) == 0, fast: false })?,
    }
    watch.borrow_mut().end(number, offset, len);
    Ok(())
}

fn work(sim: &Sim, watch: &Rc<RefCell<Watch>>, setup: Setup, steps: u32) -> io::Result<()> {
    let image = open("image", &common::for_writing())?;
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| {
            let (sim, image, watch) = (sim.clone(), Rc::clone(&image), Rc::clone(watch));
            spawn(move || (0..steps).try_for_each(|_| step(&sim, &*image, &watch, worker, setup)))
        })
        .collect();
    workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
}

fn qemu_finds_no_corruption(bytes: &[u8]) {
    let folder = Scratch::new();
    std::fs::write(folder.path("image"), bytes).unwrap();
    // The backing file does not exist, and `check` does not open it.
    let output = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(folder.path("image")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // 3: only leaks.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

/// The properties of the images in a test.
#[derive(Clone, Copy)]
struct Setup {
    cluster: u64,
    version: u32,
    refcount_bits: u32,
    backed: bool,
    /// The size of the disk in bytes, and the number of its clusters that are used.
    size: u64,
    clusters: u64,
}

impl Setup {
    fn new(cluster: u64) -> Setup {
        Setup { cluster, version: 3, refcount_bits: 16, backed: false, size: cluster * 40, clusters: 40 }
    }
}

fn survives(sim: &Sim, setup: Setup, qemu: bool) -> io::Result<()> {
    let Setup { cluster, version, refcount_bits, backed, size, clusters } = setup;
    let watched = cluster * clusters;
    let backing = backed.then(|| {
        sim.create("base", watched / 2);
        sim.corrupt("base", 0, &vec![0xbb; (watched / 2) as usize]);
        ("base".to_owned(), Format::Raw)
    });
    let options = CreateOptions { cluster_size: cluster, version, refcount_bits, backing, ..CreateOptions::new(size) };
    sim.set_faults(Faults::none());
    coralio_qcow2::Qcow2::create("image", &options)?;
    let below = move |at| if backed && at < watched / 2 { 0xbb } else { 0 };
    let watch = Rc::new(RefCell::new(Watch::new(watched, below)));
    for round in 0..3 {
        sim.set_faults(if round == 1 { Faults::harmless().errors(0.02) } else { Faults::harmless() });
        let ended = sim.crash_during(|| work(sim, &watch, setup, 25));
        sim.set_faults(Faults::none());
        if let (Some(Err(error)), 0 | 2) = (&ended, round) {
            panic!("an operation failed without an injected fault: {error}");
        }
        let bytes = sim.contents("image").expect("it was made for good");
        let Leaks(_) = check(&bytes).unwrap_or_else(|why| panic!("corrupt: {why}"));
        if qemu && !backed && sim.choose(SAMPLE) == 1 {
            qemu_finds_no_corruption(&bytes);
        }
        let image = open("image", &common::for_writing())?;
        let mut bytes = AlignedBuf::new(watched as usize, 4096);
        image.read_at(&mut bytes, 0)?;
        watch.borrow_mut().check(&bytes);
    }
    Ok(())
}

fn crash_all(setup: Setup, crashes: u64) {
    let qemu = has_qemu();
    let machine = Simulation::new().crash_rate(0.01).stack_size(256 << 10).max_shrink_runs(300);
    // Each run has three crashes.
    let runs = machine.run(0..crashes.div_ceil(3), |sim| survives(sim, setup, qemu));
    eprintln!("{} crashes", runs * 3);
}

#[test]
fn crash_with_small_clusters_loses_nothing() {
    // qcow2: a table entry and the cluster it refers to reach the disk in an order that is safe
    // against crashes.
    crash_all(Setup::new(512), crashes());
}

#[test]
fn crash_while_refcount_blocks_are_created_loses_nothing() {
    // qcow2: with 64 clusters per refcount block, the refcount table only points to blocks that are
    // on disk.
    crash_all(Setup { refcount_bits: 64, size: 512 * 400, clusters: 400, ..Setup::new(512) }, crashes());
}

#[test]
fn crash_while_the_refcount_table_moves_loses_nothing() {
    // qcow2: the table has entries for 4096 clusters, of which all but 20 are in use, most by a
    // large L1 table.
    let l1 = 4096 - 20 - 66;
    crash_all(Setup { refcount_bits: 64, size: l1 * 64 * 64 * 512, ..Setup::new(512) }, crashes() / 10);
}

#[test]
fn crash_with_a_backing_file_loses_nothing() {
    // qcow2: data copied from the backing file is on disk before the tables refer to the copy;
    // otherwise durable data would be lost.
    crash_all(Setup { refcount_bits: 1, backed: true, ..Setup::new(2048) }, crashes());
}

#[test]
fn crash_of_a_version_2_image_loses_nothing() {
    // qcow2: without zero flags.
    crash_all(Setup { version: 2, ..Setup::new(1024) }, crashes());
}
