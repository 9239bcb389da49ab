//! The source files that a page shows, and each stack's current line.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use crate::trace::event::Recording;
use crate::trace::source::SourceLine;

/// The size above which a file is omitted.
const LARGEST: usize = 400_000;

/// The stack of a thread, or of a coroutine.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stack {
    Thread(usize),
    Coroutine(usize),
}

/// The current line of each stack.
#[derive(Default)]
pub(super) struct Lines {
    /// The current line of each stack, as an interned string.
    last: HashMap<Stack, usize>,
    /// The distinct lists of lines: for each stack its label, its line and its depth.
    lists: HashMap<Vec<[usize; 3]>, usize>,
    /// For each event, the list that applies.
    at: Vec<usize>,
}

impl Lines {
    pub(super) fn set(&mut self, stack: Stack, line: usize) {
        self.last.insert(stack, line);
    }

    /// Adds an event, with the stacks in use at that time, each with its label and its depth.
    pub(super) fn push(&mut self, stacks: impl Iterator<Item = (Stack, usize, usize)>) {
        let list = stacks.filter_map(|(stack, label, depth)| Some([label, *self.last.get(&stack)?, depth])).collect();
        let next = self.lists.len();
        self.at.push(*self.lists.entry(list).or_insert(next));
    }

    /// Returns the lists in order, and the list of each event.
    pub(super) fn finish(self) -> (Vec<Vec<[usize; 3]>>, Vec<usize>) {
        let mut lists: Vec<_> = self.lists.into_iter().collect();
        lists.sort_unstable_by_key(|(_, place)| *place);
        (lists.into_iter().map(|(list, _)| list).collect(), self.at)
    }
}

/// Names files relative to their packages' roots.
#[derive(Default)]
pub(super) struct Names {
    known: BTreeMap<String, String>,
}

impl Names {
    /// Returns a line as `src/main.rs:12`.
    pub(super) fn line(&mut self, line: &SourceLine) -> String {
        let path = line.file.to_string_lossy();
        if !self.known.contains_key(&*path) {
            self.known.insert(path.to_string(), relative(&line.file));
        }
        format!("{}:{}", self.known[&*path], line.line)
    }
}

/// Returns a path relative to the folder of the nearest lock file or, without one, of the nearest
/// manifest; without either, the file's name.
fn relative(path: &Path) -> String {
    let root = |marker: &str| path.ancestors().skip(1).find(|folder| folder.join(marker).is_file());
    let shown = match root("Cargo.lock").or_else(|| root("Cargo.toml")) {
        Some(root) => path.strip_prefix(root).ok(),
        None if path.is_relative() => Some(path),
        None => path.file_name().map(Path::new),
    };
    shown.unwrap_or(path).to_string_lossy().into_owned()
}

/// Returns the names and the contents of the files whose lines occur. Omits files that are not on
/// this disk.
pub(super) fn files(recording: &Recording) -> Vec<(String, String)> {
    let paths: BTreeSet<_> =
        recording.records.iter().filter_map(|record| record.calls.first()).map(|line| &line.file).collect();
    let read = |path: &Path| std::fs::read_to_string(path).ok().filter(|text| text.len() <= LARGEST);
    paths.into_iter().filter_map(|path| Some((relative(path), read(path)?))).collect()
}
