//! The program `iobench`, run as its users run it: what it reports, what it leaves alone, what it
//! refuses.
//!
//! No figure is judged here: the speed depends on the machine and its other load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use coralio::driver::BackendKind;
use serde_json::Value;

use crate::common::{example, has};

const BLOCK: usize = 4096;

fn iobench() -> Command {
    Command::new(example("iobench"))
}

fn run(arguments: &[&str]) -> Output {
    iobench().args(arguments).output().unwrap()
}

/// Runs the program, asserts success, and parses its JSON.
fn measure(arguments: &[&str]) -> Value {
    let output = run(&[arguments, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}: {errors}", output.status);
    serde_json::from_slice(&output.stdout).expect("JSON, and nothing else, on the standard output")
}

/// Runs the program, asserts exit code 1, and returns its one line of errors.
fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{arguments:?}: no figures next to an error");
    assert!(errors.starts_with("iobench: ") && errors.lines().count() == 1, "{arguments:?}: one line: {errors}");
    errors
}

/// Returns the options that compare with `raw`, which uses native AIO by default: on threads, where
/// the machine refuses AIO.
fn versus_raw() -> &'static [&'static str] {
    let all = &["--versus", "raw", "--backend", "threads"];
    if has(BackendKind::Aio, 1) { &all[..2] } else { all }
}

/// Returns an empty directory for one test.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("iobench").join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Creates a file of `blocks` blocks, no two of them equal. Returns its path and content.
fn file(path: PathBuf, blocks: usize) -> (String, Vec<u8>) {
    let contents: Vec<u8> = (0..blocks * BLOCK).map(|i| (i / BLOCK + i % 251) as u8).collect();
    fs::write(&path, &contents).unwrap();
    (path.into_os_string().into_string().unwrap(), contents)
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no number {key:?} in {value}"))
}

fn count(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("no count {key:?} in {value}"))
}

#[test]
fn json_reports_all_figures() {
    // Checks that a run without an opponent reports operations, speed, cost and latencies.
    let (path, _) = file(folder("json").join("file"), 64);
    let all = measure(&["--file", &path, "--ops", "1000", "--depth", "8", "--seed", "7"]);
    assert_eq!(all["file"], path.as_str());
    assert_eq!(all["scratch"], false);
    assert_eq!(count(&all, "size"), 64 * BLOCK as u64);
    assert_eq!(count(&all, "block_size"), BLOCK as u64);
    assert_eq!(count(&all, "depth"), 8);
    assert_eq!(count(&all, "seed"), 7);
    assert!(all["direct"].is_boolean());
    assert!(all["pinned_cpu"].is_null());
    assert_eq!((&all["pattern"], &all["operation"]), (&"random".into(), &"read".into()));
    for key in ["iops", "cpu_ns_per_op", "user_ns_per_op", "system_ns_per_op", "seconds", "system_calls_per_op"] {
        let figure = number(&all["ours"], key);
        assert!(figure.is_finite() && figure >= 0.0, "{key}: {figure}");
    }
    let at = |key| count(&all["latency_ns"], key);
    assert!(0 < at("p50") && at("p50") <= at("p99") && at("p99") <= at("p99_9") && at("p99_9") <= at("max"));
    assert!(all.get("raw").is_none() && all.get("ratio_cpu").is_none(), "no comparison was requested");
}

#[test]
fn threads_do_their_operations_simultaneously() {
    // Checks that each thread performs the operations, that the counts are those of all threads, and
    // that a failure on one is reported.
    let (path, _) = file(folder("threads").join("file"), 16);
    let all = measure(&["--file", &path, "--ops", "500", "--depth", "4", "--threads", "3"]);
    assert_eq!((count(&all, "threads"), count(&all["ours"], "operations")), (3, 1500));
    assert_eq!(count(&all["ours"]["counts"], "completions"), 1500);
    assert!(count(&all["latency_ns"], "p50") > 0);
    let own = measure(&["--size", "1m", "--ops", "500", "--depth", "4", "--threads", "2"]);
    assert_eq!((count(&own, "threads"), count(&own["ours"], "operations")), (2, 1000));
    assert!(refused(&["--threads", "2", "--pin", "0"]).contains("--threads works without"));
    assert!(refused(&["--threads", "2", "--file", "/nonexistent"]).contains("no such file"));
}

#[test]
fn requested_number_of_operations_is_done() {
    // Checks that --ops N performs N operations, counts the warm-up separately, and that the
    // engine's counts agree.
    let (path, _) = file(folder("ops").join("file"), 16);
    for (ops, depth) in [(1, "1"), (1, "32"), (777, "5"), (1024, "64")] {
        let all = measure(&["--file", &path, "--ops", &ops.to_string(), "--depth", depth]);
        assert_eq!(count(&all["ours"], "operations"), ops);
        assert_eq!(count(&all["ours"]["counts"], "requests"), ops);
        assert_eq!(count(&all["ours"]["counts"], "completions"), ops);
        assert!(count(&all["ours"]["counts"], "submits") <= ops);
        assert!(count(&all, "warm_up_operations") > 0);
    }
}

#[test]
fn run_lasts_the_requested_time() {
    // Checks that --seconds ends by the clock, after whole operations.
    let all = measure(&["--seconds", "0.01", "--size", "1m"]);
    assert!(number(&all["ours"], "seconds") >= 0.01);
    assert_eq!(count(&all["ours"], "operations"), count(&all["ours"]["counts"], "requests"));
}

#[test]
fn versus_raw_does_the_same_work() {
    // Checks that both sides perform N operations in every round, and that the ratios are those of
    // the medians.
    let (path, contents) = file(folder("versus").join("file"), 64);
    for (direct, backend) in [("auto", "aio"), ("never", "aio"), ("auto", "uring"), ("never", "uring")] {
        if !has(backend.parse().unwrap(), 16) {
            continue;
        }
        let common = ["--file", &path, "--versus", "raw", "--rounds", "3", "--ops", "600", "--depth", "16"];
        let all = measure(&[&common[..], &["--direct", direct, "--backend", backend]].concat());
        assert_eq!(all["backend"], backend);
        let rounds = all["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 3);
        for round in rounds {
            for side in ["ours", "raw"] {
                assert_eq!(count(&round[side], "operations"), 600, "{side}");
                assert_eq!(count(&round[side]["counts"], "requests"), 600, "{side}");
            }
        }
        for (ratio, figure) in [("ratio_cpu", "cpu_ns_per_op"), ("ratio_iops", "iops")] {
            let median = |side: &str| {
                let mut each: Vec<_> = rounds.iter().map(|round| number(&round[side], figure)).collect();
                each.sort_by(f64::total_cmp);
                each[1]
            };
            let ratio = number(&all, ratio);
            assert!(ratio.is_finite() && ratio > 0.0, "{ratio}");
            assert!((ratio / (median("ours") / median("raw")) - 1.0).abs() < 1e-6, "{ratio}");
        }
        for side in [&all, &all["raw"]] {
            assert!(count(&side["latency_ns"], "p50") > 0, "from separate rounds");
        }
    }
    assert!(fs::read(&path).unwrap() == contents, "reads have changed the file");
}

#[test]
fn every_opponent_works_on_the_same_blocks() {
    // Checks that each opponent performs N operations a round, and with --stride 8k writes every
    // other block and no others.
    for (nth, versus) in [
        &["raw"][..],
        &["raw", "--backend", "threads"],
        &["pread"],
        &["tokio"],
        &["tokio", "--direct", "never"],
        &["qemu"],
        &["qemu", "--backend", "threads", "--direct", "never"],
    ]
    .into_iter()
    .enumerate()
    {
        if versus[0] == "qemu" && Command::new("qemu-img").arg("--version").output().is_err() {
            eprintln!("skipped: no qemu-img");
            continue;
        }
        if versus == ["raw"] && !has(BackendKind::Aio, 8) {
            continue;
        }
        let (path, contents) = file(folder(&format!("opponent{nth}")).join("file"), 32);
        let common = ["--file", &path, "--write", "--stride", "8k", "--ops", "600", "--depth", "8", "--rounds", "2"];
        let all = measure(&[&common[..], &["--versus"], versus].concat());
        assert_eq!(all["versus"], versus[0]);
        let rounds = all["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 2);
        for round in rounds {
            assert_eq!(count(&round["ours"], "operations"), 600, "{versus:?}");
            assert_eq!(count(&round[versus[0]], "operations"), 600, "{versus:?}");
        }
        assert!(number(&all, "ratio_cpu").is_finite() && number(&all, "ratio_iops").is_finite());
        let now = fs::read(&path).unwrap();
        assert_eq!(now.len(), contents.len());
        for (i, (now, before)) in now.chunks(BLOCK).zip(contents.chunks(BLOCK)).enumerate() {
            let written = now.iter().all(|&byte| byte == 0xc5);
            assert!(if i % 2 == 0 { written } else { now == before }, "{versus:?}: block {i}");
        }
    }
}

#[test]
fn disk_in_a_qcow2_image_is_measured() {
    // Checks that the whole guest disk is read and written, and that qemu-img works on the same
    // one.
    let path = folder("qcow2").join("image").into_os_string().into_string().unwrap();
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", &path, "1M"]).status();
    if made.is_err() {
        eprintln!("skipped: no qemu-img");
        return;
    }
    let image = ["--qcow2", "--file", &path, "--sequential", "--depth", "8"];
    let all = measure(&[&image[..], &["--ops", "256", "--write"]].concat());
    assert_eq!(count(&all, "size"), 1 << 20);
    let filled = ["-f", "qcow2", "-c", "read -P 0xc5 0 1M", &path];
    let read = Command::new("qemu-io").args(filled).output().unwrap();
    assert!(!String::from_utf8_lossy(&read.stdout).contains("failed"), "{read:?}");
    assert!(Command::new("qemu-img").args(["check", "-q", &path]).status().unwrap().success());
    let against = measure(&[&image[..], &["--ops", "256", "--versus", "qemu", "--rounds", "1"]].concat());
    assert!(number(&against, "ratio_cpu") > 0.0, "{against}");
    assert!(refused(&[&image[..], &["--versus", "raw"]].concat()).contains("does not support qcow2 images"));
}

#[test]
fn clock_is_not_read_without_latencies() {
    // Checks that --no-latency omits the latencies, with and without an opponent.
    let all = measure(&["--no-latency", "--ops", "100", "--size", "1m"]);
    assert!(all.get("latency_ns").is_none());
    let versus = ["--no-latency", "--ops", "100", "--size", "1m", "--rounds", "2"];
    let all = measure(&[&versus, versus_raw()].concat());
    assert!(all.get("latency_ns").is_none() && all["raw"].get("latency_ns").is_none());
    assert!(number(&all, "ratio_cpu") > 0.0);
}

#[test]
fn reads_leave_the_file_unchanged() {
    // Checks that neither random nor sequential reads change the content or the length, and that no
    // other file is created.
    let folder = folder("reads");
    let (path, contents) = file(folder.join("file"), 33);
    measure(&["--file", &path, "--ops", "500"]);
    measure(&["--file", &path, "--ops", "500", "--sequential", "--block-size", "8k", "--direct", "never"]);
    assert!(fs::read(&path).unwrap() == contents);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn writes_change_only_the_named_file_with_a_warning() {
    // Checks that --write warns, overwrites exactly the range that --size names, and never changes
    // the length.
    let folder = folder("writes");
    let (path, contents) = file(folder.join("file"), 32);
    let (other, other_contents) = file(folder.join("other"), 32);
    let output = run(&["--file", &path, "--size", "64k", "--sequential", "--write", "--ops", "32"]);
    assert!(output.status.success());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("overwrites") && errors.contains(&path), "{errors}");
    let now = fs::read(&path).unwrap();
    assert_eq!(now.len(), contents.len());
    let (worked_on, beyond) = now.split_at(64 * 1024);
    assert!(worked_on.iter().all(|byte| *byte == worked_on[0]), "blocks not written");
    assert!(beyond == &contents[64 * 1024..], "written beyond --size");

    let versus = ["--file", &path, "--write", "--ops", "200", "--rounds", "1"];
    let all = measure(&[&versus, versus_raw()].concat());
    assert_eq!(all["operation"], "write");
    assert_eq!(fs::read(&path).unwrap().len(), contents.len());
    assert!(fs::read(other).unwrap() == other_contents);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
}

#[test]
fn scratch_file_is_removed() {
    // Checks that without --file the program works in the directory for temporary files and leaves
    // it empty, also after a failure.
    let folder = folder("scratch");
    for (arguments, good) in [(&["--write", "--ops", "100", "--size", "2m"][..], true), (&["--size", "1k"], false)] {
        let output = iobench().args(arguments).env("TMPDIR", &folder).output().unwrap();
        assert_eq!(output.status.success(), good);
        assert_eq!(output.stderr.is_empty(), good, "nothing of the user's is overwritten: no warning");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}

#[test]
fn text_output_is_readable() {
    // Checks that the text output has the figures of the JSON, with their units.
    let output = run(&[&["--ops", "200", "--size", "1m", "--rounds", "2"], versus_raw()].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["IOPS", "CPU", "ratio", "median", "p99.9", "system calls per operation", "bare loop"] {
        assert!(text.contains(word), "{word:?} is missing:\n{text}");
    }
    let text = String::from_utf8(run(&["--ops", "200", "--size", "1m"]).stdout).unwrap();
    for word in ["IOPS", "CPU", "p50", "p99", "p99.9", "200 operations", "MiB/s"] {
        assert!(text.contains(word), "{word:?} is missing:\n{text}");
    }
}

#[test]
fn invalid_arguments_are_refused() {
    // Checks that each bad option and file ends in one line with cause and remedy, and exit code 1.
    let folder = folder("bad");
    let (small, _) = file(folder.join("small"), 1);
    let (two, _) = file(folder.join("two"), 2);
    let folder = folder.to_str().unwrap();
    let missing = format!("{folder}/missing");
    for (arguments, word) in [
        (&["--depth", "0"][..], "--depth 0"),
        (&["--depth", "1000000"], "depth 1000000"),
        (&["--ops", "0"], "--ops 0"),
        (&["--seconds", "0"], "--seconds 0"),
        (&["--block-size", "0"], "--block-size 0"),
        (&["--versus", "raw", "--rounds", "0"], "--rounds 0"),
        (&["--pin", "1000000"], "--pin 1000000"),
        (&["--stride", "0"], "--stride 0"),
        (&["--stride", "5000"], "--stride 5000"),
        (&["--versus", "qemu"], "--stride"),
        (&["--versus", "qemu", "--sequential", "--file", &two, "--size", "4k"], "whole file"),
        (&["--file", folder], "directory"),
        (&["--file", "/dev/null"], "block device"),
        (&["--file", &missing], "no such file"),
        (&["--file", &missing, "--write"], "no such file"),
        (&["--file", &small, "--block-size", "8k"], "less than one block"),
        (&["--file", &small, "--size", "8k", "--write"], "exceeds"),
    ] {
        let line = refused(arguments);
        assert!(line.contains(word), "{arguments:?}: {word:?} is missing: {line}");
    }
    assert!(!Path::new(&missing).exists(), "a file named by the user is never created");
}

#[test]
fn usage_errors_come_from_clap() {
    // Checks that options that cannot be parsed or combined end with exit code 2.
    for arguments in [
        &["--size", "many"][..],
        &["--size", "99999999999t"],
        &["--ops", "1", "--seconds", "1"],
        &["--rounds", "3"],
        &["--direct", "perhaps"],
        &["--backend", "windows"],
        &["--versus", "windows"],
    ] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

/// A file that claims 4096 bytes, has fewer, cannot be written even by root, and has does not
/// support direct I/O.
const ODD_FILE: &str = "/sys/kernel/uevent_seqnum";

#[test]
fn odd_file_is_refused() {
    // Checks that a short read is never counted as an operation, on either side; and that the lack
    // of direct I/O and of permission are errors with cause and remedy.
    if !fs::metadata(ODD_FILE).is_ok_and(|odd| odd.len() == BLOCK as u64) {
        return eprintln!("nothing checked: this machine has no {ODD_FILE} of {BLOCK} bytes");
    }
    let refused = |more: &[&str]| refused(&[&["--file", ODD_FILE, "--ops", "10"], more].concat());
    for more in [&["--depth", "3"][..], &["--versus", "raw", "--rounds", "1"]] {
        let line = refused(more);
        assert!(line.contains("short read: ") && line.contains("at offset 0"), "{line}");
    }
    let line = refused(&["--direct", "always"]);
    assert!(line.contains("does not support direct I/O") && line.contains("--direct auto"), "{line}");
    assert!(!line.contains("Direct::"), "{line}");
    assert!(refused(&["--write"]).contains("ermission"));
}
