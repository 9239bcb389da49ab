//! The file of a Unix socket: made, taken over from a server that is dead, and removed; never another file.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

/// The file of a socket that this process listens on. Removed when dropped, unless another file has taken its place.
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// Listens on a new socket at `path`. Replaces a socket there on which no process listens.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if a process uses the socket at `path`; `AlreadyExists` if `path` is no socket; what the system says.
    pub fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => replace(path)?,
            bound => bound?,
        };
        let file = fs::symlink_metadata(path)?;
        Ok((listener, SocketFile { path: path.into(), device: file.dev(), inode: file.ino() }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn is(&self, file: &Metadata) -> bool {
        (file.dev(), file.ino()) == (self.device, self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| self.is(&file)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Replaces the dead socket at `path`.
fn replace(path: &Path) -> io::Result<UnixListener> {
    // Another server may do the same: without the lock, one of both would remove the socket that the other has just made.
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let _lock = lock(folder)?;
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            let why = "the file is no socket and is left as it is; remove it, or name another path";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        Ok(_) if is_dead(path)? => fs::remove_file(path)?,
        Ok(_) => {
            let why = "another process uses the socket; end that process, or name another path";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        // Removed since.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    UnixListener::bind(path)
}

/// Whether no process has the socket at `path`. A datagram socket cannot connect to a listener, so that no listener notices
/// the attempt; and unlike a stream it never waits until the listener has room.
fn is_dead(path: &Path) -> io::Result<bool> {
    match UnixDatagram::unbound()?.connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        // EPROTOTYPE: there is a socket of another type.
        _ => Ok(false),
    }
}

/// Locks a folder among the servers that use it, until the file is dropped.
fn lock(folder: &Path) -> io::Result<File> {
    let folder = File::open(folder)?;
    // SAFETY: takes no pointers; the descriptor is open.
    match unsafe { libc::flock(folder.as_raw_fd(), libc::LOCK_EX) } {
        0 => Ok(folder),
        _ => Err(io::Error::last_os_error()),
    }
}
