//! Compares `nbd_server` with qemu-nbd and nbdkit: same file, same client, one CPU, alternating
//! rounds, medians.
//!
//! ```text
//! cargo build --release --example nbd_server
//! cargo run --release --example nbd_bench -- --file disk.img --pin 0
//! ```
//!
//! `--beside` measures fairness instead: the latency of a client's 512-byte reads while another
//! client floods the server.
//!
//! The main figure is the server's CPU time per request, as accounted by the kernel; the client's
//! CPU time is not included.

// These macros panic if the output is closed; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod beside;
mod client;
mod servers;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use coralio_runtime::report;

use beside::Flood;
use client::{Client, Load};
use servers::{Format, Server, Which};

/// Compares NBD servers: requests per second, and the server's CPU time for each.
#[derive(Parser, Debug)]
#[command(name = "nbd_bench")]
struct Options {
    /// File to serve; overwritten with --write
    #[arg(long)]
    file: PathBuf,

    /// Servers to compare; the others are compared with the first
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Which::Ours, Which::QemuNbd, Which::Nbdkit])]
    servers: Vec<Which>,

    /// Format of the file; nbdkit serves only raw files
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,

    /// Number of requests in flight
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    depth: Vec<usize>,

    /// Size of a request in bytes
    #[arg(long, default_value_t = 4096)]
    block: u32,

    /// Write instead of reading
    #[arg(long)]
    write: bool,

    /// Access blocks sequentially instead of at random
    #[arg(long)]
    sequential: bool,

    /// Use the page cache
    #[arg(long)]
    cached: bool,

    /// Duration of each round in seconds
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,

    /// Number of rounds
    #[arg(long, default_value_t = 11)]
    rounds: usize,

    /// Pin the client and the servers to this CPU
    #[arg(long)]
    pin: Option<usize>,

    /// Measure 512-byte reads while another client floods the server
    #[arg(long, value_enum, value_delimiter = ',')]
    beside: Vec<Flood>,

    /// Additional arguments for nbd_server
    #[arg(last = true)]
    extra: Vec<String>,
}

/// The result of one round.
#[derive(Clone, Copy)]
struct Figure {
    per_second: f64,
    cpu_us: f64,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            report(format_args!("nbd_bench: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    options.pin.map_or(Ok(()), pin)?;
    let extra = if options.cached { &["--direct".into(), "never".into()][..] } else { &[] };
    let extra = [extra, &options.extra].concat();
    if !options.beside.is_empty() {
        return run_beside(options, &extra);
    }
    for &depth in &options.depth {
        let load = Load { write: options.write, block: options.block, depth, sequential: options.sequential };
        let mut figures = vec![Vec::new(); options.servers.len()];
        for _ in 0..options.rounds {
            for (&which, figures) in options.servers.iter().zip(&mut figures) {
                // One server at a time, because a qcow2 image can have only one writer.
                let server = Server::start(which, &options.file, options.format, !options.cached, &extra)?;
                figures.push(turn(&server, &load, options.seconds).map_err(|error| error.to_string())?);
            }
        }
        for ((which, mine), first) in options.servers.iter().zip(&figures).zip(std::iter::repeat(&figures[0])) {
            let ratio = |of: fn(&Figure) -> f64| median(first.iter().zip(mine).map(|(a, b)| of(a) / of(b)));
            let written = writeln!(
                io::stdout(),
                "depth {depth:3}  {:8}  {:9.0} requests/s  {:6.2} us of CPU each   ratio of the first to it: CPU \
                 {:.2}, rate {:.2}",
                format!("{which:?}"),
                median(mine.iter().map(|figure| figure.per_second)),
                median(mine.iter().map(|figure| figure.cpu_us)),
                ratio(|figure| figure.cpu_us),
                ratio(|figure| figure.per_second),
            );
            match written {
                // A reader that has seen enough (`| head`) is not a failure.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(|error| format!("cannot write to standard output: {error}"))?,
            }
        }
    }
    Ok(())
}

/// Runs the fairness measurement in alternating rounds. The figures are the medians of the rounds'
/// medians and 99th percentiles.
fn run_beside(options: &Options, extra: &[String]) -> Result<(), String> {
    let time = Duration::from_secs_f64(options.seconds);
    for &flood in &options.beside {
        let mut figures = vec![Vec::new(); options.servers.len()];
        for _ in 0..options.rounds {
            for (&which, figures) in options.servers.iter().zip(&mut figures) {
                let server = Server::start(which, &options.file, options.format, !options.cached, extra)?;
                let say = |error: std::io::Error| format!("{which:?}, {flood:?}: {error}");
                let flush = beside::flush(&server.socket, time / 10).map_err(say)?;
                let all = beside::latencies(&server.socket, flood, time).map_err(say)?;
                let at = |part: usize| all.get(all.len() * part / 100).copied().unwrap_or(time);
                figures.push([at(50), at(99), flush].map(|time| time.as_secs_f64() * 1e3));
            }
        }
        for (which, mine) in options.servers.iter().zip(&figures) {
            let [half, most, flush] = [0, 1, 2].map(|of| median(mine.iter().map(|figure| figure[of])));
            let written = writeln!(
                io::stdout(),
                "beside {:8}  {:8}  512 bytes: median {half:8.3} ms, 99% {most:8.3} ms; a flush alone {flush:.3} ms",
                format!("{flood:?}"),
                format!("{which:?}"),
            );
            written.map_err(|error| format!("cannot write to standard output: {error}"))?;
        }
    }
    Ok(())
}

fn turn(server: &Server, load: &Load, seconds: f64) -> std::io::Result<Figure> {
    let mut client = Client::connect(&server.socket)?;
    client.run(load, Duration::from_secs_f64(seconds / 20.0))?;
    let (before, began) = (server.cpu()?, Instant::now());
    let done = client.run(load, Duration::from_secs_f64(seconds))? as f64;
    let (cpu, took) = (server.cpu()? - before, began.elapsed());
    Ok(Figure { per_second: done / took.as_secs_f64(), cpu_us: cpu.as_secs_f64() * 1e6 / done })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Pins this process and its future children to a CPU.
fn pin(processor: usize) -> Result<(), String> {
    // SAFETY: the set is plain data for which zero is valid; the call reads exactly its size.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    if result == 0 { Ok(()) } else { Err(format!("--pin {processor}: {}", std::io::Error::last_os_error())) }
}
