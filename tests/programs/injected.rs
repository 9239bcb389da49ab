//! A program whose system calls are made to fail, come late or do only a part, by `strace` and
//! `gdb`: the copy is complete, or there is none and the program reports why.
//!
//! A call that `strace` answers is not executed. For native AIO it can therefore only make a submit
//! return "none": if the result claimed one request more than the kernel has, the program could not
//! detect it and would wait forever. A truthful partial submit takes `gdb`. With io_uring the ring
//! itself reports the requests taken, whatever the call returns.

use std::fs;
use std::process::{Command, Output};

use crate::common::{Folder, content, example, has, skipped};
use coralio::driver::BackendKind;

const LEN: usize = 1 << 20;

/// The expected outcome.
enum Comes {
    Whole,
    /// No copy, and these words: an error of the program or, where the loop cannot continue, a
    /// panic.
    Says(&'static str),
}
use Comes::{Says, Whole};

/// A directory with the file to be copied.
struct Copies(Folder);

impl Copies {
    fn new(test: &str) -> Copies {
        let folder = Folder::new(test);
        folder.file("src", content(LEN));
        Copies(folder)
    }

    /// Returns the command line, for a tool to run, of a copy with 16 coroutines and blocks of 4
    /// KiB.
    fn copy(&self, backend: &str) -> Vec<String> {
        let program = example("copy");
        let program = program.into_os_string().into_string().unwrap();
        let options = ["--depth", "16", "--block-size", "4k", "--backend", backend].map(String::from);
        [program, self.0.text("src"), self.0.text("dst")].into_iter().chain(options).collect()
    }

    /// Asserts that the copy is complete, or that the program reported why not and left none.
    #[track_caller]
    fn judge(&self, what: &str, output: &Output, comes: &Comes) {
        let said = String::from_utf8_lossy(&output.stderr);
        let copy = fs::read(self.0.text("dst"));
        match *comes {
            Whole => {
                assert!(output.status.success(), "{what}: {}: {said}", output.status);
                assert!(copy.unwrap() == content(LEN), "{what}: another content");
            }
            Says(words) => {
                assert!(matches!(output.status.code(), Some(1 | 101)), "{what}: {}: {said}", output.status);
                assert!(said.contains(words), "{what}: no {words:?} in: {said}");
                assert!(copy.is_err(), "{what}: the copy succeeded in spite of the error");
            }
        }
        let _ = fs::remove_file(self.0.text("dst"));
    }
}

/// Returns whether the tool is installed and may trace other processes.
fn works(program: &str, arguments: &[&str]) -> bool {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            skipped(format_args!("{program}: {}", String::from_utf8_lossy(&output.stderr)));
            false
        }
        Err(error) => {
            skipped(format_args!("{program}: {error}"));
            false
        }
    }
}

/// Copies with each of these faults injected.
fn inject(backend: &str, faults: &[(&str, Comes)]) {
    // A seccomp filter answers a system call before strace sees it.
    let calls = match backend {
        "aio" => BackendKind::Aio,
        "uring" | "auto" => BackendKind::Uring,
        _ => BackendKind::Threads,
    };
    if !has(calls, 1) || !works("strace", &["-f", "-qq", "-e", "trace=none", "true"]) {
        return;
    }
    let folder = Copies::new(backend);
    for (fault, comes) in faults {
        let log = folder.0.text("log");
        let call = fault.split(':').next().unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", &log, "-e", &format!("trace={call}"), "-e", &format!("inject={fault}")]);
        let output = strace.args(folder.copy(backend)).env("RUST_BACKTRACE", "0").output().unwrap();
        let log = fs::read_to_string(log).unwrap();
        let injected = log.lines().filter(|line| line.contains("(INJECTED)") || line.contains("(DELAYED)")).count();
        assert!(injected > 0, "{backend}, {fault}: nothing was injected: {log}");
        folder.judge(&format!("{backend}, {fault}"), &output, comes);
        println!("{backend}: {fault}: {injected} times");
    }
}

#[test]
fn copy_survives_failing_native_aio_calls() {
    // E2, E13, E14, H5, H6: a copy on native AIO survives submits that are refused, take nothing or
    // come late, and sleeps that end early; it fails with the cause if a submit or a sleep is
    // impossible
    inject(
        "aio",
        &[
            ("io_submit:error=EAGAIN:when=1+2", Whole),
            ("io_submit:error=EAGAIN:when=2+3", Whole),
            ("io_submit:error=EINTR:when=1+2", Whole),
            ("io_submit:retval=0:when=1+2", Whole),
            ("io_submit:retval=0:when=2+3", Whole),
            ("io_submit:delay_enter=1000", Whole),
            ("io_submit:delay_exit=1000", Whole),
            ("io_submit:error=EBADF:when=3", Says("Bad file descriptor")),
            ("io_submit:error=ENOMEM:when=3", Says("Cannot allocate memory")),
            ("io_getevents:error=EINTR:when=1+2", Whole),
            ("io_getevents:retval=0:when=1+2", Whole),
            ("io_getevents:delay_enter=1000", Whole),
            ("io_getevents:error=EINVAL:when=1", Says("cannot put the loop to sleep: Invalid argument")),
            ("io_setup:error=EAGAIN", Says("raise the limit as root: sysctl fs.aio-max-nr=")),
        ],
    );
}

#[test]
fn copy_survives_failing_io_uring_calls() {
    // E2, E13, E14, H5, H6: the same on io_uring, where the ring and not the call's result decides
    // which requests were taken
    inject(
        "uring",
        &[
            ("io_uring_enter:error=EAGAIN:when=1+2", Whole),
            ("io_uring_enter:error=EAGAIN:when=2+3", Whole),
            ("io_uring_enter:error=EINTR:when=1+2", Whole),
            ("io_uring_enter:error=EINTR:when=2+3", Whole),
            ("io_uring_enter:retval=0:when=1+2", Whole),
            ("io_uring_enter:retval=0:when=2+3", Whole),
            ("io_uring_enter:retval=1:when=1+2", Whole),
            ("io_uring_enter:retval=16:when=1+2", Whole),
            ("io_uring_enter:delay_enter=1000", Whole),
            ("io_uring_enter:delay_exit=1000", Whole),
            ("io_uring_enter:error=EBADF:when=3", Says("Bad file descriptor")),
            ("io_uring_enter:error=ENOMEM:when=2", Says("Cannot allocate memory")),
            ("io_uring_setup:error=EPERM", Says("io_uring is forbidden, likely by a seccomp filter")),
        ],
    );
}

#[test]
fn copy_survives_failing_calls_on_threads() {
    // E2, E13, E14: the same on threads, for the workers' calls; the first calls of the main thread
    // are the loader's
    inject(
        "threads",
        &[
            ("pread64:error=EINTR:when=9+2", Whole),
            ("pwrite64:error=EINTR:when=1+2", Whole),
            ("pread64:delay_enter=1000", Whole),
            ("pwrite64:delay_exit=1000", Whole),
            ("ppoll:error=EINTR:when=1+2", Whole),
            ("pread64:error=EIO:when=9", Says("the device failed: see the kernel log")),
            ("pwrite64:error=ENOSPC:when=3", Says("the file system is full")),
        ],
    );
}

#[test]
fn forbidden_calls_are_replaced_by_the_next_backend() {
    // E14, E16: `Auto` falls back to another backend and completes the copy
    let uring = [("io_uring_setup:error=ENOSYS", Whole), ("io_uring_enter:error=EAGAIN:when=1+2", Whole)];
    inject("auto", &uring);
    let both = "?io_uring_setup,io_setup:error=ENOSYS";
    inject("auto", &[(both, Whole)]);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn copy_survives_partial_submits() {
    // E2: a kernel that takes one request of each submit gets the rest later, and nothing twice
    if !has(BackendKind::Aio, 1) || !works("gdb", &["-batch", "-nx", "-ex", "run", "true"]) {
        return;
    }
    let folder = Copies::new("parts");
    // Stops before and after the call; the second argument is the number of requests.
    let script = "set startup-with-shell off\nset print thread-events off\ncatch syscall io_submit\ncommands\nsilent\n\
        if $rsi > 1\nprintf \"of %d\\n\", $rsi\nset $rsi = 1\nend\ncontinue\nend\nrun\nquit $_exitcode\n";
    fs::write(folder.0.text("script"), script).unwrap();
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx", "-x", &folder.0.text("script"), "--args"]).args(folder.copy("aio"));
    let output = gdb.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let parts = said.lines().filter(|line| line.starts_with("of ")).count();
    assert!(parts > 0, "no submit had more than one: {said}");
    folder.judge("one of each submit", &output, &Whole);
    println!("{parts} submits were cut");
}
