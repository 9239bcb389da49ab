//! Copies a file with N coroutines, each a simple loop of `read_at` and `write_at`: see
//! `copy_blocks` below.
//!
//! ```text
//! cargo run --release --example copy                   a scratch file, copied and verified
//! cargo run --release --example copy -- SRC DST        like cp
//! cargo run --release --example copy -- --from qcow2 disk.qcow2 disk.raw     from image to image
//! ```
//!
//! The rest makes the copy reliable: holes stay holes (`blocks.rs`), and DST appears complete or
//! not at all (`temp_file.rs`), even after a signal (`signals.rs`). `images.rs` copies the disks in
//! images.

// These macros panic if the output is closed; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod blocks;
mod images;
mod job;
mod join_all;
mod options;
mod scratch;
#[path = "../shared/signals.rs"]
mod signals;
mod temp_file;
#[path = "../shared/trace.rs"]
mod trace;

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use clap::Parser;
use coralio::driver::stats;
use coralio::{File, RuntimeBuilder};
use coralio_runtime::report;

use job::Job;
use join_all::join_all;
use options::Options;
use temp_file::TempFile;

/// Runs one coroutine: takes the next block, reads it and writes it, until no block is left.
///
/// Other coroutines run while it waits for the disk.
fn copy_blocks(job: &Job) -> io::Result<()> {
    let mut buf = job.buffer();
    while let Some(block) = job.next_block()? {
        let data = &mut buf[..block.len];
        let count = job.source.read_at(data, block.offset)?;
        job.check(&block, count)?;
        job.target.write_at(data, block.offset)?;
        job.done(&block);
    }
    Ok(())
}

fn main() -> ExitCode {
    let options = Options::parse();
    signals::listen(None);
    match run(&options) {
        Ok(text) => {
            // The copy is complete even if standard output is closed.
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(why) => match signals::caught() {
            Some(signal) => {
                report(format_args!("copy: stopped by signal {signal}; the incomplete copy is removed"));
                ExitCode::from(128 + signal)
            }
            None => {
                report(format_args!("copy: {why}"));
                ExitCode::FAILURE
            }
        },
    }
}

fn run(options: &Options) -> Result<String, String> {
    options.check()?;
    let work = || match (&options.src, &options.dst) {
        (Some(src), Some(dst)) => copy(src, dst, options),
        _ => scratch::copy_and_verify(options),
    };
    let builder = RuntimeBuilder::new().backend(options.backend()?).queue_depth(options.depth);
    options.trace.run(builder, |error| format!("--depth {}: {error}", options.depth), work)
}

/// Copies `src` to `dst` in the caller's context. Returns a description of the copy.
fn copy(src: &Path, dst: &Path, options: &Options) -> Result<String, String> {
    let clock = Instant::now();
    let before = stats();
    let (dst, mode) = look(src, dst)?;
    if options.of_disks() {
        return images::copy(src, &dst, mode, options);
    }
    let source = options.open(File::options().read(true), src)?;
    let draft = TempFile::new(&dst)?;
    let target = options.open(File::options().write(true), draft.path())?;

    let both = |error: io::Error| {
        // Errors of requests already include the remedy.
        let remedy = error.raw_os_error().map_or("", |_| remedy(&error));
        format!("{} to {}: {error}{remedy}", src.display(), dst.display())
    };
    let job = Rc::new(Job::new(source, target, options).map_err(both)?);
    job.prepare().map_err(both)?;
    let coroutines = job.most_blocks().min(options.depth.into());
    let copied = join_all(coroutines, &job, |job| &job.first_error, copy_blocks);
    job.progress.finish_and_clear();
    copied.map_err(both)?;
    let grown = job.finish().map_err(both)?;
    if grown > 0 {
        report(format_args!(
            "copy: warning: {} grew during the copy; its last {grown} bytes are not copied",
            src.display()
        ));
    }
    draft.set_mode(mode).map_err(both)?;
    job.target.sync_all().map_err(both)?;
    draft.publish()?;
    Ok(job.report(coroutines, clock.elapsed(), &before, &stats()))
}

/// Checks that need no open file. Returns the resolved DST and the permissions of SRC.
fn look(src: &Path, dst: &Path) -> Result<(PathBuf, u32), String> {
    let found = fs::metadata(src).map_err(|error| format!("{}: {error}{}", src.display(), remedy(&error)))?;
    if found.is_dir() {
        return Err(format!("{}: is a directory; choose a file in it", src.display()));
    }
    if !found.is_file() {
        return Err(format!("{}: is not a regular file; use dd or cat for devices and pipes", src.display()));
    }
    let dst = temp_file::destination(src, dst)?;
    match fs::metadata(&dst) {
        Ok(there) if (there.dev(), there.ino()) == (found.dev(), found.ino()) => {
            Err(format!("{} and {} are the same file; choose another DST", src.display(), dst.display()))
        }
        // Do not copy set-user-ID and similar bits; the owner can set them again.
        _ => Ok((dst, found.permissions().mode() & 0o777)),
    }
}

/// Returns a remedy for errors whose text does not suggest one.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::NotADirectory => "; a component of the path is not a directory: check the path",
        io::ErrorKind::PermissionDenied => "; check the permissions of the file and its directory (ls -l)",
        io::ErrorKind::StorageFull => "; free some space",
        io::ErrorKind::FileTooLarge => "; raise the file-size limit (ulimit -f), or choose another file system",
        _ => "",
    }
}
