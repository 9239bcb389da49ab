//! The key-value store of `examples/store` under power failures: it keeps its promises, and with any
//! one of seven steps left out it does not.

#![allow(dead_code)] // the store's files contain code that only its program uses

use clap::ValueEnum;

#[path = "../../examples/store/crash_test.rs"]
mod crash_test;
#[path = "../../examples/store/record.rs"]
mod record;
#[path = "../../examples/store/store.rs"]
mod store;

use crash_test::{machine, survives};
use store::Flaw;

#[test]
fn store_survives_power_failures() {
    // E17, E20, E23: after power failures, failed requests and restarts, each key has the value that
    // was acknowledged last, or one put since
    machine().run(0..if cfg!(debug_assertions) { 300 } else { 10_000 }, |sim| survives(sim, None));
}

#[test]
fn each_flaw_of_the_store_is_found() {
    // E17: each of seven steps left out of the store is found within 1,000 seeds
    assert_eq!(Flaw::value_variants().len(), 7);
    for &flaw in Flaw::value_variants() {
        let found = machine().max_shrink_runs(0).search(0..1000, |sim| survives(sim, Some(flaw)));
        let failure = found.err().unwrap_or_else(|| panic!("{flaw:?} is not found"));
        println!("{flaw:?}: found by {} runs: {}", failure.run, failure.message);
    }
}
