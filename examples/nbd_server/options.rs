//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use coralio_aio::{DEFAULT_DEPTH, Direct, KernelChoice, Runner};
use coralio_qcow2::Format;

use crate::budget::Budget;
use crate::trace::TraceOption;

/// Serves disk images over the NBD protocol, to qemu, nbd-client, libnbd and others.
///
/// Listens on the loopback address alone where nothing else is asked for: whoever connects may read and write, unless
/// --read-only says otherwise. A signal (SIGTERM, SIGINT) ends it: what is under way is finished, and the images are flushed.
///
/// Clients see an image's exact length, also if that is no multiple of 512. What one client does costs others little: work is
/// done in turns, memory is shared fairly, and handshakes and connections are limited by the options below.
#[derive(Parser, Clone, Debug)]
#[command(name = "nbd_server", override_usage = "nbd_server [OPTIONS] <IMAGE | --export NAME=PATH ..>")]
pub struct Options {
    /// Image to serve, also to who asks for no name
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

    /// Refuse to write
    #[arg(long)]
    pub read_only: bool,

    /// Take no locks. Without this option one program at a time writes an image, raw or qcow2, and
    /// none while it is served read-only, as far as other programs lock images like QEMU's
    #[arg(long)]
    pub no_lock: bool,

    /// Past the page cache (O_DIRECT): auto is wherever the file system and the request allow it
    #[arg(long, value_enum, default_value_t = DirectArg::Auto)]
    direct: DirectArg,

    /// What the images are: raw or qcow2. Without it, those that begin as qcow2 images do are. A client can make a raw disk begin
    /// like that: name it, unless you trust them
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub format: Option<Format>,

    /// Through which of the kernel's interfaces: auto, aio, uring, threads [default: what CORALIO_KERNEL says, else auto]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<KernelChoice>,

    /// Requests that the kernel has at once, for each thread
    #[arg(long, value_name = "N", default_value_t = DEFAULT_DEPTH)]
    pub depth: u32,

    /// Threads, each with a loop and an engine of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,

    /// Memory for the payloads of all connections, in MiB, beyond 256 KiB that each of them has. It is shared fairly; a large
    /// request that gets no share of it is served in pieces
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(..=0x10_0000))]
    memory: u32,

    /// Connections at once, on all threads; fewer where the system allows fewer descriptors. Further clients wait; handshakes
    /// that make clients wait for a second are ended [default: 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_connections: Option<u32>,

    /// Seconds that a handshake may take
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub handshake_limit: Duration,

    /// Options that a client may send in its handshake, and four more for each export
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_options: usize,

    /// Seconds that a client may neither send a request nor take a reply [default: no limit]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub idle_limit: Option<Duration>,

    /// Seconds of silence after which the peer of a TCP connection is probed. It is given up if it does not answer for as
    /// long again; 0 does not probe
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub keepalive: Duration,

    #[command(flatten)]
    pub trace: TraceOption,
}

fn format(text: &str) -> Result<Format, String> {
    Format::named(text).ok_or_else(|| "raw and qcow2 are known".into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// An image and the name that clients have for it.
#[derive(Clone, Debug)]
pub struct Named {
    pub name: String,
    pub path: PathBuf,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Named, String> {
        let (name, path) = text.split_once('=').ok_or("a name and a path are wanted, like disk=/images/disk.img")?;
        if name.len() > 4096 {
            return Err("the protocol's names have 4096 bytes at most".into());
        }
        Ok(Named { name: name.into(), path: path.into() })
    }
}

/// When to go past the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DirectArg {
    Auto,
    Always,
    Never,
}

impl Options {
    /// The one without a name goes first.
    pub fn exports(&self) -> Vec<Named> {
        let unnamed = self.image.iter().map(|path| Named { name: String::new(), path: path.clone() });
        unnamed.chain(self.export.iter().cloned()).collect()
    }

    /// Refuses what the parser cannot know to be nonsense.
    pub fn check(&self) -> Result<(), String> {
        let exports = self.exports();
        let twice =
            exports.iter().enumerate().find(|(at, one)| exports[..*at].iter().any(|other| other.name == one.name));
        match twice {
            Some((_, named)) => Err(format!("--export {}: the name is taken; give another", named.name)),
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

    /// What the connections of all threads share.
    pub fn budget(&self) -> Arc<Budget> {
        Budget::new((self.memory as usize) << 20)
    }

    /// How many connections there may be at once, where so many fit into the process's descriptors.
    pub fn connections(&self, fit: usize) -> Result<usize, String> {
        const DEFAULT: usize = 4096;
        match self.max_connections {
            Some(wanted) if wanted as usize > fit => Err(format!(
                "--max-connections {wanted}: the descriptor limit leaves room for {fit}; raise it (ulimit -n), or give less"
            )),
            Some(wanted) => Ok(wanted as usize),
            None => Ok(DEFAULT.min(fit).max(1)),
        }
    }

    /// What each thread runs in. The command line goes before the environment.
    pub fn runner(&self) -> Result<Runner, String> {
        let kernel = self.kernel.map_or_else(KernelChoice::from_env, Ok).map_err(|error| error.to_string())?;
        Ok(Runner::new().kernel(kernel).depth(self.depth))
    }
}
