//! `nbd_server` beside qemu-nbd and nbdkit: the same file, the same client, one processor, in turns; medians.
//!
//! ```text
//! cargo build --release --example nbd_server
//! cargo run --release --example nbd_bench -- --file disk.img --pin 0
//! ```
//!
//! `--beside` measures fairness instead: how long a client's read of 512 bytes takes while another client floods the server.
//!
//! What counts is the server's processor time per request, as the kernel accounts for it; the client's own is not in it.

// These macros panic where nobody can read what they print; messages go through `report`.
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
    /// File to serve. Its contents are lost with --write
    #[arg(long)]
    file: PathBuf,

    /// Whom to compare; the first is what the others are set against
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Which::Ours, Which::QemuNbd, Which::Nbdkit])]
    servers: Vec<Which>,

    /// What the file is; nbdkit serves raw files only
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,

    /// Requests under way
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    depth: Vec<usize>,

    /// Bytes of a request
    #[arg(long, default_value_t = 4096)]
    block: u32,

    /// Write instead of reading
    #[arg(long)]
    write: bool,

    /// One block after the other, and not at random
    #[arg(long)]
    sequential: bool,

    /// Through the page cache
    #[arg(long)]
    cached: bool,

    /// Seconds of each turn
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,

    /// Turns
    #[arg(long, default_value_t = 11)]
    rounds: usize,

    /// Run client and servers on this processor
    #[arg(long)]
    pin: Option<usize>,

    /// Measure reads of 512 bytes beside a client that floods the server
    #[arg(long, value_enum, value_delimiter = ',')]
    beside: Vec<Flood>,

    /// For nbd_server: further arguments
    #[arg(last = true)]
    extra: Vec<String>,
}

/// What one turn came to.
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
                // One at a time: a qcow2 image is one server's alone.
                let server = Server::start(which, &options.file, options.format, !options.cached, &extra)?;
                figures.push(turn(&server, &load, options.seconds).map_err(|error| error.to_string())?);
            }
        }
        for ((which, mine), first) in options.servers.iter().zip(&figures).zip(std::iter::repeat(&figures[0])) {
            let ratio = |of: fn(&Figure) -> f64| median(first.iter().zip(mine).map(|(a, b)| of(a) / of(b)));
            let written = writeln!(
                io::stdout(),
                "depth {depth:3}  {:8}  {:9.0} per second  {:6.2} us of CPU each   first to it: {:.2} of the CPU, {:.2} of the rate",
                format!("{which:?}"),
                median(mine.iter().map(|figure| figure.per_second)),
                median(mine.iter().map(|figure| figure.cpu_us)),
                ratio(|figure| figure.cpu_us),
                ratio(|figure| figure.per_second),
            );
            match written {
                // A reader that has seen enough (`| head`) is no failure of the measurement.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(|error| format!("cannot write to standard output: {error}"))?,
            }
        }
    }
    Ok(())
}

/// In turns, as above. The figures are the medians of the turns' medians, and of their 99th percentiles.
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
            written.map_err(|error| format!("standard output: {error}"))?;
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

/// This process, and those that it starts.
fn pin(processor: usize) -> Result<(), String> {
    // SAFETY: the set is plain data for which zero is valid; the call reads so many bytes of it.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    if result == 0 { Ok(()) } else { Err(format!("--pin {processor}: {}", std::io::Error::last_os_error())) }
}
