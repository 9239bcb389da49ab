//! Changes of names: files and directories, created, linked, renamed and removed.
//!
//! A directory that was not created exists as long as a name below it does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Change, FOLDER, FileSystem, error, plain};

/// Moves a name, and those below it.
pub(super) fn rename(names: &mut BTreeMap<PathBuf, usize>, from: &Path, to: &Path) {
    let moved: Vec<_> = names.keys().filter(|name| name.starts_with(from)).cloned().collect();
    for name in moved {
        let below = name.strip_prefix(from).unwrap_or(Path::new("")).components();
        let target = below.fold(to.to_path_buf(), |target, part| target.join(part));
        if let Some(file) = names.remove(&name) {
            names.insert(target, file);
        }
    }
}

/// Fails if no file can have the name.
pub(super) fn check_name(name: &Path) -> io::Result<()> {
    let bytes = name.as_os_str().as_bytes();
    if bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "file name contained an unexpected NUL byte"));
    }
    if bytes.is_empty() { Err(error(libc::ENOENT)) } else { Ok(()) }
}

impl FileSystem {
    fn below<'a>(&'a self, folder: &'a Path) -> impl Iterator<Item = &'a Path> {
        self.names
            .keys()
            .filter_map(move |name| name.strip_prefix(folder).ok())
            .filter(|rest| !rest.as_os_str().is_empty())
    }

    pub(crate) fn is_folder(&self, name: &Path) -> bool {
        let name = plain(name);
        let is_root = name.parent().is_none() || name.as_os_str().is_empty();
        is_root || self.names.get(&name) == Some(&FOLDER) || self.below(&name).next().is_some()
    }

    /// Fails if the name is not that of a directory.
    fn check_folder(&self, name: &Path) -> io::Result<()> {
        check_name(name)?;
        match self.find(name) {
            Some(_) => Err(error(libc::ENOTDIR)),
            None if self.is_folder(name) => Ok(()),
            None => Err(error(libc::ENOENT)),
        }
    }

    pub(crate) fn create_folder(&mut self, name: &Path) -> io::Result<()> {
        check_name(name)?;
        if self.find(name).is_some() || self.is_folder(name) {
            return Err(error(libc::EEXIST));
        }
        self.change(Change::Link(plain(name), FOLDER));
        Ok(())
    }

    pub(crate) fn remove_folder(&mut self, name: &Path) -> io::Result<()> {
        self.check_folder(name)?;
        let name = plain(name);
        if self.below(&name).next().is_some() {
            return Err(error(libc::ENOTEMPTY));
        }
        self.change(Change::Unlink(name));
        Ok(())
    }

    pub(crate) fn remove_tree(&mut self, name: &Path) -> io::Result<()> {
        self.check_folder(name)?;
        let name = plain(name);
        // Those below come after it, and are removed first.
        let all: Vec<_> = self.names.keys().rev().filter(|below| below.starts_with(&name)).cloned().collect();
        all.into_iter().for_each(|name| self.change(Change::Unlink(name)));
        Ok(())
    }

    /// Returns the names in a directory.
    pub(crate) fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        self.check_folder(folder)?;
        let folder = plain(folder);
        let first = |rest: &Path| rest.components().next().map(|name| name.as_os_str().to_owned());
        let mut names: Vec<_> = self.below(&folder).filter_map(first).collect();
        names.dedup();
        Ok(names)
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        check_name(from).and(check_name(to))?;
        let (from, to) = (plain(from), plain(to));
        match (self.find(&from), self.find(&to)) {
            (None, _) if !self.is_folder(&from) => return Err(error(libc::ENOENT)),
            _ if from == to => return Ok(()),
            (None, _) if to.starts_with(&from) => return Err(error(libc::EINVAL)),
            (None, Some(_)) => return Err(error(libc::ENOTDIR)),
            (Some(_), _) if self.is_folder(&to) => return Err(error(libc::EISDIR)),
            (None, None) if self.below(&to).next().is_some() => return Err(error(libc::ENOTEMPTY)),
            _ => {}
        }
        self.change(Change::Rename(from, to));
        Ok(())
    }

    pub(crate) fn hard_link(&mut self, original: &Path, link: &Path) -> io::Result<()> {
        check_name(original).and(check_name(link))?;
        let file = self.find(original);
        if file.is_none() && self.is_folder(original) {
            return Err(error(libc::EPERM));
        }
        let file = file.ok_or_else(|| error(libc::ENOENT))?;
        if self.find(link).is_some() || self.is_folder(link) {
            return Err(error(libc::EEXIST));
        }
        self.change(Change::Link(plain(link), file));
        Ok(())
    }

    pub(crate) fn remove(&mut self, name: &Path) -> io::Result<()> {
        check_name(name)?;
        match self.find(name) {
            Some(_) => self.change(Change::Unlink(plain(name))),
            None => return Err(error(if self.is_folder(name) { libc::EISDIR } else { libc::ENOENT })),
        }
        Ok(())
    }
}
