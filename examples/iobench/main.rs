//! Measures operations per second and the cost of each: random or sequential reads or writes with N
//! coroutines, each a simple loop of `read_at` or `write_at` with its own buffer.
//!
//! `--versus` compares with another implementation of the same work, in alternating rounds, and
//! reports the cost per operation of both. Start with the coroutines in `coralio_file.rs`.
//!
//! | `--versus` | opponent | in |
//! |---|---|---|
//! | `raw` | a bare loop on the kernel's interface, without coroutines | `raw.rs`, `raw_uring.rs`, `pool.rs` |
//! | `pread` | a simple thread pool | `pool.rs` |
//! | `tokio` | tokio's `File` | `tokio_file.rs` |
//! | `qemu` | `qemu-img bench` | `qemu.rs` |
//! | `monoio`, `tokio-uring`, `compio`, `glommio` | these runtimes | `peer.rs`, `peers/src/read.rs` |
//!
//! ```text
//! cargo run --release --example iobench -- --pin 1 --versus raw
//! cargo build --release --manifest-path examples/iobench/peers/Cargo.toml
//! cargo run --release --example iobench -- --pin 1 --versus monoio --rounds 7
//! ```
//!
//! The README's figures: `--file FILE --depth D` with `--versus raw`, `tokio` or `pread`; with
//! `--versus qemu --stride 260k`, and `--qcow2` for an image; `--depth 1 --poll 200` for adaptive
//! polling. A loop device has a worker in the kernel: root keeps it on CPU 1 by `echo 2 >
//! /sys/devices/virtual/workqueue/cpumask`. With the worker on another CPU no two runs agree.

// These macros panic if the output is closed; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod bare;
mod coralio_file;
mod meter;
mod options;
mod peer;
mod pool;
mod qemu;
mod raw;
mod raw_uring;
mod report;
mod target;
mod threads;
mod tokio_file;
#[path = "../shared/trace.rs"]
mod trace;
mod work;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use coralio::RuntimeBuilder;
use coralio::driver::BackendKind;

use options::{Options, Versus};
use report::{Pair, Report, Round};
use target::Target;

fn main() -> ExitCode {
    let mut options = Options::parse();
    match options.settle_kernel().and_then(|()| run(&options)) {
        Ok(text) => {
            // A reader that has seen enough (`| head`) is not a failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(why) => {
            coralio_runtime::report(format_args!("iobench: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs all rounds in one context, which owns the file. The bare loop does not use the context, and
/// blocks it.
fn run(options: &Options) -> Result<String, String> {
    options.check()?;
    let poll = Duration::from_micros(options.poll);
    let builder = RuntimeBuilder::new().backend(options.backend).queue_depth(options.depth).busy_poll_max(poll);
    if options.threads > 1 {
        return threads::run(options, builder).map(|report| show(options, &report));
    }
    options.trace.run(builder, |error| error.to_string(), || bench(options))
}

fn bench(options: &Options) -> Result<String, String> {
    let target = Target::open(options)?;
    if let Some(cpu) = options.pin {
        meter::pin(cpu)?;
    }
    if options.write && !target.scratch {
        coralio_runtime::report(format_args!("iobench: --write overwrites {}", target.name));
    }
    let mut report = Report::new(options, &target);
    if let Some(versus) = options.versus {
        for _ in 0..options.rounds {
            // Alternate, so that changes in the state of the machine affect both sides equally.
            let ours = coralio_file::round(options, &target, false, || ())?;
            let peer = opponent(versus, options, &target, ours.operations(), false)?;
            report.pair(Pair { ours, peer });
            // In separate rounds, because reading the clock for each operation costs CPU time.
            if !options.no_latency {
                let ours = coralio_file::round(options, &target, true, || ())?;
                // qemu-img does not measure latencies.
                let peer = match versus {
                    Versus::Qemu => None,
                    _ => Some(opponent(versus, options, &target, ours.operations(), true)?),
                };
                report.latencies(&ours, peer.as_ref());
            }
        }
    } else {
        report.alone(coralio_file::round(options, &target, !options.no_latency, || ())?);
    }
    Ok(show(options, &report))
}

fn show(options: &Options, report: &Report) -> String {
    if options.json { report.json() } else { report.text() }
}

/// Runs a round of the opponent. One that cannot stop after a given time performs `operations`, as
/// ours did.
fn opponent(
    versus: Versus,
    options: &Options,
    target: &Target,
    operations: u64,
    latencies: bool,
) -> Result<Round, String> {
    match (versus, options.backend) {
        (Versus::Raw, BackendKind::Uring) => bare::round::<raw_uring::Raw>(options, target, latencies),
        (Versus::Raw, BackendKind::Threads) | (Versus::Pread, _) => {
            bare::round::<pool::Pool>(options, target, latencies)
        }
        (Versus::Raw, _) => bare::round::<raw::Raw>(options, target, latencies),
        (Versus::Tokio, _) => bare::round::<tokio_file::Tokio>(options, target, latencies),
        (Versus::Qemu, _) => qemu::round(options, target, operations),
        (Versus::Monoio | Versus::TokioUring | Versus::Compio | Versus::Glommio, _) => {
            peer::round(versus, options, target, latencies)
        }
    }
}
