//! Names and directories: free functions with the names and types of `std::fs`, on the thread pool.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::backend::simulated::{SimulatedBackend, SimulatedFiles};
use crate::driver::Driver;

use super::fs::{explained, off_the_loop};

/// Runs `real` on the thread pool, or `simulated` in a simulation, and adds the operation and the
/// path to its error.
pub(super) fn on_path<T: Send + 'static>(
    what: &str,
    path: impl AsRef<Path>,
    simulated: impl FnOnce(&SimulatedBackend, &Path) -> io::Result<T>,
    real: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let path = path.as_ref();
    let what = || format!("cannot {what} {}", path.display());
    if let Some(backend) = Driver::simulated() {
        return explained(what, simulated(&backend, path));
    }
    let path = path.to_path_buf();
    off_the_loop(what, move || real(&path))
}

/// As [`on_path`], with two paths.
pub(super) fn on_paths<T: Send + 'static>(
    what: &str,
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    simulated: impl FnOnce(&SimulatedBackend, &Path, &Path) -> io::Result<T>,
    real: impl FnOnce(&Path, &Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let what = || format!("cannot {what} {} to {}", from.display(), to.display());
    if let Some(backend) = Driver::simulated() {
        return explained(what, simulated(&backend, from, to));
    }
    let (from, to) = (from.to_path_buf(), to.to_path_buf());
    off_the_loop(what, move || real(&from, &to))
}

/// Makes an operation on the simulated files one on their disk, which is locked meanwhile.
fn on_files<T>(
    what: &str,
    operation: impl FnOnce(&mut SimulatedFiles, &Path) -> io::Result<T>,
) -> impl FnOnce(&SimulatedBackend, &Path) -> io::Result<T> {
    move |disk, path| disk.perform(|_| format!("{what} {}", path.display()), |files| operation(files, path))
}

/// As [`on_files`], with two paths.
fn on_two_files<T>(
    what: &str,
    operation: impl FnOnce(&mut SimulatedFiles, &Path, &Path) -> io::Result<T>,
) -> impl FnOnce(&SimulatedBackend, &Path, &Path) -> io::Result<T> {
    move |disk, from, to| {
        let what = |_: &_| format!("{what} {} to {}", from.display(), to.display());
        disk.perform(what, |files| operation(files, from, to))
    }
}

/// The error of an operation on more than names and contents.
fn not_simulated<T>(instead: &str) -> io::Result<T> {
    let why = format!("a simulated file has no owner, permissions or times: {instead}");
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

/// Renames a file or directory, replacing an existing file of the new name. The change is durable
/// once [`sync_dir`] of the directory has returned.
///
/// # Errors
///
/// The kernel's error, with both names, cause and remedy; and as [`unblock`](crate::unblock).
///
/// # Control
///
/// May yield, as [`unblock`](crate::unblock).
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    on_paths("rename", from, to, on_two_files("rename", SimulatedFiles::rename), |from, to| fs::rename(from, to))
}

/// Creates a second name for a file. Durable once [`sync_dir`] of its directory has returned.
///
/// ```
/// use coralio::fs::{self, DirEntry};
///
/// # fn main() -> std::io::Result<()> {
/// # let path = std::env::temp_dir().join(format!("coralio-names-doc-{}", std::process::id()));
/// coralio::run(|| {
///     fs::create_dir_all(path.join("a/b"))?;
///     fs::write(path.join("a/one"), "1")?;
///     fs::hard_link(path.join("a/one"), path.join("a/two"))?;
///     fs::sync_dir(path.join("a"))?; // both names are durable
///     fs::remove_dir(path.join("a/b"))?;
///     let entries: Vec<DirEntry> = fs::read_dir(path.join("a"))?.collect::<std::io::Result<_>>()?;
///     assert!(entries.len() == 2 && entries.iter().all(|entry| ["one", "two"].contains(&entry.file_name().to_str().unwrap())));
///     fs::remove_dir_all(&path)?;
///     assert!(!fs::try_exists(&path)?);
///     Ok(())
/// })
/// # }
/// ```
///
/// # Errors
///
/// As [`rename`]. `AlreadyExists`: the new name exists.
///
/// # Control
///
/// May yield, as [`unblock`](crate::unblock).
pub fn hard_link(original: impl AsRef<Path>, link: impl AsRef<Path>) -> io::Result<()> {
    on_paths("link", original, link, on_two_files("link", SimulatedFiles::hard_link), |from, to| {
        fs::hard_link(from, to)
    })
}

/// Defines functions of one path.
macro_rules! of_a_path {
    ($($(#[$doc:meta])* $name:ident($what:literal, $simulated:expr, $real:expr) -> $returns:ty;)*) => {
        $($(#[$doc])*
        ///
        /// # Errors
        ///
        /// The kernel's error, with the path, cause and remedy; and as [`unblock`](crate::unblock).
        ///
        /// # Control
        ///
        /// May yield, as [`unblock`](crate::unblock).
        pub fn $name(path: impl AsRef<Path>) -> io::Result<$returns> {
            on_path($what, path, on_files($what, $simulated), $real)
        })*
    };
}

of_a_path! {
    /// Removes a file's name, and the file if this was its last name and it is not open.
    remove_file("remove", SimulatedFiles::remove, |path| fs::remove_file(path)) -> ();

    /// Flushes a directory's entries to stable storage: files created, renamed and removed.
    sync_dir("sync the directory", SimulatedFiles::sync_folder, |path| {
        use std::os::unix::fs::OpenOptionsExt;
        fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)?.sync_all()
    }) -> ();

    /// Creates an empty directory, whose parent must exist. Durable once [`sync_dir`] of the parent
    /// has returned.
    create_dir("create the directory", SimulatedFiles::create_folder, |path| fs::create_dir(path)) -> ();

    /// Creates a directory, and those above it that do not exist.
    create_dir_all("create the directory", SimulatedFiles::create_folders, |path| fs::create_dir_all(path)) -> ();

    /// Removes an empty directory.
    remove_dir("remove the directory", SimulatedFiles::remove_folder, |path| fs::remove_dir(path)) -> ();

    /// Removes a directory and everything in it. Follows no symbolic links.
    remove_dir_all("remove the directory", SimulatedFiles::remove_tree, |path| fs::remove_dir_all(path)) -> ();

    /// Returns whether a file or directory of this name exists. Follows symbolic links.
    try_exists("look up", |files, path| files.exists(path), |path| path.try_exists()) -> bool;

    /// Returns the absolute path without symbolic links, `.` and `..`. In a
    /// [simulation](mod@crate::simulate), which has neither links nor a current directory, the path
    /// without `.`.
    canonicalize("resolve", |files, path| files.canonicalize(path), |path| fs::canonicalize(path)) -> PathBuf;

    /// Returns the metadata of a file or directory: kind, length, owner, permissions, times. Follows
    /// symbolic links. `Unsupported` in a [simulation](mod@crate::simulate).
    metadata("read the metadata of", |_, _| not_simulated("use try_exists, or File::len"),
        |path| fs::metadata(path)) -> fs::Metadata;

    /// As [`metadata`], but of a symbolic link itself.
    symlink_metadata("read the metadata of", |_, _| not_simulated("use try_exists, or File::len"),
        |path| fs::symlink_metadata(path)) -> fs::Metadata;

    /// Reads the entries of a directory, in no particular order.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let names = coralio::run(|| {
    ///     coralio::fs::read_dir("/etc")?.map(|entry| Ok(entry?.file_name().to_owned())).collect::<std::io::Result<Vec<_>>>()
    /// })?;
    /// assert!(names.iter().any(|name| name == "passwd"));
    /// # Ok(())
    /// # }
    /// ```
    read_dir("read the directory", |files, path| {
        let folder = Arc::new(path.to_path_buf());
        let entry = |name| Ok(DirEntry { name, folder: Arc::clone(&folder), kind: None });
        Ok(ReadDir(files.list(path)?.into_iter().map(entry).collect::<Vec<_>>().into_iter()))
    }, |path| {
        let folder = Arc::new(path.to_path_buf());
        let entry = |entry: io::Result<fs::DirEntry>| {
            // The system may have to be asked, which must not be left to the loop's thread.
            let kind = |entry: &fs::DirEntry| entry.file_type().ok();
            entry.map(|entry| DirEntry { name: entry.file_name(), folder: Arc::clone(&folder), kind: kind(&entry) })
        };
        Ok(ReadDir(fs::read_dir(path)?.map(entry).collect::<Vec<_>>().into_iter()))
    }) -> ReadDir;
}

/// The entries of a directory, as [`read_dir`] found them.
#[derive(Debug)]
pub struct ReadDir(std::vec::IntoIter<io::Result<DirEntry>>);

impl Iterator for ReadDir {
    type Item = io::Result<DirEntry>;

    fn next(&mut self) -> Option<io::Result<DirEntry>> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

/// An entry of a directory.
#[derive(Debug)]
pub struct DirEntry {
    name: OsString,
    folder: Arc<PathBuf>,
    kind: Option<fs::FileType>,
}

impl DirEntry {
    /// Returns the name within the directory.
    pub fn file_name(&self) -> &OsStr {
        &self.name
    }

    /// Returns the directory's path, as it was given, with the name.
    pub fn path(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// Returns the metadata of the file or directory, not following a symbolic link.
    ///
    /// # Errors
    ///
    /// As [`symlink_metadata`].
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`](crate::unblock).
    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        symlink_metadata(self.path())
    }

    /// Returns the kind of the file, as [`read_dir`] found it; a symbolic link is not followed.
    ///
    /// # Errors
    ///
    /// As [`symlink_metadata`], if [`read_dir`] could not find out.
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`](crate::unblock).
    pub fn file_type(&self) -> io::Result<fs::FileType> {
        self.kind.map_or_else(|| self.metadata().map(|metadata| metadata.file_type()), Ok)
    }
}
