//! Writes the course as one page for a browser: the lessons' sources beside their runs, step by
//! step, with questions; and the museum.
//!
//! The lessons run in this program, on the scripted kernel, so the page is the same each time. It
//! refers to nothing outside itself. `--open` opens it.
//!
//! ```text
//!   lessons.rs     the lessons and exhibits, and what they show when they run
//!   texts.rs       their texts, taken from their sources
//!   steps.rs       an act as data: for each step its row of the lanes, the stacks and their lines
//!   questions.rs   the questions before steps, answered by the runs
//!   levels/        "you are the kernel": all runs of some programs
//!   museum.json    a sentence on each exhibit
//!   page.rs        puts it all into page.html; player.js and others show it
//! ```

// Messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]
// Each lesson is a program with the common module as a part.
#![allow(clippy::duplicate_mod)]

mod lessons;
#[allow(unreachable_pub)]
mod levels;
mod page;
mod questions;
mod steps;
mod texts;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use coralio_runtime::report;

/// Writes the course as a page for a browser
#[derive(Parser)]
struct Options {
    /// Open the page in the browser
    #[arg(long)]
    open: bool,
    /// Write the page to FILE instead of target/course/index.html
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let file = options.output.unwrap_or_else(|| target().join("course/index.html"));
    if let Err(error) = write(&file) {
        report(format_args!("{}: {error}", file.display()));
        return ExitCode::FAILURE;
    }
    // A closed output is no error.
    let _ = writeln!(io::stdout(), "{}", file.display());
    if options.open
        && let Err(error) = Command::new("xdg-open").arg(&file).status()
    {
        report(format_args!("cannot run xdg-open: {error}"));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn write(file: &Path) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, page::page())
}

/// Returns the folder in which cargo has built this program.
fn target() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.ancestors().nth(3).map_or_else(|| "target".into(), Path::to_path_buf)
}
