//! A key-value store that survives power failures, and the test that shows it.
//!
//! ```text
//! cargo run --example store -- put DIR KEY VALUE      in a directory; durable when it returns
//! cargo run --example store -- get DIR KEY
//! cargo run --example store -- crash                  on 1,000 simulated machines that lose power
//! cargo run --example store -- crash --flaw no-sync   without a sync: reports which data are lost, and how
//! ```
//!
//! `store.rs` has the store, `record.rs` the format of its records, and `crash_test.rs` the test,
//! which runs the store unchanged. `--flaw` leaves out one step: guess for each of the seven flaws
//! what goes wrong, then run it.

mod crash_test;
mod record;
mod store;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use coralio_runtime::report;

use store::{Flaw, Store};

/// A small key-value store with a write-ahead log, and its crash test
#[derive(Parser)]
#[command(name = "store")]
enum Command {
    /// Sets a key's value in the store of an existing directory
    Put { dir: PathBuf, key: String, value: String },
    /// Prints a key's value
    Get { dir: PathBuf, key: String },
    /// Runs the store on simulated machines that lose power, one for each seed
    Crash {
        #[arg(long, value_name = "N", default_value_t = 1000)]
        seeds: u64,
        /// The step to leave out
        #[arg(long, value_enum)]
        flaw: Option<Flaw>,
    },
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Put { dir, key, value } => {
            on(&dir, |store| store.put(key.as_bytes(), value.as_bytes())).map(|()| String::new())
        }
        Command::Get { dir, key } => on(&dir, |store| Ok(store.get(key.as_bytes())))
            .and_then(|value| value.ok_or_else(|| format!("there is no key {key:?}")))
            .map(|value| format!("{}\n", String::from_utf8_lossy(&value))),
        Command::Crash { seeds, flaw } => crash_test::machine()
            .search(0..seeds, |sim| crash_test::survives(sim, flaw))
            .map(|runs| format!("{runs} runs passed\n"))
            .map_err(|failure| failure.to_string()),
    };
    match result {
        Ok(text) => {
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(why) => {
            report(format_args!("store: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs `f` on the store in a directory. A log of more than a mebibyte is replaced by a snapshot.
fn on<T>(dir: &Path, f: impl FnOnce(&Store) -> io::Result<T>) -> Result<T, String> {
    coralio::run(|| f(&Store::open(dir, 1 << 20, None)?)).map_err(|error| error.to_string())
}
