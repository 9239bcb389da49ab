//! Further handles of an open file: for coroutines of this context, and for code outside.

use std::cell::OnceCell;
use std::fs;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coralio_runtime::CoMutex;

use super::File;
use super::handle::Handle;

impl File {
    /// Returns another handle of the same open file, as `dup`: with the same options, and the same
    /// [lock](File::lock). Within a context an `Rc<File>` serves as well and needs no descriptor.
    ///
    /// # Errors
    ///
    /// The kernel's error. `NotConnected`: the file belongs to another context.
    pub fn try_clone(&self) -> io::Result<File> {
        self.check_context(|| "duplicating a file's handle".into())?;
        let fd = match self.fd.as_simulated() {
            Some(simulated) => simulated.duplicate(self.direct),
            None => Handle::real(&self.engine, self.fd.as_fd().try_clone_to_owned()?, self.fd.ways.clone()),
        };
        Ok(File {
            fd,
            cached: OnceCell::new(),
            engine: Arc::clone(&self.engine),
            route: self.route.duplicate(),
            order: Rc::clone(&self.order),
            opening_cached: CoMutex::new(()),
            ..*self
        })
    }

    /// Returns a `std` file for calls outside this library. It is never direct, whatever this file
    /// is, so that any memory, offset and length will do. Its calls block the thread: make them in
    /// [`unblock`](crate::unblock). While it writes, this file should not: direct and page-cached
    /// writes at the same time can fail a later sync (see [`File`]).
    ///
    /// # Errors
    ///
    /// The kernel's error; and as [`unblock`](crate::unblock). `NotConnected`: the file belongs to
    /// another context. `Unsupported`: the file is [simulated](mod@crate::simulate).
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`](crate::unblock).
    pub fn to_std(&self) -> io::Result<fs::File> {
        self.check_context(|| "creating a handle for other code".into())?;
        if self.fd.as_simulated().is_some() {
            let why = "a simulated file has no descriptor: use File's own calls";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let fd = match self.direct {
            true => self.reopen("reopening the file through /proc for other code, without O_DIRECT")?,
            false => self.fd.as_fd().try_clone_to_owned()?,
        };
        Ok(fd.into())
    }
}
