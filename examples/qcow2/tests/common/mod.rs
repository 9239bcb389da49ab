//! Scratch directories, QEMU's programs, and seeded random numbers.
#![allow(dead_code, unreachable_pub)] // not all test files use everything

pub mod all_operations;
pub mod check;
pub mod valid_images;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use coralio_qcow2::{Image, Options};

/// A new directory, removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: the number only has to be unique.
        let name = format!("coralio-qcow2-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let shared = Path::new("/dev/shm");
        let path = if shared.is_dir() { shared.join(name) } else { std::env::temp_dir().join(name) };
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Returns whether `qemu-img` and `qemu-io` are installed; prints a message if not.
pub fn has_qemu() -> bool {
    let has = ["qemu-img", "qemu-io"].iter().all(|name| Command::new(name).arg("--version").output().is_ok());
    if !has {
        eprintln!("skipped: qemu-img and qemu-io are not installed");
    }
    has
}

fn run(program: &str, folder: &Scratch, args: &[&str]) -> Output {
    Command::new(program).current_dir(&folder.0).args(args).output().unwrap()
}

/// Runs `qemu-img` in the directory; it must succeed.
pub fn qemu_img(folder: &Scratch, args: &str) -> String {
    let output = run("qemu-img", folder, &args.split_whitespace().collect::<Vec<_>>());
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "qemu-img {args}: {text}");
    text
}

/// Runs commands of `qemu-io` on a file; each must succeed.
pub fn qemu_io<S: AsRef<str>>(folder: &Scratch, file: &str, commands: &[S]) {
    let mut args = vec!["-f", "qcow2"];
    commands.iter().for_each(|command| args.extend(["-c", command.as_ref()]));
    args.push(file);
    let output = run("qemu-io", folder, &args);
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !text.contains("failed"), "qemu-io {args:?}: {text}");
}

/// Returns the content of the disk as `qemu-img` reads it.
pub fn as_qemu_reads(folder: &Scratch, file: &str) -> Vec<u8> {
    qemu_img(folder, &format!("convert -O raw {file} reference.raw"));
    std::fs::read(folder.path("reference.raw")).unwrap()
}

/// Asserts that `qemu-img check` finds neither errors nor leaks.
pub fn assert_clean(folder: &Scratch, file: &str) {
    let text = qemu_img(folder, &format!("check -f qcow2 {file}"));
    assert!(text.contains("No errors were found"), "{text}");
}

/// Returns the binary logarithms of all cluster sizes. In a debug build, returns only the smallest,
/// the largest, the default, and the two sizes between which a table stops fitting into one slice.
pub fn cluster_bits() -> impl Iterator<Item = u32> + Clone {
    (9..=21).filter(|bits| !cfg!(debug_assertions) || [9, 12, 13, 16, 21].contains(bits))
}

pub fn for_writing() -> Options {
    Options { write: true, ..Options::default() }
}

/// Reads the whole disk with requests of this size.
pub fn read_all(image: &dyn Image, step: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; image.len() as usize];
    for (n, part) in bytes.chunks_mut(step).enumerate() {
        image.read_at(part, (n * step) as u64).unwrap();
    }
    bytes
}

pub fn assert_same(ours: &[u8], theirs: &[u8], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}: length");
    if ours != theirs {
        let at = (0..ours.len()).find(|&at| ours[at] != theirs[at]).expect("a difference");
        panic!("{what}: at {at} there is {:#x} instead of {:#x}", ours[at], theirs[at]);
    }
}

/// A seeded random number generator (splitmix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// Returns the seeds of a random test, from `CORALIO_QCOW2_ROUNDS` and `CORALIO_QCOW2_SEED`.
pub fn seeds(rounds: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().expect("a number"));
    let first = number("CORALIO_QCOW2_SEED");
    let rounds = number("CORALIO_QCOW2_ROUNDS").unwrap_or(if first.is_some() { 1 } else { rounds });
    let first = first.unwrap_or(0);
    first..first + rounds
}
