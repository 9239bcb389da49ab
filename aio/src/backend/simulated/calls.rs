//! Operations on names and ranges, which block the thread on Linux. They take no time here.

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use super::SimulatedBackend;

impl SimulatedBackend {
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.machine().files.rename(from, to)
    }

    pub(crate) fn hard_link(&self, original: &Path, link: &Path) -> io::Result<()> {
        self.machine().files.hard_link(original, link)
    }

    pub(crate) fn remove(&self, name: &Path) -> io::Result<()> {
        self.machine().files.remove(name)
    }

    pub(crate) fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.machine().files.sync_folder(folder);
        Ok(())
    }

    pub(crate) fn create_folder(&self, name: &Path) -> io::Result<()> {
        self.machine().files.create_folder(name)
    }

    pub(crate) fn create_folders(&self, name: &Path) -> io::Result<()> {
        let mut machine = self.machine();
        let mut above: Vec<_> = name.ancestors().collect();
        above.reverse();
        above.into_iter().try_for_each(|name| match machine.files.create_folder(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && machine.files.is_folder(name) => Ok(()),
            done => done,
        })
    }

    pub(crate) fn remove_folder(&self, name: &Path) -> io::Result<()> {
        self.machine().files.remove_folder(name)
    }

    pub(crate) fn remove_tree(&self, name: &Path) -> io::Result<()> {
        self.machine().files.remove_tree(name)
    }

    pub(crate) fn exists(&self, name: &Path) -> bool {
        let files = &self.machine().files;
        files.find(name).is_some() || files.is_folder(name)
    }

    pub(crate) fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        self.machine().files.list(folder)
    }

    pub(crate) fn canonicalize(&self, name: &Path) -> io::Result<PathBuf> {
        let plain = super::directory::plain(name);
        if self.exists(&plain) { Ok(plain) } else { Err(io::Error::from_raw_os_error(libc::ENOENT)) }
    }

    /// Opens the open file of the descriptor `fd` by another descriptor.
    pub(crate) fn duplicate(&self, fd: RawFd) -> RawFd {
        self.machine().files.duplicate(fd)
    }

    /// Returns the offset of the next data or hole.
    pub(crate) fn next_range(&self, fd: RawFd, offset: u64, data: bool) -> io::Result<Option<u64>> {
        self.machine().files.usable(fd, false).map(|file| file.next_range(offset, data))
    }

    /// As `copy_file_range`, for any length.
    pub(crate) fn copy(&self, from: RawFd, from_offset: u64, to: RawFd, to_offset: u64, len: u64) -> io::Result<u64> {
        let mut machine = self.machine();
        let files = &mut machine.files;
        let (source, target) = (files.opened(from)?, files.opened(to)?);
        if !source.access.read || target.access.append {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        if source.file == target.file && from_offset.abs_diff(to_offset) < len {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let bytes = files.usable(from, false)?.read(from_offset, len as usize);
        let at = machine.tick();
        machine.files.usable(to, true)?.write(at, to_offset, &bytes);
        Ok(bytes.len() as u64)
    }
}
