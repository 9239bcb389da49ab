//! The same log on threads: same records, same group commit, same file operations, with a `Mutex`
//! and two `Condvar`s instead of the `CoMutex` and two `CoQueue`s of `coroutines.rs`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::yield_now;

use crate::group::{Batch, Group, Turn, lock};
use crate::record::{Scan, scan};

/// An open log, shared by threads.
pub struct Log {
    file: File,
    group: Mutex<Group>,
    queues: [Condvar; 2],
}

impl Log {
    /// As `open` on coroutines; also uses direct I/O.
    pub fn open(path: &Path, writers: usize, payload: usize) -> io::Result<(Log, Scan)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = match options.clone().custom_flags(libc::O_DIRECT).open(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => options.open(path)?,
            opened => opened?,
        };
        lock(file.as_fd())?;
        let found = scan(|buf, offset| file.read_at(buf, offset), |_| ())?;
        found.check_foreign()?;
        file.set_len(found.end)?;
        file.sync_all()?;
        let group = Mutex::new(Group::new(&found, writers, payload));
        Ok((Log { file, group, queues: [Condvar::new(), Condvar::new()] }, found))
    }

    fn lock(&self) -> MutexGuard<'_, Group> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As `append` on coroutines.
    pub fn append(&self, payload: &[u8]) -> io::Result<u64> {
        let mut group = self.lock();
        let ticket = group.push(payload);
        loop {
            match group.turn(ticket) {
                Turn::Durable => return Ok(ticket.number),
                Turn::Failed(error) => return Err(error),
                Turn::Wait(queue) => group = self.queues[queue].wait(group).unwrap_or_else(PoisonError::into_inner),
                Turn::Lead => {
                    drop(group);
                    yield_now();
                    let batch = self.lock().take();
                    let written = self.write(&batch).map_err(with_remedy);
                    group = self.lock();
                    let queue = group.finish(batch, written);
                    self.queues[queue].notify_all();
                    if group.has_failed() {
                        self.queues[1 - queue].notify_all();
                    } else {
                        self.queues[1 - queue].notify_one();
                    }
                }
            }
        }
    }

    fn write(&self, batch: &Batch) -> io::Result<()> {
        if let Some(len) = batch.grow_to {
            self.file.set_len(len)?;
        }
        self.file.write_all_at(batch.bytes(), batch.offset)?;
        self.file.sync_data()
    }

    /// As `close` on coroutines.
    pub fn close(self) -> io::Result<u64> {
        let group = self.group.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.file.set_len(group.end())?;
        self.file.sync_all()?;
        Ok(group.batches())
    }
}

/// Adds the remedy, as `coralio::File` does.
fn with_remedy(error: io::Error) -> io::Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull => "; free some space",
        io::ErrorKind::FileTooLarge => "; raise the file-size limit (ulimit -f)",
        _ => "",
    };
    io::Error::new(error.kind(), format!("{error}{remedy}"))
}
