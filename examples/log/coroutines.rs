//! The log on coroutines; `append` is the complete algorithm.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use coralio::sync::{CoMutex, CoQueue};
use coralio::{File, yield_now};

use crate::group::{Batch, Group, Turn, lock};
use crate::record::{Scan, scan};

/// An open log, shared by coroutines.
pub struct Log {
    file: File,
    group: CoMutex<Group>,
    /// One queue for the batch being written and one for the batch being filled, alternating.
    queues: [CoQueue; 2],
}

impl Log {
    /// Opens or creates a log and locks it; finds its end and truncates a torn tail.
    pub fn open(path: &Path, writers: usize, payload: usize) -> io::Result<(Log, Scan)> {
        let file = File::options().read(true).write(true).create(true).open(path)?;
        lock(file.as_fd())?;
        let found = scan(|buf, offset| file.read_at(buf, offset), |_| ())?;
        found.check_foreign()?;
        // Truncate to the byte, so that the rest of the last block reads as zeros.
        file.set_len(found.end)?;
        file.sync_all()?;
        let group = CoMutex::new(Group::new(&found, writers, payload));
        Ok((Log { file, group, queues: [CoQueue::new(), CoQueue::new()] }, found))
    }

    /// Appends a record. Returns its number when the record is on stable storage.
    pub fn append(&self, payload: &[u8]) -> io::Result<u64> {
        let mut group = self.group.lock();
        let ticket = group.push(payload);
        loop {
            match group.turn(ticket) {
                Turn::Durable => return Ok(ticket.number),
                Turn::Failed(error) => return Err(error),
                Turn::Wait(queue) => group = self.queues[queue].wait(group),
                Turn::Lead => {
                    drop(group);
                    // All runnable writers add their records to the batch first.
                    yield_now();
                    let batch = self.group.lock().take();
                    let written = self.write(&batch);
                    group = self.group.lock();
                    let queue = group.finish(batch, written);
                    self.queues[queue].wake_all();
                    if group.has_failed() {
                        self.queues[1 - queue].wake_all();
                    } else {
                        self.queues[1 - queue].wake_one();
                    }
                }
            }
        }
    }

    fn write(&self, batch: &Batch) -> io::Result<()> {
        if let Some(len) = batch.grow_to {
            self.file.set_len(len)?;
        }
        self.file.write_at(batch.bytes(), batch.offset)?;
        self.file.sync_data()
    }

    /// Truncates the file to the length of the log. Returns the number of syncs.
    pub fn close(self) -> io::Result<u64> {
        let group = self.group.into_inner();
        self.file.set_len(group.end())?;
        self.file.sync_all()?;
        Ok(group.batches())
    }
}
