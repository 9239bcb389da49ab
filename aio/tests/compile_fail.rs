//! Programs that must not compile: guarantees of both crates that the compiler enforces. A comment
//! `//~ WORDS` marks a line with an error, whose message contains the words.
// Under an emulator the compiler would be another machine's.
#![cfg(all(target_arch = "x86_64", not(any(loom, feature = "sanitizer"))))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the newest build of a library among those that this test was linked from.
fn library(folder: &Path, name: &str) -> PathBuf {
    let start = format!("lib{name}-");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let builds = paths.filter(|path| {
        path.extension().is_some_and(|extension| extension == "rlib")
            && path.file_name().unwrap().to_str().unwrap().starts_with(&start)
    });
    builds.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap()).expect("the libraries are built")
}

/// Returns the number and text of each line in which the compiler finds an error.
fn errors(program: &Path) -> Vec<(usize, String)> {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap();
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "--emit=metadata", "--error-format=short", "--out-dir", env!("CARGO_TARGET_TMPDIR")]);
    rustc.arg("-L").arg(folder).arg(program);
    for name in ["coralio", "coralio_runtime"] {
        rustc.arg("--extern").arg(format!("{name}={}", library(folder, name).display()));
    }
    let output = rustc.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{} compiles", program.display());
    // PATH:LINE:COLUMN: error[CODE]: MESSAGE
    let error = |line: &str| {
        let (place, message) = line.split_once(": error")?;
        Some((place.rsplit(':').nth(1)?.parse().ok()?, message.to_string()))
    };
    let errors: Vec<_> = said.lines().filter_map(error).collect();
    assert!(!errors.is_empty(), "{}: {said}", program.display());
    errors
}

#[test]
fn unsound_programs_do_not_compile() {
    // C7, E9, E13, X8, S4: handles and guards stay on their thread; values that cross threads are
    // Send; scopes do not outlive their borrows; safe code cannot drive a backend without its engine
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile_fail");
    for program in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let text = fs::read_to_string(&program).unwrap();
        let marks: Vec<_> =
            (1..).zip(text.lines()).filter_map(|(n, line)| Some((n, line.split_once("//~ ")?.1))).collect();
        let errors = errors(&program);
        let matches = |mark: &(usize, &str), error: &(usize, String)| mark.0 == error.0 && error.1.contains(mark.1);
        assert!(
            errors.iter().all(|error| marks.iter().any(|mark| matches(mark, error)))
                && marks.iter().all(|mark| errors.iter().any(|error| matches(mark, error))),
            "{}: marked are {marks:?}, and found {errors:?}",
            program.display()
        );
    }
}
