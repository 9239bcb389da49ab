//! Every tape of up to three requests: all that the kernel can do to them, enumerated.
//!
//! One, two or three coroutines start one request of two bytes each together, with room for one,
//! two or three in flight. This exhausts *every order*: in which they complete, how many within
//! which submit, and how many before the loop wakes. Combined with each order, at every possible
//! place, is each of these faults: "try again" and an error in place of a submit, a submit of each
//! part, a short transfer (its rest is one more request, which can fail like any other), `EIO` and
//! `ENOSPC`, a sleep that ends without a cause, a cancel that stops its request, or does not.
//!
//! The number of tapes multiplies by about ten with each fault in a run, and by eight if each of
//! three may be a read or a write. So the full combination is covered for few faults, and more
//! faults where there is less of something else:
//!
//! | the coroutines | reads or writes | faults in a run | tapes |
//! |---|---|---|---|
//! | apart | each | at most one, of any kind | 19,374 |
//! | apart | alternating | at most two, of any kind | 30,796 |
//! | two of them under one lock; one that polls until the others are done | alternating | at most two, of any kind | 46,462 |
//! | each in a plug; one of them cancelled, each at each of three moments | alternating | at most one, of any kind | 18,142 |
//! | two, apart, room for one or two | alternating | at most four, of any kind | 19,766 |
//! | apart | each | any number of errors | 12,530 |
//! | apart | alternating | any number of short transfers | 26,522 |
//!
//! Without `--release` only the fifth row is tested, with at most three faults.
//!
//! Not exhausted: three requests with more faults than that; and completions while the loop looks
//! at the ring and neither submits nor sleeps. With one more fault in the first five rows, 1.1
//! million tapes: `CORALIO_SIM_FAULTS=1 cargo test --release --test simulation every`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::env;
use std::io;
use std::rc::Rc;

use coralio::context::AioContext;
use coralio::driver::plug;
use coralio::simulate::{Faults, Latency, Sim, Simulation};
use coralio::sync::CoMutex;
use coralio::{File, JoinHandle, spawn, yield_now};

use crate::program::nothing_waits_for_a_plug;
use crate::small;

/// How the coroutines depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// They do not.
    Apart,
    /// The first two exclude each other by a lock.
    Locked,
    /// The last one, when it is done, polls until all others are.
    Polls,
    /// Each holds a plug until it is done.
    Plugged,
    /// One of them is cancelled, immediately or one or two iterations later.
    Cancelled,
}

/// Whether each is a read or a write, or they alternate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kinds {
    Each,
    InTurns,
}

/// Reads or writes two bytes of a file.
fn transfer(file: &File, writes: bool, at: u64) -> io::Result<usize> {
    if writes { file.write_at(&[7; 2], at) } else { file.read_at(&mut [1; 2], at) }
}

/// Does the same as `transfer` in leaked memory, which is reused afterwards: an engine that does
/// not wait for a cancelled request may then write to it.
fn transfer_in_leaked_memory(file: &File, writes: bool, at: u64) -> io::Result<usize> {
    let memory = Box::leak(Box::new([7; 2]));
    let address = memory.as_mut_ptr();
    let done = if writes { file.write_at(memory, at) } else { file.read_at(memory, at) };
    // SAFETY: leaked, so valid forever, and without any other reference to it.
    unsafe { address.write_bytes(0x11, 2) };
    done
}

/// Makes one to `most` requests together.
pub fn run(sim: &Sim, shape: Shape, kinds: Kinds, most: u32) -> io::Result<()> {
    let file = Rc::new(sim.create("data", 64));
    let lock = Rc::new(CoMutex::new(()));
    let requests = most - sim.choose(most);
    let mut tasks: Vec<(bool, JoinHandle<io::Result<usize>>)> = Vec::new();
    for number in 0..requests {
        let writes = if kinds == Kinds::Each { sim.choose(2) == 0 } else { number % 2 == 0 };
        let (file, lock, at) = (Rc::clone(&file), Rc::clone(&lock), u64::from(number) * 16);
        let others: Vec<_> = tasks.iter().map(|(_, task)| task.coroutine()).collect();
        let task = spawn(move || match shape {
            Shape::Apart => transfer(&file, writes, at),
            Shape::Locked => {
                let _turn = (number < 2).then(|| lock.lock());
                transfer(&file, writes, at)
            }
            Shape::Polls => {
                let done = transfer(&file, writes, at);
                while number + 1 == requests && others.iter().any(|other| !other.has_ended()) {
                    AioContext::current().expect("within its run").poll(true);
                }
                done
            }
            Shape::Plugged => {
                let _plug = plug()?;
                transfer(&file, writes, at)
            }
            Shape::Cancelled => transfer_in_leaked_memory(&file, writes, at),
        });
        tasks.push((writes, task));
    }
    if shape == Shape::Cancelled {
        let who = sim.choose(requests) as usize;
        (0..sim.choose(3)).for_each(|_| yield_now());
        tasks[who].1.cancel();
    }
    for (number, (writes, task)) in tasks.into_iter().enumerate() {
        // A short transfer is continued, so the result is all or an error.
        if let Ok(done) = task.join().unwrap() {
            assert_eq!(done, 2);
            assert_eq!(sim.contents("data").unwrap()[number * 16], if writes { 7 } else { 0 });
        }
    }
    if shape == Shape::Plugged { nothing_waits_for_a_plug(sim, &file) } else { Ok(()) }
}

/// Returns every fault, at most `most` of them per run; the order is separate.
pub fn faults(most: u32) -> Faults {
    let of_submits = Faults::none().refused(0.5).invalid(0.5).partial(0.5);
    of_submits.short(0.5).errors(0.5).early(0.5).cancelled(0.5).max_faults(most)
}

pub fn machine(depth: u32, faults: Faults) -> Simulation {
    small().queue_depth(depth).latency(Latency::all_orders()).faults(faults)
}

/// Returns how many more faults to add to those of the table.
fn more() -> u32 {
    env::var("CORALIO_SIM_FAULTS").map_or(0, |text| text.parse().expect("CORALIO_SIM_FAULTS is a number"))
}

/// Enumerates all tapes at each depth, and prints and returns their number.
fn exhaust(what: &str, faults: &Faults, f: impl Fn(&Sim) -> io::Result<()>) -> u64 {
    let tapes = [1, 2, 3].map(|depth| machine(depth, faults.clone()).explore_all(&f).unwrap());
    eprintln!("{what}: {tapes:?} tapes at depth 1, 2 and 3");
    tapes.iter().sum()
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes seconds with --release, a minute without")]
fn every_tape_of_reads_and_writes_passes() {
    // E2-E10, E17: every order, each request a read or a write, and one fault anywhere.
    let tapes = exhaust("each a read or a write", &faults(1 + more()), |sim| run(sim, Shape::Apart, Kinds::Each, 3));
    assert!(tapes > 19_000);
}

/// Enumerates the tapes of alternating reads and writes with at most `most` faults.
fn exhaust_shape(shape: Shape, most: u32) -> u64 {
    exhaust(&format!("{shape:?}"), &faults(most + more()), |sim| run(sim, shape, Kinds::InTurns, 3))
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes seconds with --release, a minute without")]
fn every_tape_of_two_faults_passes() {
    // E2-E10, E17: every order, and two faults anywhere.
    assert!(exhaust_shape(Shape::Apart, 2) > 30_000);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes seconds with --release, a minute without")]
fn every_tape_of_dependent_requests_passes() {
    // E2-E10, E17, S1, X2: coroutines that wait for each other by a lock or in a nested poll; every
    // order, and two faults anywhere.
    assert!([Shape::Locked, Shape::Polls].map(|shape| exhaust_shape(shape, 2)).iter().sum::<u64>() > 45_000);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes seconds with --release, a minute without")]
fn every_tape_of_plugs_and_cancels_passes() {
    // E3, E11, E13, E17: plugs, and each request cancelled while pending, in flight or done,
    // stopped or not; every order, and one fault anywhere.
    assert!([Shape::Plugged, Shape::Cancelled].map(|shape| exhaust_shape(shape, 1)).iter().sum::<u64>() > 18_000);
}

#[test]
fn every_tape_of_two_requests_passes() {
    // E2-E10, E17: every order of two requests, and four faults anywhere; without --release, three.
    let (most, expected) = if cfg!(debug_assertions) { (3, 4_000) } else { (4, 19_000) };
    let two = |sim: &Sim| run(sim, Shape::Apart, Kinds::InTurns, 2);
    let tapes = [1, 2].map(|depth| machine(depth, faults(most + more())).explore_all(two).unwrap());
    eprintln!("two requests: {tapes:?} tapes at depth 1 and 2");
    assert!(tapes.iter().sum::<u64>() > expected);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes seconds with --release, a minute without")]
fn every_outcome_of_each_request_occurs() {
    // E10, E17: errors and short transfers without a limit on their number, in every order.
    let errors = exhaust("errors", &Faults::none().errors(0.5), |sim| run(sim, Shape::Apart, Kinds::Each, 3));
    let short = exhaust("short", &Faults::none().short(0.5), |sim| run(sim, Shape::Apart, Kinds::InTurns, 3));
    assert!(errors > 12_000 && short > 26_000);
}

#[test]
fn all_orders_visits_each_order_once() {
    // E17: three requests in one submit have six orders, and eight ways to have some complete
    // within it and the rest in one sleep or several; each combination occurs once.
    let seen = RefCell::new(BTreeSet::new());
    // With room for a fourth, so that the loop submits.
    let tapes = machine(4, Faults::none()).explore_all(|sim| {
        let file = Rc::new(sim.create("data", 64));
        let order = Rc::new(RefCell::new(Vec::new()));
        let tasks = [0, 1, 2].map(|number| {
            let (file, order) = (Rc::clone(&file), Rc::clone(&order));
            spawn(move || {
                file.read_at(&mut [0; 2], number * 16).unwrap();
                order.borrow_mut().push((number, coralio::driver::stats().sleeps));
            })
        });
        tasks.into_iter().for_each(|task| task.join().unwrap());
        assert!(seen.borrow_mut().insert(order.take()), "it was there before");
        Ok(())
    });
    assert_eq!((tapes.unwrap(), seen.borrow().len()), (48, 48));
}
