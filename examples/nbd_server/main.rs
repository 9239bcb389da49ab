//! An NBD server: serves disk images to qemu, nbd-client and libnbd. Each request is a coroutine:
//! see `perform`.
//!
//! ```text
//! cargo run --release --example nbd_server -- disk.img
//! qemu-img info nbd://127.0.0.1:10809
//! ```
//!
//! ```text
//!   client ------> one read receives many requests        inbox.rs, connection.rs
//!                  each runs as a coroutine, and waits    perform.rs
//!                  one submit for all waiting requests    the loop
//!                  a completion wakes its coroutine
//!   client <------ one write sends all replies            reply.rs
//! ```

// These macros panic if the output is closed; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod budget;
mod buffers;
mod connection;
mod crew;
mod export;
mod flushes;
mod inbox;
mod limits;
mod negotiate;
mod options;
mod perform;
mod protocol;
mod reply;
mod server;
#[path = "../shared/signals.rs"]
mod signals;
mod socket_file;
mod sparse;
#[path = "../shared/trace.rs"]
mod trace;
mod turn;

use std::process::ExitCode;

use clap::Parser;
use coralio_runtime::report;

use options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => {
            if let Some(signal) = signals::caught() {
                report(format_args!("nbd_server: stopped by signal {signal}; all requests are completed and flushed"));
            }
            ExitCode::SUCCESS
        }
        Err(why) => {
            report(format_args!("nbd_server: {why}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    options.check()?;
    let refused = |error| format!("--depth {}: {error}", options.depth);
    options.trace.run(options.runner()?, refused, || server::serve_all(options))
}
