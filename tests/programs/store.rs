//! The program `store`, run as its users run it.

use std::process::{Command, Output};

use crate::common::{Folder, example};

fn run(arguments: &[&str]) -> Output {
    Command::new(example("store")).args(arguments).output().unwrap()
}

#[test]
fn store_keeps_values_for_later_processes() {
    // E20, E23: what one process has put, others read; a damaged record is not read
    let folder = Folder::new("store");
    let dir = folder.path("");
    let dir = dir.to_str().unwrap();
    for (key, value) in [("a", "1"), ("b", "2"), ("a", "3")] {
        assert!(run(&["put", dir, key, value]).status.success());
    }
    assert_eq!(run(&["get", dir, "a"]).stdout, b"3\n");
    let mut log = std::fs::read(folder.path("log.0")).unwrap();
    *log.last_mut().unwrap() ^= 1;
    folder.file("log.0", &log);
    assert_eq!([run(&["get", dir, "a"]).stdout, run(&["get", dir, "b"]).stdout], [b"1\n", b"2\n"]);
    let missing = run(&["get", dir, "c"]);
    assert_eq!((missing.status.code(), &*missing.stderr), (Some(1), &b"store: there is no key \"c\"\n"[..]));
}

#[test]
fn crash_test_reports_a_flaw() {
    // E17: the crash test passes, and with a flaw reports how to reproduce the failure
    let passed = run(&["crash", "--seeds", "20"]);
    assert_eq!((passed.status.code(), &*passed.stdout), (Some(0), &b"20 runs passed\n"[..]));
    let failed = run(&["crash", "--seeds", "20", "--flaw", "no-sync"]);
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(failed.status.code() == Some(1) && said.contains("store: seed 0 fails (run 1, "), "{said}");
}
