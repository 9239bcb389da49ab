//! Checks of the sources: every rule of the runtime has a test; each test that the table of rules in
//! `tests/README.md` names exists; and no library or program prints by a macro.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rules of the runtime: letter and number of rules.
const RULES: [(char, usize); 5] = [('C', 13), ('W', 5), ('X', 14), ('S', 17), ('N', 7)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The historic failures.
const FAILURES: (char, usize) = ('H', 12);

/// Returns all tests of the workspace, and the rules that the first line of each names.
fn tests() -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    let mut folders =
        ["tests", "runtime/tests", "runtime/src", "aio/tests", "aio/src"].map(|folder| root().join(folder)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let lines: Vec<_> = text.lines().map(str::trim).collect();
                for pair in lines.windows(2) {
                    let name = pair[0].strip_prefix("fn ").and_then(|rest| rest.split_once('(')).map(|(name, _)| name);
                    let rules =
                        pair[1].strip_prefix("// ").and_then(|rest| rest.split_once(':')).map(|(rules, _)| rules);
                    let rules = rules.and_then(|rules| rules.split(", ").map(range).collect::<Option<Vec<_>>>());
                    if let (Some(name), Some(rules)) = (name, rules) {
                        found.insert(name.to_string(), rules.concat());
                    }
                }
            }
        }
    }
    found
}

/// Parses `E11`, or `C1-C10`, which is ten rules.
fn range(text: &str) -> Option<Vec<String>> {
    let rule = |text: &str| {
        let (letter, number) = text.split_at_checked(1)?;
        Some((letter.to_string(), number.parse::<usize>().ok()?))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let ((letter, first), (_, last)) = (rule(first)?, rule(last)?);
    letter.starts_with(|letter: char| letter.is_ascii_uppercase()).then_some(())?;
    Some((first..=last).map(|number| format!("{letter}{number}")).collect())
}

#[test]
fn every_rule_of_the_runtime_and_every_historic_failure_has_a_test() {
    // Checks that each rule from C1 to N7, and from H1 to H12, is named in the first line of some
    // test.
    let checked: BTreeSet<_> = tests().into_values().flatten().collect();
    let rules = RULES.iter().chain([&FAILURES]);
    let rules = rules.flat_map(|&(letter, count)| (1..=count).map(move |number| format!("{letter}{number}")));
    let missing: Vec<_> = rules.filter(|rule| !checked.contains(rule)).collect();
    assert!(missing.is_empty(), "no test names {missing:?} in its first line");
}

#[test]
fn table_names_existing_tests() {
    // Checks that each rule of the runtime has a row that gives the effect of removing its guard,
    // and that the tests it names exist.
    let tests = tests();
    let text = fs::read_to_string(root().join("tests/README.md")).unwrap();
    let (_, table) = text.split_once("## Do they bite?").expect("the table has its heading");
    let mut rows = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 3, "{row}");
        rows.extend(cells[0].split(", ").map(str::to_string));
        let named = cells[2].split('`').skip(1).step_by(2).filter(|name| !name.contains('.'));
        named.for_each(|name| assert!(tests.contains_key(name), "no test `{name}`: {row}"));
    }
    let rules = RULES.iter().flat_map(|&(letter, count)| (1..=count).map(move |number| format!("{letter}{number}")));
    let missing: Vec<_> = rules.filter(|rule| !rows.contains(rule)).collect();
    assert!(missing.is_empty(), "no row for {missing:?}");
}

/// Directories where no macro may print. `runtime/examples` and the tests are not for users.
const FOLDERS: [&str; 3] = ["runtime/src", "aio/src", "examples"];
const MACROS: [&str; 5] = ["eprintln!", "eprint!", "println!", "print!", "dbg!"];

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // Only tests may print by macros, and the other implementations that are measured.
        let is_test = ["tests", "tests.rs", "fuzz", "peers"].iter().any(|name| path.ends_with(name));
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
    let mut files = Vec::new();
    FOLDERS.iter().for_each(|folder| sources(&root().join(folder), &mut files));
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
