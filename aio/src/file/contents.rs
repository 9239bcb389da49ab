//! Whole files: read, written and copied by one call.

use std::fs;
use std::io;
use std::path::Path;

use crate::driver::Driver;

use super::fs::{explained, off_the_loop};
use super::{Direct, File};

/// Reads a whole file.
///
/// ```
/// let hosts = coralio::run(|| coralio::fs::read("/etc/hosts"))?;
/// assert!(!hosts.is_empty());
/// # std::io::Result::Ok(())
/// ```
///
/// # Errors
///
/// The kernel's error, with the path, cause and remedy; and as [`unblock`](crate::unblock).
///
/// # Control
///
/// May yield, as [`unblock`](crate::unblock).
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let (path, owned) = (path.as_ref(), path.as_ref().to_path_buf());
    whole(format!("read {}", path.display()), || read_by_file(path), move || fs::read(owned))
}

/// Reads a whole file as text.
///
/// # Errors
///
/// As [`read`]. `InvalidData`: the file is not UTF-8.
///
/// # Control
///
/// May yield, as [`unblock`](crate::unblock).
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    let (path, owned) = (path.as_ref(), path.as_ref().to_path_buf());
    let simulated = || {
        let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8");
        String::from_utf8(read_by_file(path)?).map_err(invalid)
    };
    whole(format!("read {}", path.display()), simulated, move || fs::read_to_string(owned))
}

/// Writes a whole file: creates it, or replaces its contents. Neither atomic nor durable:
/// [`replace_file`](super::replace_file) is both.
///
/// # Errors
///
/// As [`read`].
///
/// # Control
///
/// May yield, as [`unblock`](crate::unblock).
pub fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> io::Result<()> {
    let (path, contents) = (path.as_ref(), contents.as_ref());
    let owned_path = path.to_path_buf();
    let owned = if Driver::simulated().is_some() { Vec::new() } else { contents.to_vec() };
    let simulated = || write_by_file(path, contents);
    whole(format!("write {}", path.display()), simulated, move || fs::write(owned_path, owned))
}

/// Copies a file's contents and permissions to another, which is created or replaced. Returns the
/// number of bytes. Shares the blocks where the file system can.
///
/// # Errors
///
/// As [`rename`](super::rename).
///
/// # Control
///
/// May yield, as [`unblock`](crate::unblock).
pub fn copy(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<u64> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let owned = (from.to_path_buf(), to.to_path_buf());
    let simulated = || {
        let contents = read_by_file(from)?;
        write_by_file(to, &contents).map(|()| contents.len() as u64)
    };
    let what = format!("copy {} to {}", from.display(), to.display());
    whole(what, simulated, move || fs::copy(owned.0, owned.1))
}

/// Runs `real` on the thread pool, or `simulated`, which uses simulated files, in a simulation.
fn whole<T: Send + 'static>(
    what: String,
    simulated: impl FnOnce() -> io::Result<T>,
    real: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let what = || format!("cannot {what}");
    if Driver::simulated().is_some() { explained(what, simulated()) } else { off_the_loop(what, real) }
}

fn read_by_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).direct(Direct::Never).open(path)?;
    let mut contents = vec![0; file.len()? as usize];
    file.read_exact_at(&mut contents, 0).map(|()| contents)
}

fn write_by_file(path: &Path, contents: &[u8]) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(true).direct(Direct::Never).open(path)?;
    file.write_at(contents, 0).map(drop)
}
