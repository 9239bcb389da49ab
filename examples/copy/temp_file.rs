//! The copy in progress: a file that takes DST's name in one step when it is complete, or
//! disappears.
//!
//! The file is unnamed at first (`O_TMPFILE`), so that it leaves nothing behind if the program is
//! killed. A new DST is linked directly. An existing DST can only be replaced by a rename, so the
//! file has a temporary name for a moment; on file systems without unnamed files it has one from
//! the start. Temporary names left by a killed program are removed by the next program that needs
//! one in the same directory: each file and directory with such a name is locked by its owner, and
//! the lock ends with the owner.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::remedy;

/// Resolves `dst` as cp does: a directory gets `src`'s file name appended, and a symbolic link is
/// followed.
pub fn destination(src: &Path, dst: &Path) -> Result<PathBuf, String> {
    let mut path = dst.to_path_buf();
    if let Some(name) = src.file_name().filter(|_| path.is_dir()) {
        path.push(name);
    }
    let say = |why: &str| Err(format!("{}: {why}", path.display()));
    // Check before resolving: for a pipe, the target of a link in /proc is not a path.
    if fs::metadata(&path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        return say("exists and is not a regular file; choose another DST");
    }
    match fs::canonicalize(&path) {
        Ok(real) if real.is_file() => Ok(real),
        Ok(real) if real.is_dir() => say("is a directory; choose a file in it"),
        Ok(_) => say("exists and is not a regular file; choose another DST"),
        Err(_) if path.is_symlink() => say("is a dangling symbolic link; remove it, or choose another DST"),
        Err(error) if error.kind() != io::ErrorKind::NotFound => say(&format!("{error}{}", remedy(&error))),
        Err(_) if path.file_name().is_none() || path.as_os_str().as_bytes().ends_with(b"/") => {
            say("no such directory; create it first (mkdir -p)")
        }
        Err(_) => Ok(path),
    }
}

/// A file that will become DST.
pub struct TempFile {
    dst: PathBuf,
    /// The path for reopening the file: in /proc while it has no name.
    path: PathBuf,
    file: fs::File,
    /// The directory of DST, opened early to detect errors before the copy begins.
    folder: fs::File,
    /// The temporary name to remove on failure.
    name: Option<PathBuf>,
}

impl TempFile {
    /// Creates the file, accessible only to its owner for now.
    pub fn new(dst: &Path) -> Result<TempFile, String> {
        let parent = parent(dst);
        let make = || -> io::Result<_> {
            let folder = fs::File::open(parent)?;
            let mut options = fs::OpenOptions::new();
            options.write(true).mode(0o600);
            if let Ok(file) = options.clone().custom_flags(libc::O_TMPFILE).open(parent) {
                let path = in_proc(&file);
                if path.exists() {
                    // Lock before the file has a name, so that no program sees the name without the
                    // lock.
                    let _ = file.try_lock();
                    return Ok((folder, file, path, None));
                }
            }
            let (path, file) = make_new(parent, ".part", |path| options.clone().create_new(true).open(path))?;
            Ok((folder, file, path.clone(), Some(path)))
        };
        match make() {
            Ok((folder, file, path, name)) => Ok(TempFile { dst: dst.to_path_buf(), path, file, folder, name }),
            Err(error) => Err(format!("cannot create a file in {}: {error}{}", parent.display(), remedy(&error))),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    /// Gives the file DST's name permanently.
    pub fn publish(mut self) -> Result<(), String> {
        let dst = self.dst.display().to_string();
        self.take_name().map_err(|error| format!("cannot rename the copy to {dst}: {error}{}", remedy(&error)))?;
        self.folder
            .sync_all()
            .map_err(|error| format!("{dst} is complete, but its directory cannot be synced: {error}; run sync"))
    }

    fn take_name(&mut self) -> io::Result<()> {
        if self.name.is_none() {
            match link(&self.path, &self.dst) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                linked => return linked,
            }
            let (unnamed, file) = (&self.path, &self.file);
            let make = |path: &Path| {
                link(unnamed, path)?;
                file.try_clone()
            };
            self.name = Some(make_new(parent(&self.dst), ".part", make)?.0);
        }
        let name = self.name.as_ref().expect("the draft was just named");
        fs::rename(name, &self.dst)?;
        self.name = None;
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = fs::remove_file(name);
        }
    }
}

fn parent(dst: &Path) -> &Path {
    dst.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the path through which this process can reopen the file.
fn in_proc(file: &fs::File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Links the file behind a link in /proc to a new name.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    let [from, to] = [from, to].map(|path| CString::new(path.as_os_str().as_bytes()));
    let (from, to) = (from?, to?);
    // SAFETY: both are NUL-terminated strings that outlive the call.
    match unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The prefix of all temporary names.
const PREFIX: &str = ".coralio-copy-";

/// Creates a file or directory in `folder` under a temporary name. `make` returns it opened, and it
/// is locked from then on. First removes the leftovers of killed programs.
pub fn make_new(
    folder: &Path,
    suffix: &str,
    make: impl Fn(&Path) -> io::Result<fs::File>,
) -> io::Result<(PathBuf, fs::File)> {
    remove_stale(folder);
    let mut number = 0;
    loop {
        let path = folder.join(format!("{PREFIX}{}-{number}{suffix}", std::process::id()));
        number += 1;
        match make(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            // Another program may have removed the file as stale before it was locked. On file
            // systems without locks, no file is considered stale.
            Ok(file) => {
                let is_taken = matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock));
                if !is_taken && is_at(&file, &path) {
                    return Ok((path, file));
                }
            }
        }
    }
}

/// Returns whether the path still refers to this file or directory.
fn is_at(file: &fs::File, path: &Path) -> bool {
    let (ours, there) = (file.metadata(), fs::symlink_metadata(path));
    matches!((ours, there), (Ok(ours), Ok(there)) if (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
}

/// Removes unlocked files and directories with temporary names in `folder`. Ignores errors.
fn remove_stale(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| is_temporary(&entry.file_name())) {
        let path = entry.path();
        let options = fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).clone();
        let Ok(file) = options.open(&path) else { continue };
        let Ok(found) = file.metadata() else { continue };
        if (found.is_file() || found.is_dir()) && file.try_lock().is_ok() && is_at(&file, &path) {
            let _ = if found.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// Returns whether `make_new` can have created this name: the prefix, a process ID, a number and a
/// known suffix.
fn is_temporary(name: &std::ffi::OsStr) -> bool {
    let numbers = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| {
        let rest = rest.strip_suffix(".part").unwrap_or(rest);
        rest.split_once('-')
    });
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(process, number)| is_number(process) && is_number(number))
}
