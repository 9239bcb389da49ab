//! The command line and its validation.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use coralio::driver::BackendKind;

use crate::trace::TraceOption;
use crate::work::{Limit, Pattern};

/// The maximum size of a request: the kernel truncates requests slightly below 2 GiB.
const LARGEST_BLOCK: u64 = 1 << 30;

/// Benchmark of storage I/O by N coroutines: IOPS, CPU time per operation, latencies, system calls
#[derive(Parser, Clone, Debug)]
#[command(name = "iobench")]
pub struct Options {
    /// File or block device to use [default: a sparse scratch file]
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,

    /// The file is a qcow2 image: use the disk in it
    #[arg(long, requires = "file", conflicts_with = "size")]
    pub qcow2: bool,

    /// Bytes of the file to use (4096, 64m, 1G) [default: the file's length; scratch: 1G]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub size: Option<u64>,

    /// Size of each operation in bytes
    #[arg(long, value_name = "BYTES", default_value = "4k", value_parser = bytes)]
    pub block_size: u64,

    /// Number of coroutines, each with one operation at a time
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub depth: u32,

    /// Duration of each round in seconds
    #[arg(long, value_name = "S", default_value_t = 5.0, conflicts_with = "ops")]
    pub seconds: f64,

    /// Exact number of operations per round, instead of a duration
    #[arg(long, value_name = "N")]
    pub ops: Option<u64>,

    /// Access blocks sequentially, wrapping around at the end [default: random]
    #[arg(long)]
    pub sequential: bool,

    /// Sequential, with this distance between consecutive blocks, modulo the size
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub stride: Option<u64>,

    /// Write instead of reading: OVERWRITES the file
    #[arg(long)]
    pub write: bool,

    /// Bypass the page cache (O_DIRECT); auto does so wherever the file system allows it
    #[arg(long, value_enum, default_value_t = DirectArg::Auto)]
    pub direct: DirectArg,

    /// Backend: auto, aio, uring, threads [default: CORALIO_BACKEND, else auto]
    #[arg(long = "backend", value_name = "BACKEND")]
    named: Option<BackendKind>,

    /// `named`, or the value from the environment: see `settle_kernel`
    #[arg(skip)]
    pub backend: BackendKind,

    /// Pin to this CPU, so that the figures are those of one CPU
    #[arg(long, value_name = "CPU")]
    pub pin: Option<usize>,

    /// Number of threads, each on a CPU of its own and with a context, a scratch file and `--depth`
    /// coroutines of its own; with `--file` they share the file, and with it the kernel's inode
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: u32,

    /// Maximum time in microseconds that the loop polls for completions before it sleeps: lower
    /// latency at the cost of CPU time
    #[arg(long, value_name = "US", default_value_t = 0)]
    pub poll: u64,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,

    /// Compare with another implementation, in alternating rounds
    #[arg(long, value_enum)]
    pub versus: Option<Versus>,

    /// The program with the peers [default: where its `cargo build --release` puts it]
    #[arg(long, value_name = "PATH", requires = "versus")]
    pub peers: Option<PathBuf>,

    /// Number of rounds of each side
    #[arg(long, value_name = "N", default_value_t = 5, requires = "versus")]
    pub rounds: u32,

    /// Do not read a clock per operation (with --versus: no extra rounds for latencies)
    #[arg(long)]
    pub no_latency: bool,

    /// Seed of the random offsets
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    #[command(flatten)]
    pub trace: TraceOption,
}

/// When to bypass the page cache.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DirectArg {
    Auto,
    Always,
    Never,
}

/// The implementation to compare with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Versus {
    /// A bare loop on the same backend, which reads the ring in memory, without
    /// coroutines; for threads: as pread
    Raw,
    /// qemu-img bench with the same backend, in its own process
    Qemu,
    /// tokio's File; its blocking pool for direct I/O, which File does not support
    Tokio,
    /// A simple pool of threads that read and write
    Pread,
    /// monoio, in its own process, as the next three: see --peers
    Monoio,
    /// tokio-uring
    TokioUring,
    /// compio
    Compio,
    /// glommio
    Glommio,
}

impl Versus {
    /// Returns the name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Versus::Raw => "raw",
            Versus::Qemu => "qemu",
            Versus::Tokio => "tokio",
            Versus::Pread => "pread",
            Versus::Monoio => "monoio",
            Versus::TokioUring => "tokio-uring",
            Versus::Compio => "compio",
            Versus::Glommio => "glommio",
        }
    }

    /// Returns the column heading.
    pub fn label(self) -> &'static str {
        match self {
            Versus::Raw => "bare loop",
            Versus::Qemu => "qemu-img bench",
            Versus::Tokio => "tokio",
            Versus::Pread => "pool of threads",
            Versus::Monoio | Versus::TokioUring | Versus::Compio | Versus::Glommio => self.name(),
        }
    }

    /// Returns whether this implementation is one of those in the program `peers`.
    pub fn is_peer(self) -> bool {
        matches!(self, Versus::Monoio | Versus::TokioUring | Versus::Compio | Versus::Glommio)
    }
}

impl Options {
    /// Sets the backend. The command line takes precedence over the environment.
    pub fn settle_kernel(&mut self) -> Result<(), String> {
        self.backend = self.named.map_or_else(BackendKind::from_env, Ok).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Rejects values that the parser cannot detect.
    pub fn check(&self) -> Result<(), String> {
        if self.depth == 0 {
            return Err("invalid --depth 0: must be at least 1".into());
        }
        if self.block_size == 0 || self.block_size > LARGEST_BLOCK {
            return Err(format!("invalid --block-size {}: must be 1 byte to 1G", self.block_size));
        }
        if self.ops == Some(0) {
            return Err("invalid --ops 0: must be at least 1".into());
        }
        if self.rounds == 0 {
            return Err("invalid --rounds 0: must be at least 1".into());
        }
        if !(self.seconds > 0.0 && Duration::try_from_secs_f64(self.seconds).is_ok()) {
            return Err(format!("invalid --seconds {}: must be more than 0", self.seconds));
        }
        if let Some(stride) = self.stride.filter(|stride| *stride == 0 || !stride.is_multiple_of(self.block_size)) {
            return Err(format!("invalid --stride {stride}: must be a multiple of --block-size {}", self.block_size));
        }
        if matches!(self.versus, Some(Versus::Qemu)) && matches!(self.pattern(), Pattern::Random { .. }) {
            return Err("--versus qemu accesses the file in steps only; add --sequential or --stride 260k".into());
        }
        let is_4k = self.block_size == 4096 && !self.write && matches!(self.pattern(), Pattern::Random { .. });
        if let Some(versus) = self.versus.filter(|versus| versus.is_peer() && !is_4k) {
            let name = versus.name();
            return Err(format!(
                "--versus {name} makes random reads of 4k only; omit --block-size, --write and the like"
            ));
        }
        if self.threads > 1 && (self.versus.is_some() || self.pin.is_some() || self.qcow2) {
            return Err("--threads works without --versus, --pin and --qcow2 only".into());
        }
        if let Some(versus) = self.versus.filter(|versus| self.qcow2 && !matches!(versus, Versus::Qemu)) {
            return Err(format!(
                "--versus {} does not support qcow2 images; use --qcow2 with --versus qemu",
                versus.name()
            ));
        }
        Ok(())
    }

    /// Returns the order of the blocks.
    pub fn pattern(&self) -> Pattern {
        match self.stride {
            Some(stride) => Pattern::Steps { blocks: stride / self.block_size },
            None if self.sequential => Pattern::Steps { blocks: 1 },
            None => Pattern::Random { seed: self.seed },
        }
    }

    /// Returns the end condition of a round.
    pub fn limit(&self) -> Limit {
        match self.ops {
            Some(count) => Limit::Ops(count),
            None => Limit::Time(Duration::from_secs_f64(self.seconds)),
        }
    }

    /// Returns "read" or "write", for messages.
    pub fn verb(&self) -> &'static str {
        if self.write { "write" } else { "read" }
    }
}

/// Parses "4096", "4k", "64m", "1G" or "2t"; the suffixes are powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err("a number of bytes must end with a digit or with k, m, g or t".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "not a number of bytes; examples: 4096, 4k, 64m, 1G".to_string())?;
    number.checked_mul(1 << shift).ok_or_else(|| "more bytes than the largest file size".to_string())
}
