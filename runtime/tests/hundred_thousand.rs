//! Many coroutines suspended at the same time, and the cost of each. In its own program, since it
//! measures the whole process.

mod common;

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use common::scaled;
use coralio_runtime::{AioContext, Coroutine, suspend};

fn status(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).expect("a field of /proc/self/status");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

/// Each of these tests measures the whole process, so they run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Asserts that `count` suspended coroutines fit under the default `vm.max_map_count`, with at most
/// 4.5 KiB each.
fn suspended(count: usize) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = (status("VmRSS:") + status("VmPTE:"), mappings());
    let begun = Instant::now();
    AioContext::run(|_| {
        // Without a vector of handles, which would count too.
        for _ in 0..count {
            Coroutine::new(suspend).enter();
        }
        let made = begun.elapsed();
        let (memory, pages, maps) = (status("VmRSS:"), status("VmPTE:"), mappings());
        let each = (memory + pages - before.0) as f64 / count as f64;
        println!(
            "{count} coroutines: {each:.2} KiB each, page tables {pages} KiB in all, {} mappings, {:.2} us each to make",
            maps - before.1,
            made.as_secs_f64() * 1e6 / count as f64
        );
        // In unoptimised code, stacks of some colours need a second page.
        let most = if cfg!(debug_assertions) { 6.0 } else { 4.6 };
        // With smaller counts the process's own memory dominates; instrumented builds have extra
        // memory.
        if count >= 100_000 && !cfg!(feature = "sanitizer") {
            assert!(maps < 65_530);
            assert!(each <= most || guards_cost_a_mapping(), "{each} KiB each");
        }
    });
    println!("{:.2} s from the first to the end of the context", begun.elapsed().as_secs_f64());
    assert!(cfg!(feature = "sanitizer") || mappings() <= before.1 + 8, "the stacks are given back with their context");
}

#[test]
fn hundred_thousand_coroutines_are_suspended_simultaneously() {
    // C12: 100,000 suspended coroutines fit under the default vm.max_map_count, with at most 4.5
    // KiB each
    suspended(scaled(100_000));
}

#[test]
#[ignore = "takes 5 GiB of memory, and Linux 6.13 or newer; `.ci/run` runs it where there are"]
fn million_coroutines_are_suspended_simultaneously() {
    // C12: so do a million, guard pages included
    suspended(1_000_000);
}

/// Returns whether the kernel is older than 6.13. In such kernels each guard page splits its mapping.
fn guards_cost_a_mapping() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (6, 13)
}
