//! A program whose system calls fail, are late or do a part, as `strace` and `gdb` have them do: the copy is whole, or there is none and
//! the program says why.
//!
//! What `strace` answers for a call was not done. So of native AIO it can only have a submit say "none": told of one more than
//! the kernel has, nobody could know better, and would wait for it. A part that is true takes `gdb`. Of io_uring the
//! ring itself tells, whatever the call says.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{has, skipped};
use coralio_aio::KernelChoice;

const LEN: usize = 1 << 20;

/// What comes of it.
enum Comes {
    Whole,
    /// No copy, and these words: an error of the program, or, where the loop cannot go on, a panic.
    Says(&'static str),
}
use Comes::{Says, Whole};

/// A test's own folder, gone when it ends, with the file that is to be copied.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("injected-{}-{test}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("src"), Folder::content()).unwrap();
        Folder(path)
    }

    /// No two blocks of it are alike.
    fn content() -> Vec<u8> {
        (1u64..).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()).take(LEN).collect()
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).into_os_string().into_string().unwrap()
    }

    /// The arguments for a tool that runs the program with some coroutines, each with a block of 4 KiB.
    fn copy(&self, kernel: &str) -> Vec<String> {
        let test = std::env::current_exe().unwrap();
        let program = test.parent().and_then(Path::parent).unwrap().join("examples/copy");
        assert!(program.is_file(), "no {}; make it first: cargo build --example copy", program.display());
        let program = program.into_os_string().into_string().unwrap();
        let options = ["--depth", "16", "--block-size", "4k", "--kernel", kernel].map(String::from);
        [program, self.path("src"), self.path("dst")].into_iter().chain(options).collect()
    }

    /// The copy is whole, or the program has said why not, and there is none.
    #[track_caller]
    fn judge(&self, what: &str, output: &Output, comes: &Comes) {
        let said = String::from_utf8_lossy(&output.stderr);
        let copy = fs::read(self.path("dst"));
        match *comes {
            Whole => {
                assert!(output.status.success(), "{what}: {}: {said}", output.status);
                assert!(copy.unwrap() == Folder::content(), "{what}: another content");
            }
            Says(words) => {
                assert!(matches!(output.status.code(), Some(1 | 101)), "{what}: {}: {said}", output.status);
                assert!(said.contains(words), "{what}: no {words:?} in: {said}");
                assert!(copy.is_err(), "{what}: a copy in spite of the error");
            }
        }
        let _ = fs::remove_file(self.path("dst"));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether the tool is here, and may look into other processes.
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
fn inject(kernel: &str, faults: &[(&str, Comes)]) {
    // A filter answers a system call before strace sees it.
    let calls = match kernel {
        "aio" | "auto" => KernelChoice::Aio,
        "uring" => KernelChoice::Uring,
        _ => KernelChoice::Threads,
    };
    if !has(calls, 1) || !works("strace", &["-f", "-qq", "-e", "trace=none", "true"]) {
        return;
    }
    let folder = Folder::new(kernel);
    for (fault, comes) in faults {
        let log = folder.path("log");
        let call = fault.split(':').next().unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", &log, "-e", &format!("trace={call}"), "-e", &format!("inject={fault}")]);
        let output = strace.args(folder.copy(kernel)).env("RUST_BACKTRACE", "0").output().unwrap();
        let log = fs::read_to_string(log).unwrap();
        let injected = log.lines().filter(|line| line.contains("(INJECTED)") || line.contains("(DELAYED)")).count();
        assert!(injected > 0, "{kernel}, {fault}: nothing was injected: {log}");
        folder.judge(&format!("{kernel}, {fault}"), &output, comes);
        println!("{kernel}: {fault}: {injected} times");
    }
}

#[test]
fn native_aio() {
    // E2, E13, E14, H5, H6: refused, taken in none of its parts, late; sleeps that end early, or cannot be
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
            ("io_getevents:error=EINVAL:when=3", Says("the loop cannot sleep: Invalid argument")),
            ("io_setup:error=EAGAIN", Says("raise the limit as root: sysctl fs.aio-max-nr=")),
        ],
    );
}

#[test]
fn io_uring() {
    // E2, E13, E14, H5, H6: the same; and whatever the call says that was taken, what was taken counts
    inject(
        "uring",
        &[
            ("io_uring_enter:error=EAGAIN:when=1+2", Whole),
            ("io_uring_enter:error=EBUSY:when=1+2", Whole),
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
            ("io_uring_setup:error=EPERM", Says("io_uring is forbidden here, likely by a seccomp filter")),
        ],
    );
}

#[test]
fn threads() {
    // E2, E13, E14: the calls of the workers; the first ones of the main thread are the loader's
    inject(
        "threads",
        &[
            ("pread64:error=EINTR:when=9+2", Whole),
            ("pwrite64:error=EINTR:when=1+2", Whole),
            ("pread64:delay_enter=1000", Whole),
            ("pwrite64:delay_exit=1000", Whole),
            ("ppoll:error=EINTR:when=1+2", Whole),
            ("pread64:error=EIO:when=9", Says("the device failed: see the kernel's log")),
            ("pwrite64:error=ENOSPC:when=3", Says("the file system is full")),
        ],
    );
}

#[test]
fn what_was_forbidden_is_done_by_another() {
    // E14, E16: what is left is chosen
    inject("auto", &[("io_setup:error=ENOSYS", Whole), ("io_submit:error=EAGAIN:when=1+2", Whole)]);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_part_of_each_submit() {
    // E2: of all that is handed over the kernel is shown the first one alone; the rest goes later, and nothing twice
    if !has(KernelChoice::Aio, 1) || !works("gdb", &["-batch", "-nx", "-ex", "run", "true"]) {
        return;
    }
    let folder = Folder::new("parts");
    // Stops before and after the call; the second argument is how many.
    let script = "set startup-with-shell off\nset print thread-events off\ncatch syscall io_submit\ncommands\nsilent\n\
        if $rsi > 1\nprintf \"of %d\\n\", $rsi\nset $rsi = 1\nend\ncontinue\nend\nrun\nquit $_exitcode\n";
    fs::write(folder.path("script"), script).unwrap();
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx", "-x", &folder.path("script"), "--args"]).args(folder.copy("aio"));
    let output = gdb.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let parts = said.lines().filter(|line| line.starts_with("of ")).count();
    assert!(parts > 0, "no submit had more than one: {said}");
    folder.judge("one of each submit", &output, &Whole);
    println!("{parts} submits were cut");
}
