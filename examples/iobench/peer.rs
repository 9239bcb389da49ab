//! Opponents in another process: other runtimes, in the program of `peers/`, a workspace of its own.
//! It measures its timed part itself, with the same clocks and offsets.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;

use crate::meter::Spent;
use crate::options::{Options, Versus};
use crate::report::Round;
use crate::target::Target;
use crate::work::histogram;

/// The package with the peers.
const PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/iobench/peers");

/// Runs one round.
pub fn round(versus: Versus, options: &Options, target: &Target, latencies: bool) -> Result<Round, String> {
    let program = options.peers.clone().unwrap_or_else(|| PathBuf::from(PACKAGE).join("target/release/peers"));
    // Refers to the file opened here, whatever its name; the child inherits the CPU pinning.
    let path = format!("/proc/{}/fd/{}", process::id(), target.file.as_fd().as_raw_fd());
    let direct = u8::from(target.file.is_direct()).to_string();
    let [depth, blocks, seed] = [options.depth.into(), target.blocks, options.seed].map(|number| number.to_string());
    let (limit, end) = match options.ops {
        Some(count) => ("--ops", count.to_string()),
        None => ("--seconds", options.seconds.to_string()),
    };
    let output = Command::new(&program)
        .args(["read", versus.name(), "--file", &path, "--direct", &direct, "--depth", &depth])
        .args(["--blocks", &blocks, "--seed", &seed, limit, &end, "--latencies", &u8::from(latencies).to_string()])
        .output()
        .map_err(|error| cannot_run(&program, versus, &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}, {}: {}", target.name, program.display(), output.status, said.trim_end()));
    }
    parse(&output.stdout).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stdout);
        format!("{}: its output is not that of a peer: {said}; build it again", program.display())
    })
}

fn parse(output: &[u8]) -> Option<Round> {
    let result: serde_json::Value = serde_json::from_slice(output).ok()?;
    let time = |name: &str| result[name].as_u64().map(Duration::from_nanos);
    let spent =
        Spent { wall: time("wall_ns")?, cpu: time("cpu_ns")?, user: time("user_ns")?, system: time("system_ns")? };
    let latencies = result["latencies"].as_array().map(|counts| {
        let mut all = histogram();
        for count in counts {
            all.record_n(count[0].as_u64()?, count[1].as_u64()?).ok()?;
        }
        Some(all)
    });
    Some(Round::peer(result["operations"].as_u64()?, spent, None, latencies.flatten()))
}

fn cannot_run(program: &Path, versus: Versus, error: &std::io::Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::NotFound => format!("build it: cargo build --release --manifest-path {PACKAGE}/Cargo.toml"),
        _ => format!("check its permissions, or omit --versus {}", versus.name()),
    };
    format!("cannot run {}: {error}; {remedy}", program.display())
}
