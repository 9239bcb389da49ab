//! How the libraries and programs print.

use std::fs;
use std::path::{Path, PathBuf};

/// Directories where no macro may print. `runtime/examples` and the tests are not for users.
const FOLDERS: [&str; 3] = ["runtime/src", "aio/src", "examples"];
const MACROS: [&str; 5] = ["eprintln!", "eprint!", "println!", "print!", "dbg!"];

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // Only tests may print by macros.
        let is_test = ["tests", "tests.rs", "fuzz"].iter().any(|name| path.ends_with(name));
        if path.is_dir() && !is_test {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test {
            into.push(path);
        }
    }
}

/// Returns the code of a line, without comments.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn prints(line: &str) -> bool {
    let is_name = |before: &str| before.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_');
    let code = code(line);
    MACROS.iter().any(|&name| code.match_indices(name).any(|(at, _)| !is_name(&code[..at])))
}

#[test]
fn no_library_or_program_prints_by_macro() {
    // C9, P1: the standard macros panic if their output has no reader, or its disk is full;
    // `coralio_runtime::report` does not
    assert!(prints("    eprintln!(\"x\")") && prints("dbg!(x)") && !prints("/// println!()") && !prints("my_print!()"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    FOLDERS.iter().for_each(|folder| sources(&root.join(folder), &mut files));
    assert!(files.len() > 100, "only {} files were found", files.len());
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let lines = text.lines().enumerate().filter(|(_, line)| prints(line));
        found.extend(lines.map(|(index, line)| format!("{}:{}: {}", file.display(), index + 1, line.trim())));
    }
    assert!(
        found.is_empty(),
        "write these by `coralio_runtime::report`, or by `io::stdout` and handle the error:\n{}",
        found.join("\n")
    );
}
