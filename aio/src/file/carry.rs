//! A file from one context to another: the descriptor moves, and is used by the engine that is
//! there.

use std::cell::OnceCell;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use super::File;
use super::handle::Handle;
use crate::any::AnyEngine;

/// A file on its way to another context. Dropping it closes the file.
#[derive(Debug)]
pub struct DetachedFile {
    fd: OwnedFd,
    cached: OnceCell<OwnedFd>,
    may_cache: bool,
}

impl File {
    /// Takes the file out of its context, to be used in another thread's. Nobody else has it, so
    /// none of its requests is out.
    ///
    /// # Panics
    ///
    /// If the file is a simulated one, which belongs to its run.
    pub fn detach(self) -> DetachedFile {
        let cached = self.cached.into_inner().map(Handle::into_fd).map(OnceCell::from).unwrap_or_default();
        DetachedFile { fd: self.fd.into_fd(), cached, may_cache: self.may_cache }
    }
}

impl DetachedFile {
    /// Makes it a file of this thread's context, on the engine that this one has.
    ///
    /// # Errors
    ///
    /// As [`File::from_fd`]. The file is closed then.
    ///
    /// # Panics
    ///
    /// Outside a context.
    pub fn attach(self) -> io::Result<File> {
        let file = File::new(fs::File::from(self.fd), self.may_cache, AnyEngine::of_this_context)?;
        let cached =
            self.cached.into_inner().map(|fd| Handle::real(&file.engine, fd)).map(OnceCell::from).unwrap_or_default();
        Ok(File { cached, ..file })
    }
}
