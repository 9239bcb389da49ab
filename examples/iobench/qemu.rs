//! The opponent in another process: `qemu-img bench` on the same file, with the same kernel
//! interface, depth and offsets.
//!
//! It runs twice: once with only the warm-up, and once with the warm-up and the measured
//! operations. The difference is the result, which excludes starting the process and opening the
//! file.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{self, Command};

use coralio::driver::BackendKind;

use crate::meter::{Moment, Spent};
use crate::options::Options;
use crate::report::Round;
use crate::target::Target;
use crate::work::{Pattern, WARM_UP};

/// Some versions occasionally crash at depth 1 with native AIO; such a run is retried.
const TRIES: u32 = 6;

/// Runs one round of `operations` operations.
pub fn round(options: &Options, target: &Target, operations: u64) -> Result<Round, String> {
    let warm_up = run(options, target, WARM_UP)?;
    let all = run(options, target, WARM_UP + operations)?;
    Ok(Round::peer(operations, all.without(&warm_up), None, None))
}

/// Runs `qemu-img bench` once.
fn run(options: &Options, target: &Target, operations: u64) -> Result<Spent, String> {
    let Pattern::Steps { blocks } = options.pattern() else { unreachable!("rejected by `Options::check`") };
    let [count, depth, block, step] =
        [operations, options.depth.into(), options.block_size, blocks * options.block_size].map(|n| n.to_string());
    let (cache, way) = match (target.file.is_direct(), options.backend) {
        (true, BackendKind::Uring) => ("none", "io_uring"),
        (true, BackendKind::Threads) => ("none", "threads"),
        (true, _) => ("none", "native"),
        (false, BackendKind::Uring) => ("writeback", "io_uring"),
        // qemu-img does not support native AIO with the page cache.
        (false, _) => ("writeback", "threads"),
    };
    // Refers to the file opened here, whatever its name; the child inherits the CPU pinning.
    let path = format!("/proc/{}/fd/{}", process::id(), target.file.as_fd().as_raw_fd());
    let format = if options.qcow2 { "qcow2" } else { "raw" };
    let mut command = Command::new("qemu-img");
    command
        .args(["bench", "-f", format, "-t", cache, "-i", way, "-c", &count, "-d", &depth, "-s", &block, "-S", &step]);
    if options.write {
        command.args(["-w", "--pattern", "197"]);
    }
    command.arg(path);
    for last in (0..TRIES).rev() {
        let clock = Moment::of_children();
        let output = command.output();
        let spent = clock.spent();
        let output = output.map_err(|error| {
            format!("cannot run qemu-img: {error}; install it (package qemu-utils), or omit --versus qemu")
        })?;
        if output.status.success() {
            return Ok(spent);
        }
        if output.status.signal() != Some(libc::SIGSEGV) || last == 0 {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().last().unwrap_or_default();
            return Err(format!("{}: qemu-img bench, {}: {line}", target.name, output.status));
        }
    }
    unreachable!("the last try returns")
}
