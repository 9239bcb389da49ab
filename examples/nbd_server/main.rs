//! An NBD server: serves disk images to qemu, nbd-client, libnbd. Each request is a coroutine: see `perform`.
//!
//! ```text
//! cargo run --release --example nbd_server -- disk.img
//! qemu-img info nbd://127.0.0.1:10809
//! ```
//!
//! ```text
//!   client ------> one read brings many requests          inbox.rs, connection.rs
//!                  each becomes a coroutine, and waits    perform.rs
//!                  one submit for all that wait           the loop
//!                  what is done wakes its coroutine
//!   client <------ one write takes all replies            reply.rs
//! ```

// These macros panic where nobody can read what they print; messages go through `report`.
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
                report(format_args!(
                    "nbd_server: stopped by signal {signal}; all that was asked for is done and flushed"
                ));
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
