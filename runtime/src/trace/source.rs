//! The lines of the program's own code that led to an event.
//!
//! An event stores addresses only. When the log is read, each address is resolved once.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// A line of the program's own code.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct SourceLine {
    /// The file, as the compiler saw it; without `..`.
    pub file: Arc<Path>,
    /// The line, counted from 1.
    pub line: u32,
}

/// The number of return addresses that are stored.
const MOST: usize = 64;
/// Crates whose code is not the program's own. Downloaded crates are recognised by their paths.
const LIBRARIES: [&str; 5] = ["coralio", "coralio_runtime", "std", "core", "alloc"];
/// Part of the name of the function that calls a coroutine's own function.
const BASE: &str = "__rust_begin_short_backtrace";

/// Returns the return addresses on the current stack, innermost first.
pub(crate) fn addresses() -> Box<[usize]> {
    let mut found = Vec::with_capacity(MOST);
    backtrace::trace(|frame| {
        found.push(frame.ip() as usize);
        found.len() < MOST
    });
    found.into()
}

/// What an address belongs to.
enum Code {
    Own(SourceLine),
    Library,
    /// The base of a coroutine's stack: later addresses belong to the code that entered it.
    Base,
}

/// Resolves addresses.
#[derive(Default)]
pub(super) struct Resolver {
    /// The functions of each address, innermost first: several if the compiler has inlined some.
    known: HashMap<usize, Vec<Code>>,
    files: HashMap<PathBuf, Arc<Path>>,
}

impl Resolver {
    /// Returns the lines of the program's own code, innermost first, up to the base of the
    /// coroutine's stack.
    pub(super) fn lines(&mut self, addresses: &[usize]) -> Vec<SourceLine> {
        let mut lines = Vec::new();
        for address in addresses {
            if !self.known.contains_key(address) {
                let code = self.resolve(*address);
                self.known.insert(*address, code);
            }
            for code in &self.known[address] {
                match code {
                    Code::Own(line) => lines.push(line.clone()),
                    Code::Library => {}
                    Code::Base => return lines,
                }
            }
        }
        lines
    }

    fn resolve(&mut self, address: usize) -> Vec<Code> {
        let mut codes = Vec::new();
        backtrace::resolve(address as *mut c_void, |symbol| {
            let Some(name) = symbol.name().map(|name| format!("{name:#}")) else { return };
            codes.push(match (crate_of(&name), symbol.filename(), symbol.lineno()) {
                _ if name.contains(BASE) => Code::Base,
                (Some(name), Some(file), Some(line)) if !LIBRARIES.contains(&name) && !is_downloaded(file) => {
                    Code::Own(SourceLine { file: self.file(file), line })
                }
                _ => Code::Library,
            });
        });
        codes
    }

    fn file(&mut self, path: &Path) -> Arc<Path> {
        if !self.files.contains_key(path) {
            let mut plain = PathBuf::new();
            for part in path.components() {
                match part {
                    Component::ParentDir if plain.file_name().is_some() => _ = plain.pop(),
                    part => plain.push(part),
                }
            }
            self.files.insert(path.into(), plain.into());
        }
        Arc::clone(&self.files[path])
    }
}

/// Returns the crate that a function belongs to, by its name; `None` for code of other languages.
fn crate_of(function: &str) -> Option<&str> {
    let (first, _) = function.split_once("::")?;
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    first.rsplit(|c| !is_name(c)).next().filter(|name| !name.is_empty())
}

/// Returns whether a file is part of the standard library, or of a crate that cargo has downloaded.
fn is_downloaded(file: &Path) -> bool {
    let file = file.to_string_lossy();
    ["/rustc/", "/lib/rustlib/", "/registry/src/", "/git/checkouts/"].iter().any(|part| file.contains(part))
}

#[cfg(test)]
mod tests {
    use super::crate_of;

    #[test]
    fn function_names_its_crate() {
        // Checks the forms of demangled names, and the names of C functions
        for (function, name) in [
            ("program::main::{{closure}}", Some("program")),
            ("<coralio_runtime::sync::CoMutex<T> as core::ops::Drop>::drop", Some("coralio_runtime")),
            ("<&mut F as core::ops::FnOnce<A>>::call_once", Some("core")),
            ("core::ptr::drop_in_place<program::Guard>", Some("core")),
            ("main", None),
        ] {
            assert_eq!(crate_of(function), name, "{function}");
        }
    }
}
