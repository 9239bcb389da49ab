//! Shared by all targets: a worker that processes one input after another, its directory, the seed
//! inputs, and choices decoded from bytes.
#![allow(dead_code)] // not all targets use everything

use std::ffi::c_char;
use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::sync::{LazyLock, Mutex};
use std::thread;

use crate::common::Scratch;

/// AddressSanitizer options. Leak detection does not scan the stacks of coroutines and would report
/// live memory as leaked. Use-after-return detection would give each coroutine a second stack, and
/// a large quarantine would keep freed memory; both would count as memory used by an input.
#[unsafe(no_mangle)]
extern "C" fn __asan_default_options() -> *const c_char {
    c"detect_leaks=0:detect_stack_use_after_return=0:quarantine_size_mb=16".as_ptr()
}

type Job = Box<dyn FnOnce(&Scratch) + Send>;

/// Runs `job` in a context that lives as long as the process, because creating one costs more than
/// most inputs. A panic ends the process, as libFuzzer expects.
pub fn at_work(job: impl FnOnce(&Scratch) + Send + 'static) {
    static WORKER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            coralio::run(|| {
                let folder = Scratch::new();
                // A possible backing file.
                fs::write(folder.path("source"), vec![7; 60_000]).unwrap();
                jobs.iter().for_each(|job| job(&folder));
            })
        });
        Mutex::new(sender)
    });
    let (done, is_done) = mpsc::channel();
    let job: Job = Box::new(move |folder| {
        job(folder);
        done.send(()).unwrap();
    });
    WORKER.lock().unwrap().send(job).unwrap();
    is_done.recv().unwrap();
}

/// Writes the seed inputs to the corpus if it is empty.
pub fn seed<I: IntoIterator<Item = Vec<u8>>>(inputs: impl FnOnce() -> I) {
    let corpus = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).map(PathBuf::from);
    let Some(corpus) = corpus.filter(|path| path.read_dir().is_ok_and(|mut files| files.next().is_none())) else {
        return;
    };
    for (number, input) in inputs().into_iter().enumerate() {
        fs::write(corpus.join(format!("seed-{number}")), input).unwrap();
    }
}

/// The choices appended to the seed inputs: a mix of values.
pub const CHOICES: [u8; 64] = {
    let mut bytes = [0; 64];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = (at * 37) as u8;
        at += 1;
    }
    bytes
};

/// Decodes numbers from bytes, using as few bytes as possible; returns zeroes at the end.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    pub fn below(&mut self, bound: u64) -> u64 {
        let width = (bound.max(2) - 1).ilog2() as usize / 8 + 1;
        let (number, rest) = self.0.split_at(width.min(self.0.len()));
        self.0 = rest;
        number.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)) % bound.max(1)
    }
}
