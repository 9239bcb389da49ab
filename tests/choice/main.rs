//! Backend selection when the machine refuses an interface, and the routing of requests between
//! engines. Refusals are real: seccomp filters like those of containers, and exhausted limits. Each
//! runs in a child process, since a filter cannot be removed.

#[path = "../common/mod.rs"]
mod common;
mod context_threads;
mod held;
mod in_place;
mod in_place_turns;
mod refused;
mod remote;
mod route;
mod seccomp;

use std::io;

use coralio::AlignedBuf;
use coralio::driver::{SelectedBackend, selected_backend};
use coralio::fs::Direct;

use common::{Temp, in_child, in_child_with};
use seccomp::{filter, forbid};

/// Returns a page filled with `byte`.
fn page(byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::new(4096, 4096);
    buf.fill(byte);
    buf
}

/// Checks that data written is read back, with direct I/O and through the page cache.
fn io_works() -> io::Result<()> {
    for direct in [Direct::Auto, Direct::Never] {
        let temp = Temp::on_disk();
        let file = temp.open(direct);
        for number in 0..8 {
            file.write_at(&page(number), u64::from(number) * 4096)?;
        }
        file.sync_data()?;
        let mut buf = page(0);
        for number in 0..8 {
            file.read_exact_at(&mut buf, u64::from(number) * 4096)?;
            assert!(buf.iter().all(|&byte| byte == number));
        }
    }
    Ok(())
}

fn chosen() -> SelectedBackend {
    selected_backend().expect("the context has an engine")
}
