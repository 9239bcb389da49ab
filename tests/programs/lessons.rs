//! The lessons and the museum, run as a user runs them: each prints what its directory records,
//! byte for byte.
//!
//! `cargo build --examples && CORALIO_REWRITE=1 cargo test --test programs` rewrites those files.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::{Folder, example};

const LESSONS: usize = 16;
const LONGEST: usize = 120;
const REWRITE: &str = "cargo build --examples && CORALIO_REWRITE=1 cargo test --test programs";

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the lessons' names, in order.
pub(crate) fn lessons() -> Vec<String> {
    let folders = fs::read_dir(root().join("examples")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = folders.filter_map(|name| name.into_string().ok());
    let mut lessons: Vec<_> = names.filter(|name| name.starts_with(|first: char| first.is_ascii_digit())).collect();
    lessons.sort();
    lessons
}

pub(crate) fn program(name: &str) -> Command {
    Command::new(example(name))
}

fn succeeds(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success() && stderr.is_empty(), "{command:?}: {status}\n{stderr}");
    String::from_utf8(stdout).unwrap()
}

/// Returns the content of a file, after rewriting it if `CORALIO_REWRITE` is set.
fn golden(path: &Path, now: &str) -> String {
    if std::env::var_os("CORALIO_REWRITE").is_some() {
        fs::write(path, now).unwrap();
    }
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}; {REWRITE} writes it", path.display()))
}

pub(crate) fn assert_same(path: &Path, now: &str) {
    let before = golden(path, now);
    let differs = before.lines().zip(now.lines()).position(|(before, now)| before != now);
    let line = differs.unwrap_or(before.lines().count().min(now.lines().count()));
    assert!(
        before == now,
        "{}, line {}:\n before: {}\n now:    {}\nIf that is meant: {REWRITE}, and say why",
        path.display(),
        line + 1,
        before.lines().nth(line).unwrap_or("(the end)"),
        now.lines().nth(line).unwrap_or("(the end)"),
    );
}

#[test]
fn each_lesson_prints_its_lanes() {
    // C1-C6, W1, X2, X3, S1, E3-E9, E11, E17, H1-H4, H12: each lesson prints its recorded output, twice the
    // same
    let lessons = lessons();
    assert_eq!(lessons.len(), LESSONS, "{lessons:?}");
    for name in lessons {
        let printed = succeeds(&mut program(&name));
        assert_eq!(printed, succeeds(&mut program(&name)), "{name}: a run like any other");
        assert_same(&root().join("examples").join(&name).join("lanes.txt"), &printed);
        assert!(printed.contains("Fails: ") && printed.contains("Ends well."), "{name} shows a failure and a fix");
    }
}

#[test]
fn acts_end_as_their_titles_say() {
    // Checks that an act titled as the fix ends well, and one titled as a fix that fails does not
    for name in lessons() {
        let printed = succeeds(&mut program(&name));
        let acts: Vec<_> = printed.split("== ").skip(1).collect();
        assert!(acts.len() >= 3, "{name}: {} acts", acts.len());
        for act in acts {
            let title = act.lines().next().unwrap();
            let ends_well = act.contains("\nEnds well.\n");
            assert!(ends_well != act.contains("\nFails: "), "{name}: {title}: one outcome");
            let fails = ["fix that fails", "Where that fails"].iter().any(|part| title.contains(part));
            assert!(!(fails && ends_well), "{name}: {title}: ends well");
            assert!(!title.contains(". The fix") || ends_well, "{name}: {title}: fails");
        }
    }
}

#[test]
fn each_lesson_has_its_parts_and_is_short() {
    // Checks the form of a lesson: a puzzle, a hint, a fix that fails and the fix, in 120 lines at
    // most
    for (index, name) in lessons().into_iter().enumerate() {
        let source = fs::read_to_string(root().join("examples").join(&name).join("main.rs")).unwrap();
        assert!(source.starts_with(&format!("//! Lesson {}. ", index + 1)), "{name}: its number comes first");
        for part in ["//! Puzzle: ", "//! Hint: ", "he puzzle", "he fix"] {
            assert!(source.contains(part), "{name}: no {part:?}");
        }
        // A fix that fails immediately, or a first fix that works and then fails elsewhere.
        let fails =
            source.contains("fix that fails") || source.contains("A first fix") && source.contains("Where that fails");
        assert!(fails, "{name}: no fix that fails");
        assert!(source.lines().count() <= LONGEST, "{name} is longer than {LONGEST} lines");
    }
}

#[test]
fn each_lesson_is_in_the_course() {
    // Checks that the course names every lesson and the museum, and that neither the course nor the
    // README names an example that does not exist
    let course = fs::read_to_string(root().join("examples/README.md")).unwrap();
    for name in lessons().into_iter().chain(["museum".into()]) {
        assert!(course.contains(&format!("{name}/main.rs")), "the course does not name {name}");
    }
    for path in ["README.md", "examples/README.md"] {
        let text = fs::read_to_string(root().join(path)).unwrap();
        for word in text.split("--example ").skip(1) {
            let name = word.split_whitespace().next().unwrap().trim_end_matches(['`', ',', '.', ';']);
            assert!(root().join("examples").join(name).join("main.rs").is_file(), "{path}: no example {name}");
        }
    }
}

#[test]
fn pictures_in_the_texts_match_the_output() {
    // H2: the picture in the README is part of what its lesson prints, and so is each picture of
    // the course
    for (path, name) in [("README.md", "09_september_2016"), ("examples/README.md", "05_a_lock")] {
        let text = fs::read_to_string(root().join(path)).unwrap();
        let printed = succeeds(&mut program(name));
        let blocks = text.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("text\n"));
        let pictures: Vec<_> = blocks.filter(|block| block.contains("●──")).collect();
        assert!(!pictures.is_empty(), "{path}: no picture");
        for picture in pictures {
            assert!(printed.contains(picture), "{path}: {name} prints no\n{picture}");
        }
    }
}

#[test]
fn lesson_writes_a_trace_of_each_act() {
    // Checks --trace: one file for each act, with the content of the lanes; and that a lesson takes
    // no other option
    let folder = Folder::new("trace");
    let traced = program("09_september_2016").arg("--trace").arg(folder.0.join("h2.txt")).output().unwrap();
    let said = String::from_utf8(traced.stderr).unwrap();
    assert!(said.lines().count() == 3 && said.contains("h2-3.txt"), "it says what it has written: {said}");
    let printed = String::from_utf8(traced.stdout).unwrap();
    assert_eq!(printed, succeeds(&mut program("09_september_2016")));
    let mut names: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["h2-1.txt", "h2-2.txt", "h2-3.txt"]);
    let second = fs::read_to_string(folder.0.join("h2-2.txt")).unwrap();
    assert!(second.contains("VIOLATION: recursive entry: 'A' is entered already, by thread > 'A' > 'Y'"), "{second}");

    let output = program("09_september_2016").args(["--trace", "/nowhere/h2.txt"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write the trace: /nowhere/h2-1.txt"));
    let output = program("09_september_2016").arg("--tarce").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--trace FILE"));
}

#[test]
fn closed_output_pipe_is_no_error() {
    // Checks `| head`: when its reader goes away, the program ends without an error
    for (name, arguments) in [("01_enter_and_yield", &[][..]), ("museum", &["--exhibit", "1"])] {
        let mut child = program(name).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        assert!(status.success() && stderr.is_empty(), "{name}: {status} {}", String::from_utf8_lossy(&stderr));
    }
}

#[test]
fn museum_prints_its_matrix() {
    // H1-H7, H10-H12: the museum prints which engine fails in which exhibit, and today's version
    // passes all
    let printed = succeeds(&mut program("museum"));
    assert_same(&root().join("examples/museum/matrix.txt"), &printed);
    let today = printed.lines().find(|line| line.trim_start().starts_with("today")).unwrap();
    assert_eq!(today.split_whitespace().skip(1).filter(|cell| *cell != "·").count(), 0, "{today}");
}

/// How each exhibit fails: the historic failures H1 to H7 and H10 to H12, E2 and E5.
const FAILURES: [&str; 13] = [
    "recursive entry of 'A': thread > 'A'\n",
    "recursive entry of 'A': thread > 'A' > 'Y'\n",
    "in_flight below zero: a completion was reaped twice (in_flight 0, depth 3, plug depth 0, blocked false, 3 req",
    "this sleep would never end: the ring is empty, and none of the 0 requests in flight will complete\n",
    "stuck: after 40 iterations 2 pending, 0 in flight\n",
    "stuck: after 40 iterations 3 pending, 0 in flight\n",
    "delay: a request waits for a plug that was dropped\n",
    "deep: 8 submits on the stack, each within the one before\n",
    "cut: 128 bytes of 512, and no error\n",
    "stuck: after 40 iterations 1 pending, 0 in flight\n",
    "a completion for a request that is not in flight: key 0x0, result 512 (in_flight 0",
    "lost: after 40 iterations a request is neither pending nor in flight",
    "this sleep would never end: the ring is empty, and none of the 0 requests in flight will complete\n",
];

#[test]
fn each_exhibit_fails_without_its_guard_only() {
    // H1, H2, H3, H4, H5, H6, H7, H10, H11, H12, E2, E5: each exhibit shows exactly its failure on the
    // production engine with one guard out, and the same schedule ends well with the guard in
    let folder = Folder::new("museum");
    let matrix = fs::read_to_string(root().join("examples/museum/matrix.txt")).unwrap();
    let exhibits = matrix.lines().skip(1).take_while(|line| !line.trim_start().starts_with("today")).count();
    assert_eq!(exhibits, FAILURES.len());
    for (number, failure) in (1..).zip(FAILURES) {
        let printed = succeeds(program("museum").args(["--exhibit", &number.to_string()]));
        let sides: Vec<_> = printed.split("\n== ").skip(1).collect();
        let [out, guarded] = sides[..] else { panic!("{printed}") };
        assert!(out.starts_with("With the guard out\n"), "{number}: {out}");
        assert!(out.contains(&format!("\nFails: {failure}")), "{number}, expected `{failure}`: {out}");
        assert!(
            guarded.starts_with("With the guard in\n") && guarded.ends_with("\nEnds well.\n"),
            "{number}: {guarded}"
        );
        assert_eq!(
            printed,
            succeeds(program("museum").args(["--exhibit", &number.to_string()])),
            "a run like any other"
        );
    }
    succeeds(program("museum").args(["--exhibit", "2", "--trace"]).arg(folder.0.join("h2.txt")));
    let [out, guarded] = ["h2.txt", "h2-guarded.txt"].map(|name| fs::read_to_string(folder.0.join(name)).unwrap());
    assert!(out.contains("VIOLATION") && !guarded.contains("VIOLATION"));

    for (wrong, remedy) in [("0", "choose 1 to 13"), ("14", "choose 1 to 13"), ("H11", "choose 9 or 10")] {
        let output = program("museum").args(["--exhibit", wrong]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains(remedy));
    }
}

#[test]
fn exhibit_of_many_submits_counts_the_drawn_ones() {
    // H10: the exhibit can be named by the bug's number or the table's, and counts only submits
    // that have given the kernel something
    let printed = succeeds(program("museum").args(["--exhibit", "h10"]));
    assert_eq!(printed, succeeds(program("museum").args(["--exhibit", "8"])));
    let (out, _) = printed.split_once("== With the guard in").unwrap();
    let submits = out.lines().filter(|line| line.ends_with(" submit")).count();
    assert!(out.contains(&format!("Fails: deep: {submits} submits on the stack")), "{submits}: {out}");
}

#[test]
fn page_titles_state_the_outcome() {
    // Checks that the title of a page, of a lesson or of the museum, gives the outcome, also where
    // no rule was broken
    let folder = Folder::new("titles");
    let page = |name: &str| fs::read_to_string(folder.0.join(name)).unwrap();
    let title = |page: &str| page.split("title>").nth(1).unwrap().trim_end_matches("</").to_string();
    succeeds(program("museum").args(["--exhibit", "8", "--trace"]).arg(folder.0.join("deep.html")));
    let (deep, guarded) = (page("deep.html"), page("deep-guarded.html"));
    let failure = "deep: 8 submits on the stack, each within the one before";
    assert!(title(&deep).ends_with(&format!("fails: {failure}")), "{}", title(&deep));
    assert!(title(&guarded).ends_with("ends well"), "{}", title(&guarded));
    assert!(deep.contains(&format!("\"failure\":\"{failure}\"")) && guarded.contains("\"failure\":\"\""));
    program("09_september_2016").arg("--trace").arg(folder.0.join("h2.html")).output().unwrap();
    let titles = ["h2-1.html", "h2-2.html"].map(|name| title(&page(name)));
    assert!(titles[1].contains(": fails: recursive entry of 'A'"), "{titles:?}");
}
