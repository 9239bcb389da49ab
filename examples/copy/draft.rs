//! The copy while it is being made: a file that takes DST's name in one step when it is complete, or vanishes.
//!
//! The file has no name until then (`O_TMPFILE`), so that nothing is left of it if the program is killed. A DST that is not there yet is
//! linked directly. One that is there can only be replaced by a rename, so that the file has a temporary name for a moment; and where the
//! file system knows no unnamed files, it has one from the beginning. Temporary names that a killed program has left are removed by the next
//! program that needs one in the same folder: each file and folder under such a name is locked by its owner, and the lock ends with the
//! owner.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::remedy;

/// The path that `dst` means, as cp takes it: in a directory, `src`'s own name; of a symbolic link, what it points to.
pub fn destination(src: &Path, dst: &Path) -> Result<PathBuf, String> {
    let mut path = dst.to_path_buf();
    if let Some(name) = src.file_name().filter(|_| path.is_dir()) {
        path.push(name);
    }
    let say = |why: &str| Err(format!("{}: {why}", path.display()));
    // A descriptor's link in /proc has a target that is no path if the descriptor is a pipe.
    if fs::metadata(&path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        return say("is there, and is not a regular file; name another DST");
    }
    match fs::canonicalize(&path) {
        Ok(real) if real.is_file() => Ok(real),
        Ok(real) if real.is_dir() => say("is a directory; name a file in it"),
        Ok(_) => say("is there, and is not a regular file; name another DST"),
        Err(_) if path.is_symlink() => say("is a symbolic link that leads nowhere; remove it, or name another DST"),
        Err(error) if error.kind() != io::ErrorKind::NotFound => say(&format!("{error}{}", remedy(&error))),
        Err(_) if path.file_name().is_none() || path.as_os_str().as_bytes().ends_with(b"/") => {
            say("no such directory; make it first (mkdir -p)")
        }
        Err(_) => Ok(path),
    }
}

/// A file that is not DST yet.
pub struct Draft {
    dst: PathBuf,
    /// By which the file can be opened again: in /proc, as long as it has no name.
    path: PathBuf,
    file: fs::File,
    /// DST's, opened at once: if it can't be synced, better to know before than after.
    folder: fs::File,
    /// The temporary name, to be removed.
    name: Option<PathBuf>,
}

impl Draft {
    /// Only its owner may read it for now.
    pub fn new(dst: &Path) -> Result<Draft, String> {
        let parent = parent(dst);
        let make = || -> io::Result<_> {
            let folder = fs::File::open(parent)?;
            let mut options = fs::OpenOptions::new();
            options.write(true).mode(0o600);
            if let Ok(file) = options.clone().custom_flags(libc::O_TMPFILE).open(parent) {
                let path = in_proc(&file);
                if path.exists() {
                    // Before it has a name, so that nobody ever finds the name and no lock.
                    let _ = file.try_lock();
                    return Ok((folder, file, path, None));
                }
            }
            let (path, file) = make_new(parent, ".part", |path| options.clone().create_new(true).open(path))?;
            Ok((folder, file, path.clone(), Some(path)))
        };
        match make() {
            Ok((folder, file, path, name)) => Ok(Draft { dst: dst.to_path_buf(), path, file, folder, name }),
            Err(error) => Err(format!("cannot make a file in {}: {error}{}", parent.display(), remedy(&error))),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    /// Gives it DST's name, for good.
    pub fn publish(mut self) -> Result<(), String> {
        let dst = self.dst.display().to_string();
        self.take_name().map_err(|error| format!("cannot rename the copy to {dst}: {error}{}", remedy(&error)))?;
        self.folder
            .sync_all()
            .map_err(|error| format!("{dst} is complete, but its folder cannot be synced: {error}; run sync"))
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
        let name = self.name.as_ref().expect("it has one now");
        fs::rename(name, &self.dst)?;
        self.name = None;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = fs::remove_file(name);
        }
    }
}

fn parent(dst: &Path) -> &Path {
    dst.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path by which this process can open the file again.
fn in_proc(file: &fs::File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Gives the file behind a link in /proc a name that is not taken.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    let [from, to] = [from, to].map(|path| CString::new(path.as_os_str().as_bytes()));
    let (from, to) = (from?, to?);
    // SAFETY: both are strings that end with a zero byte and outlive the call.
    match unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The beginning of all temporary names.
const PREFIX: &str = ".coralio-copy-";

/// Makes a file or folder in `folder` under a temporary name, which `make` returns opened and which is locked from then on. What killed
/// programs have left there is removed first.
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
            // Between the two steps another program may have taken it for left over, and removed it.
            // Where the file system has no locks, nobody takes anything for left over.
            Ok(file) => {
                let is_taken = matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock));
                if !is_taken && is_at(&file, &path) {
                    return Ok((path, file));
                }
            }
        }
    }
}

/// Whether the path still leads to this file or folder.
fn is_at(file: &fs::File, path: &Path) -> bool {
    let (ours, there) = (file.metadata(), fs::symlink_metadata(path));
    matches!((ours, there), (Ok(ours), Ok(there)) if (ours.dev(), ours.ino()) == (there.dev(), there.ino()))
}

/// Removes what has a temporary name of this program in `folder` and is locked by nobody. What cannot be removed stays.
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

/// Whether a name is one that `make_new` gives: the prefix, a process's number, a number, and a known ending.
fn is_temporary(name: &std::ffi::OsStr) -> bool {
    let numbers = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|rest| {
        let rest = rest.strip_suffix(".part").unwrap_or(rest);
        rest.split_once('-')
    });
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(process, number)| is_number(process) && is_number(number))
}
