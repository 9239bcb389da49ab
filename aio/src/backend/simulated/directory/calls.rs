//! Operations on names and ranges that take several steps.

use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use super::tree::check_name;
use super::{FileSystem, error, plain};

impl FileSystem {
    pub(crate) fn create_folders(&mut self, name: &Path) -> io::Result<()> {
        // As `std::fs::create_dir_all`, which takes an empty name for the current directory.
        let mut above: Vec<_> = name.ancestors().filter(|name| !name.as_os_str().is_empty()).collect();
        above.reverse();
        above.into_iter().try_for_each(|name| match self.create_folder(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && self.is_folder(name) => Ok(()),
            done => done,
        })
    }

    pub(crate) fn exists(&self, name: &Path) -> io::Result<bool> {
        match check_name(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            checked => checked.map(|()| self.find(name).is_some() || self.is_folder(name)),
        }
    }

    pub(crate) fn canonicalize(&self, name: &Path) -> io::Result<PathBuf> {
        if self.exists(name)? { Ok(plain(name)) } else { Err(error(libc::ENOENT)) }
    }

    /// Returns the offset of the next data or hole.
    pub(crate) fn next_range(&mut self, fd: RawFd, offset: u64, data: bool) -> io::Result<Option<u64>> {
        self.usable(fd, false).map(|file| file.next_range(offset, data))
    }

    /// As `copy_file_range`, for any length.
    pub(crate) fn copy(
        &mut self,
        from: RawFd,
        from_offset: u64,
        to: RawFd,
        to_offset: u64,
        len: u64,
    ) -> io::Result<u64> {
        let (source, target) = (self.opened(from)?, self.opened(to)?);
        if !source.access.read || target.access.append {
            return Err(error(libc::EBADF));
        }
        if source.file == target.file && from_offset.abs_diff(to_offset) < len {
            return Err(error(libc::EINVAL));
        }
        let bytes = self.usable(from, false)?.read(from_offset, len as usize);
        let at = self.tick();
        self.usable(to, true)?.write(at, to_offset, &bytes);
        Ok(bytes.len() as u64)
    }
}
