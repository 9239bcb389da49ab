//! The production engine and files on the simulated backend (rule E17): every tape of a few
//! requests, and many random ones.
//!
//! ```sh
//! CORALIO_SIM_FAULTS=1 cargo test --release --test simulation every                # more tapes of a few requests
//! CORALIO_SIM_RUNS=10000000 cargo test --release --test simulation random_tapes    # a long run
//! CORALIO_SIM_SEED=17 cargo test --test simulation random_tapes                    # one of them
//! ```

mod commit;
mod crash;
mod disk;
mod few;
mod key_value_store;
mod mutants;
mod program;
mod replace;
mod search;
mod time;

use std::env;

use coralio::simulate::{Faults, Simulation};
use program::Size;

/// Returns faults of every kind at low rates, errors included.
pub fn harsh() -> Faults {
    Faults::harmless().invalid(0.05).errors(0.05)
}

/// Returns a disk with small sectors and a shallow queue.
pub fn small() -> Simulation {
    Simulation::new().sector_size(16).queue_depth(3).stack_size(64 << 10)
}

/// Returns the number of random tapes: fewer where they are slow.
fn runs() -> u64 {
    let number = |name| Some(env::var(name).ok()?.parse::<u64>().unwrap_or_else(|error| panic!("{name}: {error}")));
    let most = if cfg!(debug_assertions) { 2_000 } else { 100_000 };
    number("CORALIO_SIM_RUNS").unwrap_or(most / number("CORALIO_TEST_DIVISOR").unwrap_or(1))
}

#[test]
fn random_tapes_pass() {
    // E2-E11, E13, E17: the data equals the model and each run passes the checks, with and without
    // errors, at a queue depth of 1 too
    let size = Size { workers: 4, steps: 5 };
    let kinds =
        [small(), small().faults(harsh()), small().queue_depth(1).faults(harsh()), small().faults(Faults::none())];
    let (runs, mut from) = (runs(), 0);
    for (kind, share) in kinds.iter().zip([4, 4, 1, 1]) {
        let until = from + runs * share / 10;
        kind.run(from..until, |sim| program::run(sim, size));
        from = until;
    }
}

#[test]
fn random_tapes_of_lone_requests_pass() {
    // E2-E11, E13, E17: the same for few coroutines and many requests, most of which complete within
    // their submit: a coroutine that makes one at a time does not wait for the loop
    let kind = small().faults(harsh().at_once(0.8));
    kind.run(0..runs() / 10, |sim| program::run(sim, Size { workers: 2, steps: 60 }));
}
