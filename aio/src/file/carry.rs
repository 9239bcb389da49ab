//! A file from one context to another: the descriptor moves, and is used by the engine that is there.

use std::cell::OnceCell;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use super::File;
use crate::any::AnyEngine;

/// A file on its way to another context. Dropping it closes the file.
#[derive(Debug)]
pub struct DetachedFile {
    fd: OwnedFd,
    cached: OnceCell<OwnedFd>,
    may_cache: bool,
}

impl File {
    /// Takes the file out of its context, to be used in another thread's. Nobody else has it, so none of its requests is out.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn detach(self) -> DetachedFile {
        DetachedFile { fd: self.fd, cached: self.cached, may_cache: self.may_cache }
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
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn attach(self) -> io::Result<File> {
        let file = File::new(fs::File::from(self.fd), self.may_cache, AnyEngine::of_this_context)?;
        Ok(File { cached: self.cached, ..file })
    }
}
