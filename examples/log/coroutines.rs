//! The log on coroutines: [`GroupCommit`] has the waiting and waking, [`End::write`] the format.

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use coralio::commit::GroupCommit;
use coralio::{File, timeout};

use crate::batch::{Batch, End, busy, cannot_lock};
use crate::record::{Scan, scan};

type Commit = Box<dyn FnMut(&mut Batch) -> io::Result<()>>;

/// An open log, shared by coroutines.
pub struct Log {
    file: Rc<File>,
    group: GroupCommit<Batch, Commit>,
    /// The number of the next record.
    next: Cell<u64>,
    end: Rc<Cell<End>>,
}

impl Log {
    /// Opens or creates a log and locks it; finds its end and truncates a torn tail.
    pub fn open(path: &Path, writers: usize, payload: usize) -> io::Result<(Log, Scan)> {
        let file = Rc::new(File::options().read(true).write(true).create(true).open(path)?);
        // The requests of a process that was killed keep its lock for a moment.
        timeout(Duration::from_secs(1), || file.lock())
            .unwrap_or_else(|_| Err(busy()))
            .map_err(|error| cannot_lock(&error))?;
        let found = scan(|buf, offset| file.read_at(buf, offset), |_| ())?;
        found.check_foreign()?;
        // Truncate to the byte, so that the rest of the last block reads as zeros.
        file.set_len(found.end)?;
        file.sync_all()?;
        let end = Rc::new(Cell::new(End::after(&found)));
        let commit: Commit = Box::new({
            let (file, end) = (Rc::clone(&file), Rc::clone(&end));
            move |batch| {
                let mut place = end.get();
                let written = place.write(batch, |len| file.set_len(len), |buf, at| file.write_at(buf, at).map(drop));
                end.set(place);
                written.and_then(|()| file.sync_data())
            }
        });
        let group = GroupCommit::with_batches([(); 2].map(|()| Batch::new(writers, payload)), commit);
        Ok((Log { file, group, next: Cell::new(found.records), end }, found))
    }

    /// Appends a record. Returns its number when the record is on stable storage.
    pub fn append(&self, payload: &[u8]) -> io::Result<u64> {
        self.group.append(|batch| {
            let number = self.next.replace(self.next.get() + 1);
            batch.push(number, payload);
            number
        })
    }

    /// Truncates the file to the length of the log. Returns the number of syncs.
    pub fn close(self) -> io::Result<u64> {
        self.file.set_len(self.end.get().offset)?;
        self.file.sync_all()?;
        Ok(self.group.commits())
    }
}
