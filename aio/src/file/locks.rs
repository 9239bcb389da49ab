//! Locks between processes, and between open files of one (`flock`).
//!
//! A lock that is not free is tried again after a sleep: a thread that waits in `flock` could not be
//! stopped when the coroutine is cancelled or its context ends.

use std::fmt;
use std::io;
use std::time::Duration;

use coralio_runtime::{shield, sleep};
use rustix::fs::{FlockOperation, flock};

use super::File;

/// The sleeps before a lock is tried again: each is twice as long as the one before it.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(64);

/// Why a lock was not acquired immediately, as `std::fs::TryLockError` (Rust 1.89).
#[derive(Debug)]
pub enum TryLockError {
    /// The file could not be locked, for another reason than a lock of another handle.
    Error(io::Error),
    /// Another handle of the file holds a lock that excludes this one.
    WouldBlock,
}

impl fmt::Display for TryLockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TryLockError::Error(error) => error.fmt(f),
            TryLockError::WouldBlock => f.write_str("the file is locked through another handle: wait with File::lock"),
        }
    }
}

impl std::error::Error for TryLockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            TryLockError::Error(error) => Some(error),
            TryLockError::WouldBlock => None,
        }
    }
}

impl From<TryLockError> for io::Error {
    fn from(error: TryLockError) -> io::Error {
        match error {
            TryLockError::Error(error) => error,
            TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        }
    }
}

impl File {
    /// Waits until no other handle holds a lock on the file, and locks it until [`unlock`](File::unlock)
    /// or until this handle and its [duplicates](File::try_clone) are closed.
    ///
    /// A lock is advisory: it excludes only other locks, of this process or of others. A handle has
    /// at most one lock; locking again converts it, and another handle may get its lock in between.
    /// Waiters have no order. A lock that is not free is tried again after 1, 2, 4 and up to 64
    /// milliseconds, so the wait may end up to 64 milliseconds after the other lock was released.
    ///
    /// # Errors
    ///
    /// The kernel's error, and `Cancelled`; the file may then have lost a shared lock that was to be
    /// converted. `NotConnected`: the file belongs to another context. `Unsupported`: the file is
    /// [simulated](mod@crate::simulate).
    ///
    /// # Control
    ///
    /// May yield. On the thread's own stack, may enter.
    #[doc(alias = "flock")]
    pub fn lock(&self) -> io::Result<()> {
        self.wait_for_lock(FlockOperation::NonBlockingLockExclusive)
    }

    /// As [`lock`](File::lock), but excludes only exclusive locks.
    ///
    /// ```
    /// use coralio::File;
    /// use coralio::fs::TryLockError;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("coralio-lock-shared-doc-{}", std::process::id()));
    /// coralio::run(|| {
    ///     let open = || File::options().write(true).create(true).open(&path);
    ///     let (first, second, writer) = (open()?, open()?, open()?);
    ///     first.lock_shared()?;
    ///     second.try_lock_shared()?;
    ///     assert!(matches!(writer.try_lock(), Err(TryLockError::WouldBlock)));
    ///     first.unlock()?;
    ///     second.unlock()?;
    ///     writer.try_lock()?;
    ///     # std::fs::remove_file(&path)?;
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`lock`](File::lock).
    ///
    /// # Control
    ///
    /// As [`lock`](File::lock).
    pub fn lock_shared(&self) -> io::Result<()> {
        self.wait_for_lock(FlockOperation::NonBlockingLockShared)
    }

    /// Locks the file as [`lock`](File::lock), if no other handle holds a lock.
    ///
    /// ```
    /// use coralio::File;
    /// use coralio::fs::TryLockError;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("coralio-lock-doc-{}", std::process::id()));
    /// coralio::run(|| {
    ///     let open = || File::options().write(true).create(true).open(&path);
    ///     let (first, second) = (open()?, open()?);
    ///     first.try_lock()?;
    ///     assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
    ///     drop(first);
    ///     second.try_lock()?;
    ///     # std::fs::remove_file(&path)?;
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`TryLockError::WouldBlock`]: another handle holds a lock. Otherwise as [`lock`](File::lock).
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`](crate::unblock).
    pub fn try_lock(&self) -> Result<(), TryLockError> {
        self.flock(FlockOperation::NonBlockingLockExclusive)
    }

    /// Locks the file as [`lock_shared`](File::lock_shared), if no other handle holds an exclusive
    /// lock.
    ///
    /// # Errors
    ///
    /// As [`try_lock`](File::try_lock).
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`](crate::unblock).
    pub fn try_lock_shared(&self) -> Result<(), TryLockError> {
        self.flock(FlockOperation::NonBlockingLockShared)
    }

    /// Releases the lock, if there is one.
    ///
    /// # Errors
    ///
    /// As [`lock`](File::lock).
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`](crate::unblock).
    pub fn unlock(&self) -> io::Result<()> {
        // A cancelled coroutine must be able to release its lock.
        Ok(shield(|| self.flock(FlockOperation::NonBlockingUnlock))?)
    }

    fn wait_for_lock(&self, operation: FlockOperation) -> io::Result<()> {
        let mut pause = SHORTEST;
        loop {
            match self.flock(operation) {
                Err(TryLockError::WouldBlock) => sleep(pause)?,
                done => return Ok(done?),
            }
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Never waits on a local file system; others may ask a server, on a thread.
    fn flock(&self, operation: FlockOperation) -> Result<(), TryLockError> {
        let what = if operation == FlockOperation::NonBlockingUnlock { "unlocking a file" } else { "locking a file" };
        if self.fd.as_simulated().is_some() {
            self.check_context(|| what.into()).map_err(TryLockError::Error)?;
            let why = format!("{what}: a simulated file has no locks, since no other process has it open");
            return Err(TryLockError::Error(io::Error::new(io::ErrorKind::Unsupported, why)));
        }
        let lock = move |file: &std::fs::File| match flock(file, operation) {
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            done => done.map(|()| true).map_err(io::Error::from),
        };
        match self.stat(|| what.into(), lock) {
            Ok(true) => Ok(()),
            Ok(false) => Err(TryLockError::WouldBlock),
            Err(error) => Err(TryLockError::Error(error)),
        }
    }
}
