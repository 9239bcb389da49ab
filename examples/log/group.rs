//! The state machine of group commit, without waiting: it decides which writer leads and which
//! queue a writer waits in. Both implementations run it under their own lock type, so that the
//! comparison covers waiting, waking and I/O.
//!
//! ```text
//!   batch n      filling  ->  taken by a leader  ->  written, synced  ->  durable, its writers wake
//!   batch n+1                 filling ........................ one of its writers leads ->
//! ```

use std::fs;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;

use coralio::AlignedBuf;

use crate::record::{BLOCK, Scan, encode, size};

/// The file's length grows in steps of this size, so that few syncs must also write a new length.
const STEP: u64 = 16 << 20;

/// Locks a log until its file is closed, because two writers would overwrite each other's records.
///
/// # Errors
///
/// `ResourceBusy` if another program, or this one, has the log open for writing elsewhere.
pub fn lock(file: BorrowedFd<'_>) -> io::Result<()> {
    // The lock belongs to the open file description, which the duplicate shares.
    match fs::File::from(file.try_clone_to_owned()?).try_lock() {
        Ok(()) => Ok(()),
        Err(fs::TryLockError::WouldBlock) => {
            let why = "another writer has this log open; stop that program, or choose another file";
            Err(io::Error::new(io::ErrorKind::ResourceBusy, why))
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(io::Error::new(error.kind(), format!("cannot lock the log against a second writer: {error}")))
        }
    }
}

/// Records on their way to the file, in one aligned buffer.
pub struct Batch {
    buffer: AlignedBuf,
    len: usize,
    number: u64,
    /// The offset in the file.
    pub offset: u64,
    /// The length to set before writing, if the file must grow.
    pub grow_to: Option<u64>,
}

impl Batch {
    /// Returns the bytes to write: whole blocks.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len.next_multiple_of(BLOCK as usize)]
    }
}

/// Identifies a record and its batch.
#[derive(Clone, Copy)]
pub struct Ticket {
    batch: u64,
    /// The record's number in the log.
    pub number: u64,
}

/// The next step of a writer.
pub enum Turn {
    /// Its record is on stable storage.
    Durable,
    /// Its record will never be.
    Failed(io::Error),
    /// No batch is being written: this writer writes the next one on behalf of all its members.
    Lead,
    /// Wait in this one of the two queues.
    Wait(usize),
}

/// The state protected by the log's lock.
pub struct Group {
    filling: Batch,
    spare: Option<Batch>,
    writing: bool,
    /// Batches before this one are durable.
    durable: u64,
    next_record: u64,
    end: u64,
    len: u64,
    failed: Option<(io::ErrorKind, String)>,
}

impl Group {
    /// Creates the state of a log that continues after the records that a scan has found. A batch
    /// has room for one record of at most `payload` bytes per writer; no writer has two at a time.
    pub fn new(found: &Scan, writers: usize, payload: usize) -> Group {
        let batch = |number| Batch {
            buffer: AlignedBuf::new((writers * size(payload)).next_multiple_of(BLOCK as usize), BLOCK as usize),
            len: 0,
            number,
            offset: 0,
            grow_to: None,
        };
        Group {
            filling: batch(0),
            spare: Some(batch(1)),
            writing: false,
            durable: 0,
            next_record: found.records,
            end: found.end.next_multiple_of(BLOCK),
            len: found.end,
            failed: None,
        }
    }

    /// Adds a record to the batch being filled.
    pub fn push(&mut self, payload: &[u8]) -> Ticket {
        let Batch { buffer, len, number: batch, .. } = &mut self.filling;
        let ticket = Ticket { batch: *batch, number: self.next_record };
        *len += encode(&mut buffer[*len..], ticket.number, payload);
        self.next_record += 1;
        ticket
    }

    pub fn turn(&mut self, ticket: Ticket) -> Turn {
        if ticket.batch < self.durable {
            return Turn::Durable;
        }
        if let Some((kind, message)) = &self.failed {
            return Turn::Failed(io::Error::new(*kind, message.clone()));
        }
        if self.writing {
            return Turn::Wait((ticket.batch % 2) as usize);
        }
        self.writing = true;
        Turn::Lead
    }

    /// Takes the batch for the leader to write. Further records go to the next batch.
    pub fn take(&mut self) -> Batch {
        let mut next = self.spare.take().expect("one coroutine writes at a time");
        next.len = 0;
        next.number = self.filling.number + 1;
        let mut batch = mem::replace(&mut self.filling, next);
        batch.offset = self.end;
        let used = batch.len;
        let padded = batch.bytes().len();
        // The buffer contains data of an earlier batch.
        batch.buffer[used..padded].fill(0);
        self.end += padded as u64;
        batch.grow_to = (self.end > self.len).then(|| self.end.next_multiple_of(STEP));
        self.len = batch.grow_to.unwrap_or(self.len);
        batch
    }

    /// Marks the batch durable, or the log permanently failed. Returns the queue of the batch's
    /// writers; a writer from the other queue leads next.
    pub fn finish(&mut self, batch: Batch, result: io::Result<()>) -> usize {
        self.writing = false;
        let queue = (batch.number % 2) as usize;
        match result {
            Ok(()) => self.durable = batch.number + 1,
            Err(error) => self.failed = Some((error.kind(), format!("the log accepts no more records: {error}"))),
        }
        self.spare = Some(batch);
        queue
    }

    /// Returns whether the log has permanently failed.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Returns the number of batches, which is also the number of syncs.
    pub fn batches(&self) -> u64 {
        self.filling.number
    }

    /// Returns the end of the log, to which the file is truncated.
    pub fn end(&self) -> u64 {
        self.end
    }
}
