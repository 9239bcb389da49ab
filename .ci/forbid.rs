//! Runs a command under a seccomp filter that refuses I/O interfaces with EPERM, as containers do:
//!
//! ```text
//! forbid io_uring,aio cargo test
//! ```

#[path = "../tests/choice/seccomp.rs"]
mod seccomp;

use std::os::unix::process::CommandExt;
use std::process::{Command, exit};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(interfaces), Some(program)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: forbid io_uring|aio[,..] COMMAND [ARGUMENT]..");
        exit(2);
    };
    let calls = interfaces.split(',').map(|interface| match interface {
        "io_uring" => (libc::SYS_io_uring_setup, libc::EPERM),
        "aio" => (libc::SYS_io_setup, libc::EPERM),
        other => {
            eprintln!("cannot forbid {other}: known are io_uring and aio");
            exit(2);
        }
    });
    seccomp::forbid(&calls.collect::<Vec<_>>());
    let error = Command::new(&program).args(arguments).exec();
    eprintln!("{program}: {error}");
    exit(127);
}
