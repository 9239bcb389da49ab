//! Messages on standard error: their form, and that a failed write has no effect.

mod common;

use std::fmt;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Log, in_child};
use coralio_runtime::{AioContext, Coroutine, can_suspend, install_panic_hook, report, spawn, suspend};

const CHILD: &str = "CORALIO_TEST_CHILD";

/// Runs the test of this name in child processes whose standard error fails: it has no reader, or
/// its disk is full. Returns whether this is such a process.
fn is_mute_child(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let unread = || Stdio::from(OwnedFd::from(UnixStream::pair().unwrap().1));
    for stderr in [full(), unread()] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(child.wait().unwrap().success(), "{said}");
    }
    false
}

#[test]
fn context_ends_without_standard_error() {
    // C9: a message that cannot be written prevents no coroutine from being unwound, and leaves no
    // home behind
    if !is_mute_child("context_ends_without_standard_error") {
        return;
    }
    let log = Log::default();
    let kept = log.clone();
    AioContext::run(move |_| {
        for name in ["first", "second"] {
            let dropped = kept.on_drop(name);
            Coroutine::new(move || {
                let _dropped = dropped;
                suspend();
            })
            .enter();
        }
    });
    assert_eq!(log.take(), "first second");
    assert!(!can_suspend());
    assert!(AioContext::current().is_none());
    AioContext::run(|_| assert_eq!(spawn(|| 7).join().unwrap(), 7));
}

#[test]
fn deadlock_is_reported_without_standard_error() {
    // C9, X11: a deadlock report that cannot be written has no effect on the loop
    if !is_mute_child("deadlock_is_reported_without_standard_error") {
        return;
    }
    AioContext::builder()
        .report_deadlocks_after(Some(Duration::from_millis(1)))
        .run(|ctx| {
            let lost = spawn(suspend);
            let waker = lost.coroutine();
            drop(spawn(move || drop(lost.join())));
            ctx.poll(false);
            // Returns only if the loop has nothing to wait for, and has reported that.
            ctx.poll(true);
            waker.wake();
            ctx.poll(false);
        })
        .unwrap();
}

#[test]
fn message_is_written_whole() {
    // X11: a message of any length ends with one line end; a part whose formatting panics is left
    // out, and the panic is contained
    struct Bad;
    impl fmt::Display for Bad {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("no words");
        }
    }
    let long = "0123456789".repeat(500);
    let Some(child) = in_child("message_is_written_whole") else {
        report(format_args!("short {}", 1));
        report(format_args!("ended\n"));
        report(format_args!("long {long} {long}"));
        report(format_args!("bad {Bad} more"));
        return;
    };
    assert!(child.status.success());
    let said = String::from_utf8(child.stderr).unwrap();
    let expected = format!("short 1\nended\nlong {long} {long}\n");
    assert!(said.contains(&expected), "{said}");
    assert!(said.contains("no words"), "the panic hook is called: {said}");
    assert!(said.ends_with("bad  (the rest of the message could not be formatted)\n"), "{said}");
}

#[test]
fn long_message_does_not_wait_for_a_stopped_reader() {
    // X11: standard error is a pipe with room for a part of the message, and the reader has
    // stopped: the rest is dropped
    if std::env::var_os(CHILD).is_some() {
        report("x".repeat(1 << 20));
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "long_message_does_not_wait_for_a_stopped_reader", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Reads nothing, and keeps the pipe open.
    assert!(child.wait().unwrap().success());
}

#[inline(never)]
fn parses_nothing() {
    panic!("no input");
}

#[test]
fn panic_message_names_the_coroutine() {
    // S16: with the hook installed, a line names the coroutine that panics, and the hook before it is
    // called; a payload that is passed on writes nothing. std's backtrace ends at the coroutine's
    // closure.
    let Some(child) = in_child("panic_message_names_the_coroutine") else {
        if std::env::var_os("RUST_BACKTRACE").is_none() {
            // SAFETY: the only test of this process.
            #[allow(unsafe_code)]
            unsafe {
                std::env::set_var("RUST_BACKTRACE", "1");
            }
        }
        install_panic_hook();
        install_panic_hook();
        AioContext::run(|_| {
            let parser = Coroutine::builder().name("parser").spawn(parses_nothing).unwrap();
            let payload = parser.join().unwrap_err();
            let again = spawn(|| std::panic::resume_unwind(payload));
            assert!(again.join().is_err());
        });
        return;
    };
    let said = String::from_utf8(child.stderr).unwrap();
    assert!(child.status.success(), "{said}");
    let lines: Vec<_> = said.lines().filter(|line| line.starts_with("coralio: ")).collect();
    let [line] = lines[..] else { panic!("not one line: {said}") };
    assert!(
        line.starts_with("coralio: panic in coroutine 'parser', created at ") && line.contains("reports.rs:"),
        "{line}"
    );
    assert!(said.contains("no input"), "{said}");
    // Backtraces are off under valgrind, where to read the debug information takes seconds.
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value == "0") {
        return;
    }
    assert!(said.contains("parses_nothing"), "{said}");
    assert!(!said.contains("coralio_runtime::scheduler::switch"), "{said}");
}
