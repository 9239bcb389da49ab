//! The same log on threads: same records, same group commit, same file operations, with a `Mutex`
//! and two `Condvar`s in place of [`GroupCommit`](coralio::commit::GroupCommit).

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::mem;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::yield_now;

use crate::batch::{Batch, End, busy, cannot_lock};
use crate::record::{Scan, scan};

/// An open log, shared by threads.
pub struct Log {
    file: File,
    group: Mutex<Group>,
    /// One queue for the batch being written and one for the batch being filled, alternating.
    queues: [Condvar; 2],
}

/// The state protected by the log's lock.
struct Group {
    filling: Batch,
    /// The number of the batch being filled.
    batch: u64,
    /// Batches before this one are durable.
    durable: u64,
    next_record: u64,
    /// `None` while a leader writes.
    idle: Option<(Batch, End)>,
    is_led: bool,
    failed: Option<(io::ErrorKind, String)>,
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
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => busy(),
            TryLockError::Error(error) => cannot_lock(&error),
        })?;
        let found = scan(|buf, offset| file.read_at(buf, offset), |_| ())?;
        found.check_foreign()?;
        file.set_len(found.end)?;
        file.sync_all()?;
        let group = Group {
            filling: Batch::new(writers, payload),
            batch: 0,
            durable: 0,
            next_record: found.records,
            idle: Some((Batch::new(writers, payload), End::after(&found))),
            is_led: false,
            failed: None,
        };
        Ok((Log { file, group: Mutex::new(group), queues: [Condvar::new(), Condvar::new()] }, found))
    }

    fn lock(&self) -> MutexGuard<'_, Group> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As `append` on coroutines.
    pub fn append(&self, payload: &[u8]) -> io::Result<u64> {
        let mut group = self.lock();
        let (number, batch) = (group.next_record, group.batch);
        group.next_record += 1;
        group.filling.push(number, payload);
        loop {
            if batch < group.durable {
                return Ok(number);
            }
            if let Some((kind, message)) = &group.failed {
                return Err(io::Error::new(*kind, message.clone()));
            }
            if group.is_led {
                group = self.queues[(batch % 2) as usize].wait(group).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            group.is_led = true;
            drop(group);
            yield_now();
            self.lead();
            group = self.lock();
        }
    }

    /// Writes and syncs the batch being filled.
    fn lead(&self) {
        let mut group = self.lock();
        let (spare, mut end) = group.idle.take().expect("one thread writes at a time");
        let mut batch = mem::replace(&mut group.filling, spare);
        let number = group.batch;
        group.batch += 1;
        drop(group);
        let written = end.write(&mut batch, |len| self.file.set_len(len), |buf, at| self.file.write_all_at(buf, at));
        let result = written.and_then(|()| self.file.sync_data()).map_err(with_remedy);
        let mut group = self.lock();
        group.idle = Some((batch, end));
        group.is_led = false;
        let [queue, next] = [number, number + 1].map(|number| &self.queues[(number % 2) as usize]);
        match result {
            Ok(()) => {
                group.durable = number + 1;
                next.notify_one();
            }
            Err(error) => {
                group.failed = Some((error.kind(), format!("the log accepts no more records: {error}")));
                next.notify_all();
            }
        }
        queue.notify_all();
    }

    /// As `close` on coroutines.
    pub fn close(self) -> io::Result<u64> {
        let group = self.group.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (_, end) = group.idle.expect("no thread writes any more");
        self.file.set_len(end.offset)?;
        self.file.sync_all()?;
        Ok(group.durable)
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
