//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use coralio::RuntimeBuilder;
use coralio::driver::{BackendKind, DEFAULT_QUEUE_DEPTH};
use coralio::fs::Direct;
use coralio_qcow2::Format;

use crate::budget::MemoryBudget;
use crate::trace::TraceOption;

/// Serves disk images over the NBD protocol, to qemu, nbd-client, libnbd and others.
///
/// Listens only on the loopback address by default: every client may read and write, unless
/// --read-only is given. On SIGTERM or SIGINT, completes the requests in flight, flushes the images
/// and exits.
///
/// Clients see the exact length of an image, even if it is not a multiple of 512. One client cannot
/// starve the others: they take turns, memory is shared fairly, and the options below limit
/// handshakes and connections.
#[derive(Parser, Clone, Debug)]
#[command(name = "nbd_server", override_usage = "nbd_server [OPTIONS] <IMAGE | --export NAME=PATH ..>")]
pub struct Options {
    /// Image to serve; also the default export for clients that name none
    #[arg(required_unless_present = "export")]
    image: Option<PathBuf>,

    /// Serve PATH under NAME; may be given several times
    #[arg(long, value_name = "NAME=PATH")]
    export: Vec<Named>,

    /// Listen on a Unix socket at PATH
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    pub socket: Option<PathBuf>,

    /// Listen on a TCP address
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10809")]
    pub listen: SocketAddr,

    /// Refuse writes
    #[arg(long)]
    pub read_only: bool,

    /// Take no locks. By default only one program at a time can write an image, raw or qcow2, and
    /// none can write it while it is served read-only, as far as other programs lock images as QEMU
    /// does
    #[arg(long)]
    pub no_lock: bool,

    /// Bypass the page cache (O_DIRECT); auto does so wherever the file system and the request
    /// allow it
    #[arg(long, value_enum, default_value_t = DirectArg::Auto)]
    direct: DirectArg,

    /// Format of the images: raw or qcow2. By default an image that begins with a qcow2 header is
    /// qcow2. A client can write such a header to a raw disk, so give the format unless you trust
    /// the clients
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub format: Option<Format>,

    /// Backend: auto, aio, uring, threads [default: CORALIO_BACKEND, else auto]
    #[arg(long, value_name = "BACKEND")]
    backend: Option<BackendKind>,

    /// Maximum number of requests that the kernel has at a time, per thread
    #[arg(long, value_name = "N", default_value_t = DEFAULT_QUEUE_DEPTH)]
    pub depth: u32,

    /// Threads, each with its own loop and engine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,

    /// Memory for the payloads of all connections, in MiB, in addition to 256 KiB per connection.
    /// It is shared fairly; a large request that gets no share is served in pieces
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(..=0x10_0000))]
    memory: u32,

    /// Maximum number of connections on all threads; lower if the descriptor limit requires it.
    /// Further clients wait, and handshakes that keep them waiting for a second are ended [default:
    /// 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: Option<u32>,

    /// Maximum duration of a handshake, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub handshake_limit: Duration,

    /// Maximum number of options in a handshake, in addition to four per export
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_options: usize,

    /// Seconds after which a client that neither sends a request nor takes a reply is disconnected
    /// [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub idle_limit: Option<Duration>,

    /// Seconds of silence after which the peer of a TCP connection is probed. The connection ends
    /// if the peer does not answer for as long again; 0 disables probing
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub keepalive: Duration,

    #[command(flatten)]
    pub trace: TraceOption,
}

fn format(text: &str) -> Result<Format, String> {
    Format::named(text).ok_or_else(|| "must be raw or qcow2".into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// An image and its export name.
#[derive(Clone, Debug)]
pub struct Named {
    pub name: String,
    pub path: PathBuf,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Named, String> {
        let (name, path) = text.split_once('=').ok_or("must be NAME=PATH, for example disk=/images/disk.img")?;
        if name.len() > 4096 {
            return Err("the name exceeds 4096 bytes, the limit of the protocol".into());
        }
        Ok(Named { name: name.into(), path: path.into() })
    }
}

/// When to bypass the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DirectArg {
    Auto,
    Always,
    Never,
}

impl Options {
    /// Returns the exports; the unnamed one comes first.
    pub fn exports(&self) -> Vec<Named> {
        let unnamed = self.image.iter().map(|path| Named { name: String::new(), path: path.clone() });
        unnamed.chain(self.export.iter().cloned()).collect()
    }

    /// Rejects combinations of options that the parser cannot detect.
    pub fn check(&self) -> Result<(), String> {
        let exports = self.exports();
        let twice =
            exports.iter().enumerate().find(|(at, one)| exports[..*at].iter().any(|other| other.name == one.name));
        match twice {
            Some((_, named)) => Err(format!("--export {}: duplicate name; choose another", named.name)),
            None => Ok(()),
        }
    }

    pub fn direct(&self) -> Direct {
        match self.direct {
            DirectArg::Auto => Direct::Auto,
            DirectArg::Always => Direct::Always,
            DirectArg::Never => Direct::Never,
        }
    }

    /// Creates the memory budget that the connections of all threads share.
    pub fn budget(&self) -> Arc<MemoryBudget> {
        MemoryBudget::new((self.memory as usize) << 20)
    }

    /// Returns the maximum number of connections, given that `fit` fit into the descriptor limit.
    pub fn connections(&self, fit: usize) -> Result<usize, String> {
        const DEFAULT: usize = 4096;
        match self.max_connections {
            Some(wanted) if wanted as usize > fit => Err(format!(
                "--max-connections {wanted}: the descriptor limit allows only {fit}; raise it (ulimit -n), or reduce \
                 --max-connections"
            )),
            Some(wanted) => Ok(wanted as usize),
            None => Ok(DEFAULT.min(fit).max(1)),
        }
    }

    /// Creates the builder of each thread's runtime. The command line takes precedence over the
    /// environment.
    pub fn builder(&self) -> Result<RuntimeBuilder, String> {
        let backend = self.backend.map_or_else(BackendKind::from_env, Ok).map_err(|error| error.to_string())?;
        Ok(RuntimeBuilder::new().backend(backend).queue_depth(self.depth))
    }
}
