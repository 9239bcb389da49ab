//! What several test files need.
#![allow(dead_code, unreachable_pub)]

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use coralio_runtime::JoinHandle;

/// What happened, in order. It can be written to from any thread.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub fn add(&self, what: impl Display) {
        self.0.lock().unwrap().push(what.to_string());
    }

    /// All of it, in one line; it begins anew.
    pub fn take(&self) -> String {
        std::mem::take(&mut *self.0.lock().unwrap()).join(" ")
    }

    /// A value that notes when it is dropped.
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

/// The text of a panic.
pub fn text(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, Some(text)) => (*text).to_string(),
        _ => "a payload that is no text".to_string(),
    }
}

/// Runs `f`, which panics, and returns what it says.
pub fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(_) => panic!("it was expected to panic"),
        Err(payload) => text(&*payload),
    }
}

/// What a spawned coroutine's panic said.
pub fn panic_in<T: 'static>(task: JoinHandle<T>) -> String {
    match task.join() {
        Ok(_) => panic!("it was expected to panic"),
        Err(payload) => text(&*payload),
    }
}

const CHILD: &str = "CORALIO_TEST_CHILD";

/// Runs the test of this name again, in a process of its own, and returns how that ended; `None` there.
pub fn in_child(test: &str) -> Option<Output> {
    if std::env::var_os(CHILD).is_some() {
        return None;
    }
    let me = std::env::current_exe().expect("a test knows its own program");
    let run = Command::new(me).args(["--exact", test, "--nocapture"]).env(CHILD, "1").output();
    Some(run.expect("a test can run itself"))
}

/// Asserts that the child was ended by `abort`, having said `cause`.
pub fn assert_aborted(child: &Output, cause: &str) {
    use std::os::unix::process::ExitStatusExt;
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(said.contains(cause), "expected `{cause}`, but it said:\n{said}");
    assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{}\n{said}", child.status);
}

/// `count`, or less where CORALIO_TEST_DIVISOR says so: under valgrind everything takes fifty times as long.
pub fn scaled(count: usize) -> usize {
    let divisor = std::env::var("CORALIO_TEST_DIVISOR").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    (count / divisor).max(2)
}
