//! The copy while it is being made: a file under a temporary name beside DST. It takes DST's name in one step when it is
//! complete, or vanishes.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::remedy;

/// The path that `dst` means, as cp takes it: in a directory, `src`'s own name; of a symbolic link, what it points to.
pub fn destination(src: &Path, dst: &Path) -> Result<PathBuf, String> {
    let mut path = dst.to_path_buf();
    if let Some(name) = src.file_name().filter(|_| path.is_dir()) {
        path.push(name);
    }
    let say = |why: &str| Err(format!("{}: {why}", path.display()));
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
    path: PathBuf,
    file: fs::File,
    /// DST's, opened at once: if it can't be synced, better to know before than after.
    folder: fs::File,
}

impl Draft {
    /// Only its owner may read it for now.
    pub fn new(dst: &Path) -> Result<Draft, String> {
        let parent = dst.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let make = |path: &Path| fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let made = fs::File::open(parent).and_then(|folder| Ok((folder, make_new(parent, ".part", make)?)));
        match made {
            Ok((folder, (path, file))) => Ok(Draft { dst: dst.to_path_buf(), path, file, folder }),
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
    pub fn publish(self) -> Result<(), String> {
        let dst = self.dst.display();
        fs::rename(&self.path, &self.dst)
            .map_err(|error| format!("cannot rename the copy to {dst}: {error}{}", remedy(&error)))?;
        self.folder
            .sync_all()
            .map_err(|error| format!("{dst} is complete, but its folder cannot be synced: {error}; run sync"))
    }
}

impl Drop for Draft {
    /// Of a published one there is nothing left under this name.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes something in `folder` under a name that nobody has: neither another of us, nor what one left that was killed.
pub fn make_new<T>(folder: &Path, suffix: &str, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(PathBuf, T)> {
    let mut number = 0;
    loop {
        let path = folder.join(format!(".coralio-copy-{}-{number}{suffix}", std::process::id()));
        match make(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            made => return made.map(|made| (path, made)),
        }
    }
}
