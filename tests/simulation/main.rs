//! The production engine and files on the simulated kernel (rule E17): every tape of a few requests, and many random ones.
//!
//! ```sh
//! CORALIO_SIM_RUNS=10000000 cargo test --release --test simulation random_tapes    # a long run
//! CORALIO_SIM_SEED=17 cargo test --test simulation random_tapes                    # one of them
//! ```

mod crash;
mod disk;
mod mutants;
mod program;
mod search;
mod teardown;
mod time;

use std::env;
use std::rc::Rc;
use std::time::Duration;

use coralio_aio::simulate::{Faults, Latency, Sim, Simulation};
use coralio_aio::{File, spawn};
use program::Size;

/// Everything goes wrong now and then, errors included.
pub fn harsh() -> Faults {
    Faults::harmless().invalid(0.05).errors(0.05)
}

/// Small sectors, few requests at once.
pub fn small() -> Simulation {
    Simulation::new().sector(16).depth(3).stack_size(64 << 10)
}

/// How many random tapes: fewer where they are slow.
fn runs() -> u64 {
    let number = |name| Some(env::var(name).ok()?.parse::<u64>().unwrap_or_else(|error| panic!("{name}: {error}")));
    let most = if cfg!(debug_assertions) { 5_000 } else { 100_000 };
    number("CORALIO_SIM_RUNS").unwrap_or(most / number("CORALIO_TEST_DIVISOR").unwrap_or(1))
}

#[test]
fn random_tapes() {
    // E2-E11, E13, E17: data equals the model, and each run passes the checks; with and without errors, by ring and by call
    let size = Size { workers: 4, steps: 5 };
    let kinds = [
        small(),
        small().faults(harsh()),
        small().depth(1).faults(harsh()).bad_ring(true),
        small().faults(Faults::none()),
    ];
    let (runs, mut from) = (runs(), 0);
    for (kind, share) in kinds.iter().zip([4, 4, 1, 1]) {
        let until = from + runs * share / 10;
        kind.run(from..until, |sim| program::run(sim, size));
        from = until;
    }
}

/// Up to three requests at once, each by a coroutine of its own.
fn few_requests(sim: &Sim, most: u32) -> std::io::Result<()> {
    let file = Rc::new(sim.create("data", 64));
    let requests = 1 + sim.choose(most) as usize;
    let tasks: Vec<_> = (0..requests)
        .map(|number| {
            let (file, writes, at) = (Rc::clone(&file), sim.choose(2) == 0, number as u64 * 16);
            let go = move |file: &File| if writes { file.write_at(&[7; 2], at) } else { file.read_at(&mut [1; 2], at) };
            (writes, spawn(move || go(&file)))
        })
        .collect();
    for (number, (writes, task)) in tasks.into_iter().enumerate() {
        // Short, it is carried on with: all or an error.
        let done = task.join().unwrap();
        assert!(done.as_ref().is_ok_and(|&done| done == 2) || done.is_err());
        let there = sim.contents("data").unwrap()[number * 16];
        assert!(there == if writes { 7 } else { 0 } || done.is_err());
    }
    Ok(())
}

#[test]
fn every_tape_of_three_requests() {
    // E2-E10, E17: whatever the kernel can do to them, with up to two faults, in every order.
    let latency = Latency::of([10, 20, 30].map(Duration::from_micros));
    let all = Faults::harmless().errors(0.5).invalid(0.5);
    let one = small().depth(2).latency(latency).faults(all.clone().most(1)).exhaust(|sim| few_requests(sim, 3));
    let latency = Latency::of([10, 20].map(Duration::from_micros));
    let two = small().depth(2).latency(latency).faults(all.most(2)).exhaust(|sim| few_requests(sim, 2));
    let (one, two) = (one.unwrap(), two.unwrap());
    eprintln!("{one} tapes with one fault, {two} of two requests with two");
}
