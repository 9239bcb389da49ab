//! The command line, and what of it makes no sense.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use coralio_aio::{Direct, File, KernelChoice, OpenOptions, OsCode};
use coralio_qcow2::Format;

use crate::remedy;
use crate::trace::TraceOption;

/// What one request may carry: the kernel cuts longer ones short of 2 GiB.
const LARGEST_BLOCK: u64 = 1 << 30;
/// All coroutines' buffers together.
const MOST_MEMORY: u64 = 4 << 30;

/// Copies a file with N coroutines: contents, length, holes and permissions.
///
/// DST is as with cp: a directory gets the copy under SRC's own name, a symbolic link is followed, a file that is there is
/// replaced. That happens in one step, when the copy is complete and synced: whatever goes wrong before, a DST that was there
/// stays as it was, and none is made that was not. SRC getting shorter meanwhile is an error; if it grows, the copy ends where
/// SRC ended at first, and a warning says so.
///
/// Without SRC and DST: makes a scratch file of 256 MiB, copies it, verifies the copy, and removes both.
#[derive(Parser, Debug)]
#[command(name = "copy", override_usage = "copy [OPTIONS] [SRC DST]")]
pub struct Options {
    /// File to copy
    #[arg(requires = "dst")]
    pub src: Option<PathBuf>,

    /// Where to
    pub dst: Option<PathBuf>,

    /// SRC is a disk image: copy the disk in it. With --to alone: raw
    #[arg(long, value_name = "raw|qcow2", value_parser = format, requires = "src")]
    pub from: Option<Format>,

    /// DST is to be a disk image, of the disk that SRC has. With --from alone: raw
    #[arg(long, value_name = "raw|qcow2", value_parser = format, requires = "src")]
    pub to: Option<Format>,

    /// Coroutines, each with one block at a time
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub depth: u32,

    /// Bytes of a block (4096, 64k, 1M)
    #[arg(long, value_name = "BYTES", default_value = "256k", value_parser = bytes)]
    pub block_size: u64,

    /// Past the page cache (O_DIRECT): auto is wherever the file system and the block size allow it
    #[arg(long, value_enum, default_value_t = DirectArg::Auto)]
    pub direct: DirectArg,

    /// Through which of the kernel's interfaces: auto, aio, uring, threads [default: what CORALIO_KERNEL says, else auto]
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<KernelChoice>,

    /// No progress bar (there is none anyway if standard error is no terminal)
    #[arg(long)]
    pub no_progress: bool,

    /// Where to make the scratch files [default: the system's temporary folder]
    #[arg(long, value_name = "DIR", conflicts_with = "src")]
    pub scratch_dir: Option<PathBuf>,

    #[command(flatten)]
    pub trace: TraceOption,
}

/// When to go past the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DirectArg {
    Auto,
    Always,
    Never,
}

impl Options {
    /// Refuses what the parser can't know to be nonsense.
    pub fn check(&self) -> Result<(), String> {
        let Options { depth, block_size, .. } = *self;
        if depth == 0 {
            return Err("--depth 0 leaves no coroutine to do the work; give 1 or more".into());
        }
        if block_size == 0 || block_size > LARGEST_BLOCK {
            return Err(format!("--block-size {block_size} can't be one request; give 1 byte to 1G"));
        }
        if u64::from(depth) * block_size > MOST_MEMORY {
            return Err(format!(
                "--depth {depth} times --block-size {block_size} is more than 4 GiB; give less of one"
            ));
        }
        Ok(())
    }

    /// The command line goes before the environment.
    pub fn kernel(&self) -> Result<KernelChoice, String> {
        self.kernel.map_or_else(KernelChoice::from_env, Ok).map_err(|error| error.to_string())
    }

    /// Whether it is disks that are copied, and not files.
    pub fn of_disks(&self) -> bool {
        self.from.is_some() || self.to.is_some()
    }

    pub fn direct(&self) -> Direct {
        match self.direct {
            DirectArg::Auto => Direct::Auto,
            DirectArg::Always => Direct::Always,
            DirectArg::Never => Direct::Never,
        }
    }

    /// Opens `path` in the way that --direct and --block-size ask for.
    pub fn open(&self, how: OpenOptions, path: &Path) -> Result<File, String> {
        let open = |direct| {
            let how = how.clone().direct(direct);
            how.open(path).map_err(|error| match error.os_code() {
                Some(libc::EINVAL) if direct == Direct::Always => {
                    format!("{}: its file system has no direct I/O; give --direct auto, or never", path.display())
                }
                _ => format!("{error}{}", remedy(&error)),
            })
        };
        let file = open(self.direct())?;
        let (step, block_size) = (file.alignment().offset as u64, self.block_size);
        if block_size.is_multiple_of(step) {
            return Ok(file);
        }
        if self.direct == DirectArg::Auto {
            return open(Direct::Never);
        }
        Err(format!(
            "{}: direct I/O goes in steps of {step} bytes here, --block-size {block_size} is no multiple; \
             give one, or --direct never",
            path.display()
        ))
    }
}

fn format(text: &str) -> Result<Format, String> {
    Format::named(text).ok_or_else(|| "raw and qcow2 are known".into())
}

/// "4096", "4k", "64m", "1G": powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return Err("a number of bytes ends with a digit or with k, m or g".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "not a number of bytes; write it like 4096, 64k or 1M".to_string())?;
    number.checked_mul(1 << shift).ok_or_else(|| "more bytes than a file can have".to_string())
}
