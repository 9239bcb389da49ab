//! Helpers shared by several test files.
#![allow(dead_code, unreachable_pub)]

use std::any::Any;
use std::fmt::Display;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coralio_runtime::{EventSource, Flush, HomeToken, JoinHandle, LoopToken, SourceState};

/// A log of events, in order. Any thread may write to it.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn add(&self, what: impl Display) {
        self.0.lock().unwrap().push(what.to_string());
    }

    /// Returns the whole log as one line, and clears it.
    pub fn take(&self) -> String {
        std::mem::take(&mut *self.0.lock().unwrap()).join(" ")
    }

    /// Returns a value that logs when it is dropped.
    pub fn on_drop(&self, what: impl Display) -> OnDrop {
        OnDrop(self.clone(), what.to_string())
    }
}

pub struct OnDrop(Log, String);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.add(&self.1);
    }
}

/// Returns the text of a panic.
pub fn text(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, Some(text)) => (*text).to_string(),
        _ => "a payload that is no text".to_string(),
    }
}

/// Runs `f`, which must panic, and returns the panic message.
pub fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(_) => panic!("it was expected to panic"),
        Err(payload) => text(&*payload),
    }
}

/// Returns the panic message of a spawned coroutine.
pub fn panic_in<T: 'static>(task: JoinHandle<T>) -> String {
    match task.join() {
        Ok(_) => panic!("it was expected to panic"),
        Err(payload) => text(&*payload),
    }
}

const CHILD: &str = "CORALIO_TEST_CHILD";

/// Runs the test of this name again in a child process, and returns how that ended; `None` in the
/// child.
pub fn in_child(test: &str) -> Option<Output> {
    if std::env::var_os(CHILD).is_some() {
        return None;
    }
    let me = std::env::current_exe().expect("a test knows its own program");
    let run = Command::new(me).args(["--exact", test, "--nocapture"]).env(CHILD, "1").output();
    Some(run.expect("a test can run itself"))
}

/// Asserts that the child printed `cause`, and was ended by `abort`.
pub fn assert_aborted(child: &Output, cause: &str) {
    use std::os::unix::process::ExitStatusExt;
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(said.contains(cause), "expected `{cause}`, but it said:\n{said}");
    assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{}\n{said}", child.status);
}

/// Returns `count`, reduced if CORALIO_TEST_DIVISOR says so: valgrind is about fifty times slower.
pub fn scaled(count: usize) -> usize {
    let divisor = std::env::var("CORALIO_TEST_DIVISOR").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    (count / divisor).max(2)
}

/// An I/O engine without completions, which sleeps by calling `how`.
pub struct Sleeper<F> {
    pub idle: bool,
    pub how: F,
}

impl<F: Fn(BorrowedFd<'_>, Option<Duration>) + Send + Sync + 'static> EventSource for Sleeper<F> {
    fn dispatch(&self, _token: LoopToken<'_>) -> bool {
        false
    }

    fn flush(&self, _token: LoopToken<'_>, _when: Flush) -> bool {
        false
    }

    fn state(&self) -> SourceState {
        if self.idle { SourceState::Idle } else { SourceState::Waiting }
    }

    fn describe(&self) -> String {
        String::new()
    }

    fn sleep(
        &self,
        _token: HomeToken<'_>,
        other: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> Option<io::Result<bool>> {
        (self.how)(other, timeout);
        Some(Ok(false))
    }
}
