//! Files on each backend: on native AIO, io_uring and threads with real requests, on the disk and
//! on `/dev/shm`; and on the simulated backend, which must give the same results. Past the page
//! cache and through it. The reference is what `std` reads and writes.
//!
//! The following run on real files alone ([`on_real_files`]), since the simulated backend [departs
//! from Linux](coralio::engine::simulated#departs-from-linux) there, or because they examine the
//! files by other means than ours:
//!
//! | test | why |
//! |---|---|
//! | `opening::errors_name_the_file` | simulated directories exist without being created |
//! | `opening::options_create_truncate_and_set_the_mode` | no permissions |
//! | `opening::appending_descriptor_appends` | no descriptors |
//! | `cached::cached_open_and_fstat_use_no_thread`, `leased_file_is_opened_on_a_thread` | no threads, nor leases |
//! | `names::links_are_distinguished_from_their_targets` | no symbolic links |
//! | `ranges::lock_excludes_other_handles_without_blocking_the_loop` | no locks |
//! | `manage::space_is_allocated_and_released`, `names`, `errors_name_operation_and_cause`, `many_at_once` | no metadata; links and directories are `std`'s |
//! | `mixed::unaligned_memory_stays_direct`, `unaligned_offsets_use_the_page_cache` | exact counts of requests |
//! | `stream::cursor_behaves_like_std_file` | `std` does the same operations for comparison |
//! | tests that call `on_each_backend` or `coralio::run` themselves | one file system, device, tool or descriptor |

mod cached;
#[path = "../common/mod.rs"]
mod common;
mod elsewhere;
mod ends;
mod fork;
mod fuse;
mod held;
mod limits;
mod lost;
mod manage;
mod mixed;
mod model;
mod names;
mod opening;
mod ranges;
mod stream;
mod sweep;
mod teardown;
mod transfer;

mod bad_input;
mod deferral;
mod detach;
mod libraries;
mod uring;

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use coralio::driver::BackendKind;
use coralio::fs::Direct;
use coralio::simulate::{Sim, Simulation};
use coralio::{AlignedBuf, File, RuntimeBuilder};

use common::{in_child, is_refused, skipped};

/// A file's path on some file system; the file is removed on drop.
struct Temp(PathBuf);

impl Temp {
    fn at(place: &Path) -> Temp {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Temp(place.join(format!("coralio-files-{}-{number}", std::process::id())))
    }

    /// Creates the file with this content.
    fn with(place: &Path, content: &[u8]) -> Temp {
        let temp = Temp::at(place);
        match sim_of(place) {
            Some(sim) => _ = sim.create(&temp.0, 0).write_at(content, 0).unwrap(),
            None => fs::write(&temp.0, content).unwrap(),
        }
        temp
    }

    fn content(&self) -> Vec<u8> {
        match sim_of(&self.0) {
            Some(sim) => sim.contents(&self.0).unwrap(),
            None => fs::read(&self.0).unwrap(),
        }
    }

    fn open(&self, direct: Direct) -> File {
        File::options().read(true).write(true).create(true).direct(direct).open(&self.0).unwrap()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir(&self.0);
    }
}

fn disk() -> PathBuf {
    std::env::temp_dir()
}

fn memory() -> PathBuf {
    "/dev/shm".into()
}

/// The directory of the simulated backend's files: paths below it go to that kernel alone.
const SIMULATED: &str = "simulated";

thread_local! {
    /// The simulated run that this thread is in.
    static SIM: RefCell<Option<Sim>> = const { RefCell::new(None) };
}

/// Returns the simulated run that `place` belongs to, if it is simulated.
fn sim_of(place: &Path) -> Option<Sim> {
    place.starts_with(SIMULATED).then(|| SIM.with_borrow(|sim| sim.clone().expect("a run")))
}

const BACKENDS: [BackendKind; 4] = [BackendKind::Auto, BackendKind::Aio, BackendKind::Uring, BackendKind::Threads];

/// Runs `f` as a coroutine, on each backend that the machine allows.
fn on_each_backend(f: impl Fn()) {
    for backend in BACKENDS {
        println!("{backend}");
        match RuntimeBuilder::new().backend(backend).run(&f) {
            Err(error) if is_refused(backend, &error) => {}
            ran => ran.unwrap(),
        }
    }
}

/// Runs `f` as a coroutine on each backend, the simulated one included, for each file system, past
/// the page cache and through it.
fn everywhere(f: impl Fn(&Path, Direct)) {
    on_real_files(&f);
    for direct in [Direct::Auto, Direct::Never] {
        println!("{SIMULATED} {direct:?}");
        Simulation::new().max_shrink_runs(100).run(0..3, |sim| {
            SIM.set(Some(sim.clone()));
            f(Path::new(SIMULATED), direct);
            SIM.take();
            Ok(())
        });
    }
}

/// Runs `f` as `everywhere` does, without the simulated backend.
fn on_real_files(f: impl Fn(&Path, Direct)) {
    for place in [disk(), memory()] {
        for direct in [Direct::Auto, Direct::Never] {
            println!("{} {direct:?}", place.display());
            on_each_backend(|| f(&place, direct));
        }
    }
}

/// Returns `len` bytes in which no two blocks within 2 MiB are equal: pieces of the same random bytes,
/// from places that depend on the seed. Computing each byte would take seconds without optimization.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    const WHOLE: usize = 1 << 20;
    const PIECE: usize = 4096;
    static RANDOM: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let words = std::iter::successors(Some(0x9e37_79b9_7f4a_7c15u64), |word| {
            let word = word ^ word << 13;
            let word = word ^ word >> 7;
            Some(word ^ word << 17)
        });
        words.take((WHOLE + PIECE) / 8).flat_map(u64::to_le_bytes).collect()
    });
    let mut at = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44) as usize;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        bytes.extend_from_slice(&RANDOM[at..at + PIECE.min(len - bytes.len())]);
        at = (at + PIECE + 3) % WHOLE;
    }
    bytes
}

/// Returns a buffer for direct I/O with this content.
fn aligned(content: &[u8]) -> AlignedBuf {
    let mut buf = AlignedBuf::new(content.len(), 4096);
    buf.copy_from_slice(content);
    buf
}

fn is_root() -> bool {
    // SAFETY: only returns the user's number.
    unsafe { libc::geteuid() == 0 }
}

/// Runs a tool. Returns `None`, after reporting a skip, if the tool is missing or fails.
fn tool(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => Some(output),
        Ok(output) => {
            skipped(format_args!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
            None
        }
        Err(error) => {
            skipped(format_args!("{program}: {error}"));
            None
        }
    }
}
