//! Reports of skipped tests: where the machine refuses an interface, a test, or a part of it, is
//! skipped with one line on standard error. And what tests that run programs share.

#![allow(dead_code)] // each test uses a part

use std::any::Any;
use std::fmt::Display;
use std::fs;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use coralio::driver::BackendKind;
use coralio::fs::Direct;
use coralio::{File, RuntimeBuilder};

/// Reports a skip on standard error. Bypasses the test harness, which captures macro output.
pub fn skipped(why: impl Display) {
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// Set in a child process that runs one test.
pub const CHILD: &str = "CORALIO_TEST_CHILD";

/// Reruns the test `test` in a child process and asserts that it passes there. Returns false in the
/// child.
pub fn in_child(test: &str) -> bool {
    in_child_with(test, &[])
}

/// Does the same as [`in_child`], with more environment variables.
pub fn in_child_with(test: &str, environment: &[(&str, &str)]) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return false;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", test, "--nocapture"]).env(CHILD, "1").envs(environment.iter().copied());
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines().filter_map(|line| line.strip_prefix("skipped: ")).for_each(skipped);
    assert!(output.status.success(), "{}\n{said}", output.status);
    true
}

/// Returns the message with which `f` panicked.
pub fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(_) => panic!("it was expected to panic"),
        Err(payload) => text(&*payload),
    }
}

/// Returns the text of a panic.
pub fn text(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, Some(text)) => (*text).to_string(),
        _ => "a payload that is no text".into(),
    }
}

/// Returns whether `error`, from running a context on this backend, means that the machine refuses
/// the interface; if so, reports it. Threads are never refused.
pub fn is_refused(backend: BackendKind, error: &io::Error) -> bool {
    let is_optional =
        matches!(backend, BackendKind::Aio | BackendKind::Uring) && error.kind() != io::ErrorKind::InvalidInput;
    if is_optional {
        skipped(error);
    }
    is_optional
}

/// Returns whether the machine offers this backend at this depth; if not, reports it.
pub fn has(backend: BackendKind, depth: u32) -> bool {
    RuntimeBuilder::new().backend(backend).queue_depth(depth).run(|| ()).map_err(skipped).is_ok()
}

/// Returns `count`, divided by CORALIO_TEST_DIVISOR if set: under valgrind everything takes fifty
/// times as long.
pub fn scaled(count: usize) -> usize {
    let divisor = std::env::var("CORALIO_TEST_DIVISOR").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    (count / divisor).max(2)
}

/// Returns an example's program, which `cargo test` builds along with the tests.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(program.is_file(), "no {}; make it first: cargo build --examples (cargo test does)", program.display());
    program
}

/// A directory for one test, removed on drop.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(test: &str) -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{test}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Returns the path as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }

    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// Returns all names, hidden ones included.
    pub fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The path of a file that is removed on drop.
pub struct Temp(pub PathBuf);

impl Temp {
    pub fn at(place: PathBuf) -> Temp {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        Temp(place.join(format!("coralio-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))))
    }

    pub fn on_disk() -> Temp {
        Temp::at(std::env::temp_dir())
    }

    /// Creates the file with this content.
    pub fn with(place: &Path, content: impl AsRef<[u8]>) -> Temp {
        let temp = Temp::at(place.to_path_buf());
        fs::write(&temp.0, content).unwrap();
        temp
    }

    pub fn open(&self, direct: Direct) -> File {
        File::options().read(true).write(true).create(true).direct(direct).open(&self.0).unwrap()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir(&self.0);
    }
}

/// Returns whether all bytes are `byte`. Without optimization a loop over bytes takes fifty times as
/// long as the comparison of slices.
pub fn is_all(bytes: &[u8], byte: u8) -> bool {
    bytes.split_first().is_none_or(|(&first, rest)| first == byte && *rest == bytes[..rest.len()])
}

/// Returns `len` bytes in which no two blocks are equal.
pub fn content(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (n, word) in (1u64..).zip(bytes.chunks_mut(8)) {
        word.copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[..word.len()]);
    }
    bytes
}
