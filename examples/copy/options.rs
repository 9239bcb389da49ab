//! The command line and its validation.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use coralio::driver::BackendKind;
use coralio::fs::Direct;
use coralio::task::OsCode;
use coralio::{File, OpenOptions};
use coralio_qcow2::Format;

use crate::remedy;
use crate::trace::TraceOption;

/// The maximum size of a request: the kernel truncates requests slightly below 2 GiB.
const LARGEST_BLOCK: u64 = 1 << 30;
/// The maximum for all buffers together.
const MAX_MEMORY: u64 = 4 << 30;

/// Copies a file with N coroutines: contents, length, holes and permissions.
///
/// DST works as with cp: for a directory, the copy gets SRC's file name; a symbolic link is
/// followed; an existing file is replaced. The copy takes DST's name in one step when it is
/// complete and synced. If anything fails before that, an existing DST is unchanged and a new one
/// is not created. It is an error if SRC shrinks during the copy; if SRC grows, the copy ends at
/// the original length, with a warning.
///
/// Without SRC and DST: creates a scratch file of 256 MiB, copies it, verifies the copy, and
/// removes both.
#[derive(Parser, Debug)]
#[command(name = "copy", override_usage = "copy [OPTIONS] [SRC DST]")]
pub struct Options {
    /// File to copy
    #[arg(requires = "dst")]
    pub src: Option<PathBuf>,

    /// Destination
    pub dst: Option<PathBuf>,

    /// SRC is a disk image in this format: copy the disk in it [default with --to: raw]
    #[arg(long, value_name = "raw|qcow2", value_parser = format, requires = "src")]
    pub from: Option<Format>,

    /// Make DST a disk image in this format, with the disk of SRC [default with --from: raw]
    #[arg(long, value_name = "raw|qcow2", value_parser = format, requires = "src")]
    pub to: Option<Format>,

    /// Number of coroutines, each with one block at a time
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub depth: u32,

    /// Block size in bytes (4096, 64k, 1M)
    #[arg(long, value_name = "BYTES", default_value = "256k", value_parser = bytes)]
    pub block_size: u64,

    /// Bypass the page cache (O_DIRECT); auto does so wherever the file system and the block size
    /// allow it
    #[arg(long, value_enum, default_value_t = DirectArg::Auto)]
    pub direct: DirectArg,

    /// Backend: auto, aio, uring, threads [default: CORALIO_BACKEND, else auto]
    #[arg(long, value_name = "BACKEND")]
    backend: Option<BackendKind>,

    /// Show no progress bar (there is none if standard error is not a terminal)
    #[arg(long)]
    pub no_progress: bool,

    /// Directory for the scratch files [default: the system's temporary directory]
    #[arg(long, value_name = "DIR", conflicts_with = "src")]
    pub scratch_dir: Option<PathBuf>,

    #[command(flatten)]
    pub trace: TraceOption,
}

/// When to bypass the page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DirectArg {
    Auto,
    Always,
    Never,
}

impl Options {
    /// Rejects values that the parser cannot detect.
    pub fn check(&self) -> Result<(), String> {
        let Options { depth, block_size, .. } = *self;
        if depth == 0 {
            return Err("invalid --depth 0: must be at least 1".into());
        }
        if block_size == 0 || block_size > LARGEST_BLOCK {
            return Err(format!("invalid --block-size {block_size}: must be 1 byte to 1G"));
        }
        if u64::from(depth) * block_size > MAX_MEMORY {
            return Err(format!("--depth {depth} times --block-size {block_size} exceeds 4 GiB; reduce one of them"));
        }
        Ok(())
    }

    /// Returns the backend. The command line takes precedence over the environment.
    pub fn backend(&self) -> Result<BackendKind, String> {
        self.backend.map_or_else(BackendKind::from_env, Ok).map_err(|error| error.to_string())
    }

    /// Returns whether to copy the disks in images instead of files.
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

    /// Opens `path` as --direct and --block-size require.
    pub fn open(&self, how: OpenOptions, path: &Path) -> Result<File, String> {
        let open = |direct| {
            let how = how.clone().direct(direct);
            how.open(path).map_err(|error| match error.os_code() {
                Some(libc::EINVAL) if direct == Direct::Always => {
                    format!(
                        "{}: its file system does not support direct I/O; use --direct auto or never",
                        path.display()
                    )
                }
                _ => format!("{error}{}", remedy(&error)),
            })
        };
        let file = open(self.direct())?;
        let (step, block_size) = (file.alignment().block as u64, self.block_size);
        if block_size.is_multiple_of(step) {
            return Ok(file);
        }
        if self.direct == DirectArg::Auto {
            return open(Direct::Never);
        }
        Err(format!(
            "{}: --block-size {block_size} is not a multiple of {step}, as direct I/O needs; use a multiple, or \
             --direct never",
            path.display()
        ))
    }
}

fn format(text: &str) -> Result<Format, String> {
    Format::named(text).ok_or_else(|| "must be raw or qcow2".into())
}

/// Parses "4096", "4k", "64m" or "1G"; the suffixes are powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return Err("a number of bytes must end with a digit or with k, m or g".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "not a number of bytes; examples: 4096, 64k, 1M".to_string())?;
    number.checked_mul(1 << shift).ok_or_else(|| "more bytes than the largest file size".to_string())
}
