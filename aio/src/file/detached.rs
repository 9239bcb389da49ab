//! Moving a file between contexts: the descriptor moves, and uses the engine of the new context.

use std::cell::OnceCell;
use std::io;
use std::os::fd::OwnedFd;

use super::handle::Handle;
use super::options::Opened;
use super::{File, served_here};

/// A file between two contexts. Dropping it closes the file.
///
/// ```
/// use coralio::File;
/// use coralio::fs::DetachedFile;
/// use std::thread;
///
/// # fn main() -> std::io::Result<()> {
/// let file: DetachedFile = coralio::run(|| File::open("Cargo.toml").map(File::detach))?;
/// let reader = thread::spawn(|| coralio::run(|| file.attach()?.read_at(&mut [0; 4096], 0)));
/// assert!(reader.join().unwrap()? > 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DetachedFile {
    fd: OwnedFd,
    cached: OnceCell<OwnedFd>,
    may_cache: bool,
}

impl File {
    /// Takes the file out of its context, to be used in another thread's. Ownership of the file
    /// implies that none of its requests is in flight.
    ///
    /// # Panics
    ///
    /// If the file is simulated: such a file belongs to its simulation.
    pub fn detach(self) -> DetachedFile {
        let cached = self.cached.into_inner().map(Handle::into_fd).map(OnceCell::from).unwrap_or_default();
        DetachedFile { fd: self.fd.into_fd(), cached, may_cache: self.may_cache }
    }
}

impl DetachedFile {
    /// Makes it a file of this thread's context, on that context's engine.
    ///
    /// # Errors
    ///
    /// As [`File::from_fd`]. The file is then closed.
    ///
    /// # Panics
    ///
    /// Outside a context.
    pub fn attach(self) -> io::Result<File> {
        let file = File::new(Opened::new(self.fd)?, self.may_cache, served_here)?;
        let cached = self.cached.into_inner().map(|fd| Handle::real(&file.engine, fd, file.route.table(false, false)));
        Ok(File { cached: cached.map(OnceCell::from).unwrap_or_default(), ..file })
    }
}
