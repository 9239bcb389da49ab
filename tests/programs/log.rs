//! The program `log`, run as its users run it: acknowledged records survive, whatever happens to
//! the process or to the tail.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::{Folder, example, has, skipped};

fn run(arguments: &[&str]) -> Output {
    Command::new(example("log")).args(arguments).output().unwrap()
}

/// Runs the program, asserts success, and returns its output.
#[track_caller]
fn good(arguments: &[&str]) -> String {
    let output = run(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    assert_eq!(errors, "");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program, asserts exit code 1, and returns its one line of errors.
#[track_caller]
fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    assert!(errors.starts_with("log: ") && errors.lines().count() == 1, "{arguments:?}: {errors}");
    errors
}

/// Returns the content of a log: the number of records, whether its tail is torn, and all labels.
#[track_caller]
fn contents(path: &str) -> (u64, bool, HashSet<String>) {
    let text = good(&["--file", path, "--verify", "--list"]);
    let (summary, list) =
        text.lines().collect::<Vec<_>>().split_last().map(|(last, all)| (*last, all.to_vec())).unwrap();
    let records = summary.split(' ').next().unwrap().parse().unwrap();
    let labels: HashSet<_> = list.iter().map(|line| line.to_string()).collect();
    assert_eq!(labels.len(), list.len(), "a record is there twice");
    assert_eq!(records, list.len() as u64);
    (records, summary.contains("torn"), labels)
}

#[test]
fn every_record_is_kept_on_every_backend() {
    // E16, E13: records appended by several writers at a time are in the file once, and a second
    // run appends behind them
    let folder = Folder::new("all");
    for backend in ["aio", "uring", "threads"] {
        if !has(backend.parse().unwrap(), 8) {
            continue;
        }
        let path = folder.text(backend);
        let common = ["--file", &path, "--backend", backend, "--writers", "8", "--records", "50", "--payload", "300"];
        let text = good(&common);
        assert!(text.contains("400 commits") && !text.contains("found"), "{text}");
        let (records, torn, labels) = contents(&path);
        assert_eq!((records, torn), (400, false));
        for writer in 0..8 {
            assert!((0..50).all(|count| labels.contains(&format!("{writer} {count}"))));
        }
        let text = good(&common);
        assert!(text.contains("400 records found\n"), "{text}");
        assert_eq!(contents(&path).0, 800);
    }
}

#[test]
fn many_writers_share_one_sync() {
    // E3: writers that are ready share one batch, and none waits for a second sync
    let folder = Folder::new("group");
    let text = good(&["--file", &folder.text("log"), "--writers", "32", "--records", "100"]);
    let per_sync: f64 = text.split(" commits per sync").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(per_sync > 16.0, "{text}");
}

#[test]
fn append_during_a_batch_joins_the_next() {
    // S2: a writer that arrives during a batch is in the next; the last of the next batch, which
    // nothing else would wake, leads it when the batch before is done; on either side
    let folder = Folder::new("stagger");
    let path = folder.text("log");
    for turns in ["1", "3", "15", "100"] {
        let common = ["--file", &path, "--writers", "16", "--records", "1", "--stagger", turns];
        good(&[&common[..], &["--versus", "threads", "--rounds", "5"]].concat());
    }
    assert_eq!(contents(&path).0, 4 * 16 * 10);
}

#[test]
fn large_records_and_long_logs_work() {
    // E10: records may cross blocks, and a log may be longer than the window of the scan
    let folder = Folder::new("large");
    let sizes = [("12", "16"), ("13", "16"), ("4080", "16"), ("4081", "16"), ("65536", "16")];
    // One record per batch, which leaves less than a header to the end of its block.
    for (payload, writers) in sizes.into_iter().chain([("4075", "1"), ("4070", "1")]) {
        let path = folder.text(payload);
        good(&["--file", &path, "--payload", payload, "--writers", writers, "--records", "10"]);
        assert_eq!(contents(&path).0, 10 * writers.parse::<u64>().unwrap(), "{payload}");
    }
}

#[test]
fn torn_tail_is_cut_off() {
    // E10, E15: wherever the tail is torn, the complete records before it are kept, and records
    // appended after the cut are found again
    let folder = Folder::new("torn");
    let whole = folder.text("whole");
    good(&["--file", &whole, "--writers", "1", "--records", "20", "--payload", "1000"]);
    let bytes = fs::read(&whole).unwrap();
    let (_, _, labels) = contents(&whole);
    let torn = folder.text("torn");
    // One record per batch, each in its own block: 16 bytes of header, 1000 of payload.
    let check = |what: &str, damaged: &[u8], kept: u64, is_torn: bool| {
        fs::write(&torn, damaged).unwrap();
        let (records, found_torn, found) = contents(&torn);
        assert_eq!((records, found_torn), (kept, is_torn), "{what}");
        assert!(found.is_subset(&labels));
        assert!(fs::read(&torn).unwrap() == damaged, "{what}: to verify changes nothing");
        let text = good(&["--file", &torn, "--writers", "3", "--records", "2", "--payload", "40"]);
        assert_eq!(text.contains("torn tail truncated"), is_torn, "{what}: {text}");
        let (records, found_torn, now) = contents(&torn);
        assert_eq!((records, found_torn), (kept + 6, false), "{what}");
        assert!(found.is_subset(&now), "{what}");
    };
    let last = bytes.len() - 4096;
    assert_eq!(last, 19 * 4096);
    for cut in [1, 7, 16, 500, 1015] {
        check(&format!("cut after {cut}"), &bytes[..last + cut], 19, true);
    }
    check("cut between", &bytes[..last], 19, false);
    for at in [0, 4, 8, 16, 700, 1015] {
        let mut flipped = bytes.clone();
        flipped[last + at] ^= 0x40;
        check(&format!("bit of byte {at}"), &flipped, 19, true);
    }
    check("garbage behind", &[&bytes[..], b"garbage"].concat(), 20, true);
    let mut beside = bytes.clone();
    beside[last + 1016 + 8..][..8].copy_from_slice(b"garbage!");
    check("garbage in the last block", &beside, 20, true);
    check("an old record behind", &[&bytes[..], &bytes[..4096]].concat(), 20, true);
    let mut hole = bytes.clone();
    hole[10 * 4096..11 * 4096].fill(0);
    fs::write(&torn, &hole).unwrap();
    assert_eq!(contents(&torn).0, 10, "records after a hole were never acknowledged");
}

#[test]
fn killed_log_keeps_all_acknowledged_records() {
    // E13: a log killed while writing, three times in a row, has all acknowledged records; the next
    // run recovers and continues
    let folder = Folder::new("killed");
    let path = folder.text("log");
    let mut acknowledged = HashSet::new();
    for backend in ["aio", "threads", "auto"] {
        if !has(backend.parse().unwrap(), 16) {
            continue;
        }
        let arguments = ["--file", &path, "--backend", backend, "--writers", "16", "--seconds", "600", "--acknowledge"];
        let mut child = Command::new(example("log")).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        acknowledged.extend(lines.by_ref().take(500).map(Result::unwrap));
        child.kill().unwrap();
        // What it had printed before it died.
        acknowledged.extend(lines.map(Result::unwrap));
        child.wait().unwrap();
        let (records, _, labels) = contents(&path);
        let lost: Vec<_> = acknowledged.difference(&labels).collect();
        assert!(lost.is_empty(), "acknowledged but lost: {lost:?}");
        assert!(records >= 500);
    }
    let text = good(&["--file", &path, "--writers", "2", "--records", "1"]);
    assert!(text.contains("records found"), "{text}");
    let (_, torn, labels) = contents(&path);
    assert!(!torn && acknowledged.is_subset(&labels));
}

#[test]
fn full_disk_is_reported() {
    // E10, E14: a full disk is an error with cause and remedy; acknowledged records are kept, and
    // with more space the log continues
    let folder = Folder::new("full");
    fs::create_dir(folder.text("disk")).unwrap();
    // In a mount namespace of its own: the mount is invisible outside and disappears with its last
    // process.
    let script = "mount -t tmpfs -o size=1m none disk && head -c 768k /dev/zero >disk/filler || exit 99
        \"$0\" --file disk/log --seconds 600 --backend threads --stagger 3 --acknowledge >acknowledged 2>error; echo $? >status
        \"$0\" --file disk/log --verify --list >full || exit 1
        rm disk/filler && \"$0\" --file disk/log --records 3 >more && \"$0\" --file disk/log --verify >end";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(example("log"))
        .current_dir(&folder.0)
        .output();
    match output {
        Ok(output) if output.status.success() => {}
        Ok(output) if output.status.code() != Some(99) && Path::new(&folder.text("status")).exists() => {
            panic!("{}", String::from_utf8_lossy(&output.stderr))
        }
        _ => return skipped("cannot create a mount namespace"),
    }
    let read = |name: &str| fs::read_to_string(folder.text(name)).unwrap();
    let lines = |name: &str| read(name).lines().map(String::from).collect::<HashSet<_>>();
    assert_eq!(read("status"), "1\n");
    let (error, acknowledged, full) = (read("error"), lines("acknowledged"), lines("full"));
    assert_eq!(error.lines().count(), 1);
    let count = format!("; {} records were acknowledged", acknowledged.len());
    assert!(error.matches("free some space").count() == 1 && error.contains(&count), "{error}");
    assert!(!acknowledged.is_empty() && acknowledged.is_subset(&full));
    assert!(read("more").contains("records found") && !read("end").contains("torn"));
}

#[test]
fn log_alternates_with_threads() {
    // Checks that both sides append the same number of records, to one log that either can
    // continue, and that a scratch file is removed.
    let folder = Folder::new("versus");
    let path = folder.text("log");
    let common = ["--versus", "threads", "--rounds", "2", "--records", "20", "--writers", "4"];
    let text = good(&[&common[..], &["--file", &path]].concat());
    assert_eq!(text.matches(": 80 commits in ").count(), 4, "{text}");
    assert!(text.contains("median ratios, coroutines / threads: commits/s "), "{text}");
    assert_eq!(contents(&path).0, 320);
    let scratch = folder.text("scratch");
    fs::create_dir(&scratch).unwrap();
    let output = Command::new(example("log")).args(common).env("TMPDIR", &scratch).output().unwrap();
    assert!(output.status.success());
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
}

#[test]
fn invalid_arguments_are_refused() {
    // E14: invalid use is one line with cause and remedy; a file that is not a log is left
    // unchanged
    let folder = Folder::new("refused");
    let (missing, foreign) = (folder.text("missing"), folder.text("foreign"));
    fs::write(&foreign, "a foreign file").unwrap();
    // Like a disk image, which may begin with zeroes: a few, or more than one read returns.
    let image = folder.text("image");
    fs::write(&image, [&[0; 3 << 20][..], b"data"].concat()).unwrap();
    for (arguments, word) in [
        (&["--writers", "0"][..], "--writers 0"),
        (&["--payload", "5"], "--payload 5"),
        (&["--payload", "1000000"], "--payload 1000000"),
        (&["--seconds", "0"], "--seconds 0"),
        (&["--file", &missing, "--verify"], "missing"),
        (&["--file", &foreign, "--records", "1"], "is not a log"),
        (&["--file", &foreign, "--records", "1", "--versus", "threads"], "is not a log"),
        (&["--file", &foreign, "--verify"], "is not a log"),
        (&["--file", &image, "--records", "1"], "is not a log"),
        (&["--file", &image, "--verify"], "is not a log"),
    ] {
        let line = refused(arguments);
        assert!(line.contains(word), "{arguments:?}: {line}");
        assert!(line.matches(&folder.text("")).count() <= 1, "the path is printed twice: {line}");
    }
    assert!(!Path::new(&missing).exists());
    assert!(fs::read(&image).unwrap().ends_with(b"data"));
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "a foreign file");
    // A file that is a valid log, with a record that this program did not write.
    let path = folder.text("log");
    good(&["--file", &path, "--records", "1", "--writers", "1"]);
    let file: File = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut record = [0; 16 + 256];
    file.read_exact_at(&mut record, 0).unwrap();
    record[100] ^= 1;
    let checksum = crc32fast::hash(&record[4..]);
    record[..4].copy_from_slice(&checksum.to_le_bytes());
    file.write_all_at(&record, 0).unwrap();
    assert!(refused(&["--file", &path, "--verify"]).contains("no writer of this program"));
    for arguments in [&["--list"][..], &["--verify"], &["--rounds", "2"], &["--records", "1", "--seconds", "1"]] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn second_writer_is_refused() {
    // Issue: a second writer is refused, since the two would overwrite each other's records; the
    // lock ends with the first writer, and readers need none.
    let folder = Folder::new("second");
    let path = folder.text("log");
    let arguments = ["--file", &path, "--writers", "4", "--seconds", "600", "--acknowledge"];
    let mut first = Command::new(example("log")).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    for second in
        [&["--file", &path, "--records", "1"][..], &["--file", &path, "--records", "1", "--versus", "threads"]]
    {
        let line = refused(second);
        assert!(line.contains("another writer has this log open") && line.contains("choose another file"), "{line}");
    }
    contents(&path);
    first.kill().unwrap();
    first.wait().unwrap();
    let before = contents(&path).0;
    good(&["--file", &path, "--records", "1", "--writers", "3"]);
    assert_eq!(contents(&path).0, before + 3);
}
