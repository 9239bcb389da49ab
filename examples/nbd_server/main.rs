//! An NBD server: serves disk images to qemu, nbd-client and libnbd. Each request is a coroutine:
//! see `handle`.
//!
//! ```text
//! cargo run --release --example nbd_server -- disk.img
//! qemu-img info nbd://127.0.0.1:10809
//! ```
//!
//! ```text
//!   client ------> one read receives many requests        request_reader.rs, connection.rs
//!                  each runs as a coroutine, and waits    handle.rs
//!                  one submit for all waiting requests    the loop
//!                  a completion wakes its coroutine
//!   client <------ one write sends all replies            reply.rs
//! ```
//!
//! CPU time per 4 KiB read of the same raw file, with the same client on the same CPU
//! (`nbd_bench --pin 1 --file FILE`). The other server is `qemu-nbd` with native AIO and no cache:
//!
//! | coralio / `qemu-nbd`, lower is better | depth 1 | depth 16 | depth 64 |
//! |---|---|---|---|
//! | sparse, ext4 | 0.63 to 0.67 | 0.15 | 0.14 |
//! | random data, ext4 | 0.60 | | |
//! | sparse, tmpfs | 0.63 to 0.65 | 0.25 | 0.21 |
//!
//! The rate of reads of sparse files is 1.2 to 1.4, 6.4 to 6.7 and 7.3 times that of `qemu-nbd`.
//!
//! One client cannot starve another (`turn.rs`, `budget.rs`, `flushes.rs`, `limits.rs`). Median
//! latency of a client's 512-byte reads, in milliseconds, while another client floods the server;
//! random file, busy machine, all on one CPU (`nbd_bench --beside
//! options,commands,reads,flushes --pin 0 --file FILE`):
//!
//! | the flood | this server | `qemu-nbd` |
//! |---|---|---|
//! | options | 0.16 | 5.7 |
//! | unknown commands | 0.07 | 0.08 |
//! | 4 KiB reads | 0.26 | 0.06 |
//! | flushes | 0.05 | 0.08 |

// These macros panic if the output is closed; messages go through `report`.
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod budget;
mod buffers;
mod connection;
mod export;
mod flushes;
mod handle;
mod limits;
mod negotiate;
mod options;
mod protocol;
mod reply;
mod request_reader;
mod server;
#[path = "../shared/signals.rs"]
mod signals;
mod socket_file;
mod sparse;
mod task_group;
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
    options.trace.run(options.builder()?, refused, || server::serve_all(options))
}
