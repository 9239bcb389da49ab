//! Backend selection when the machine refuses an interface, and the routing of requests between
//! engines. Refusals are real: seccomp filters like those of containers, and exhausted limits. Each
//! runs in a child process, since a filter cannot be removed.

#[path = "../common/mod.rs"]
mod common;
mod held;
mod refused;
mod route;
mod seccomp;
mod two_engines;

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use coralio::driver::{SelectedBackend, selected_backend};
use coralio::fs::Direct;
use coralio::{AlignedBuf, File};

use seccomp::{filter, forbid};

const CHILD: &str = "CORALIO_TEST_CHILD";

/// Reruns the test `test` in a child process and asserts that it passes there. Returns false in the
/// child.
fn in_child(test: &str) -> bool {
    in_child_with(test, &[])
}

fn in_child_with(test: &str, environment: &[(&str, &str)]) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return false;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", test, "--nocapture"]).env(CHILD, "1").envs(environment.iter().copied());
    let output = child.output().unwrap();
    common::skipped_by_child(&output.stderr);
    assert!(output.status.success(), "{}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    true
}

/// The path of a file that is removed on drop.
struct Temp(PathBuf);

impl Temp {
    fn on_disk() -> Temp {
        Temp::at(std::env::temp_dir())
    }

    fn at(place: PathBuf) -> Temp {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Temp(place.join(format!("coralio-choice-{}-{number}", std::process::id())))
    }

    fn open(&self, direct: Direct) -> File {
        File::options().read(true).write(true).create(true).direct(direct).open(&self.0).unwrap()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

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
