//! The file of a Unix socket: created, taken over from a dead server, and removed; other files are
//! never touched.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

/// The file of a socket that this process listens on. Removed when dropped, unless another file has
/// replaced it.
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// Listens on a new socket at `path`. Replaces an existing socket that no process uses.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if a process uses the socket at `path`; `AlreadyExists` if `path` is not a
    /// socket; system errors.
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
    // Serializes servers that do the same: one could remove the socket that the other has just
    // created.
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let _lock = lock(folder)?;
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => {
            let why = "the file is not a socket; remove it, or choose another path";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        Ok(_) if is_dead(path)? => fs::remove_file(path)?,
        Ok(_) => {
            let why = "another process uses the socket; stop that process, or choose another path";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
        // Removed in the meantime.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    UnixListener::bind(path)
}

/// Returns whether no process uses the socket at `path`. Connecting a datagram socket to a stream
/// listener fails, so the listener does not notice the attempt; and unlike a stream connect it
/// never waits for room in the backlog.
fn is_dead(path: &Path) -> io::Result<bool> {
    match UnixDatagram::unbound()?.connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        // EPROTOTYPE: a socket of another type is bound there.
        _ => Ok(false),
    }
}

/// Locks a directory against other servers until the returned file is dropped.
fn lock(folder: &Path) -> io::Result<File> {
    let folder = File::open(folder)?;
    // SAFETY: takes no pointers; the descriptor is open.
    match unsafe { libc::flock(folder.as_raw_fd(), libc::LOCK_EX) } {
        0 => Ok(folder),
        _ => Err(io::Error::last_os_error()),
    }
}
