//! Whole files: read, written and copied by one call.

use std::fs;
use std::io;
use std::path::Path;

use super::names::{on_path, on_paths};
use super::{Direct, File};

/// Reads a whole file. For a FIFO, waits until its writers are gone; neither a timeout nor a
/// cancellation ends that wait.
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
    on_path("read", path, |_, path| read_by_file(path), |path| fs::read(path))
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
    let simulated = |path: &Path| {
        let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8");
        String::from_utf8(read_by_file(path)?).map_err(invalid)
    };
    on_path("read", path, |_, path| simulated(path), |path| fs::read_to_string(path))
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
    let contents = contents.as_ref();
    let owned = if crate::driver::Driver::simulated().is_some() { Vec::new() } else { contents.to_vec() };
    on_path("write", path, |_, path| write_by_file(path, contents), move |path| fs::write(path, owned))
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
    let simulated = |from: &Path, to: &Path| {
        let contents = read_by_file(from)?;
        write_by_file(to, &contents).map(|()| contents.len() as u64)
    };
    on_paths("copy", from, to, |_, from, to| simulated(from, to), |from, to| fs::copy(from, to))
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
