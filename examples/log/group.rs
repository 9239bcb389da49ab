//! Group commit, without the waiting: who leads, who waits for what. Both sides run this under their own kind of lock, so
//! what they are compared in is the waiting, the waking and the I/O.
//!
//! ```text
//!   batch n      filling  ->  one leads: taken  ->  written, synced  ->  durable, all of it wake
//!   batch n+1                 filling ........................ one of it leads ->
//! ```

use std::fs;
use std::io;
use std::mem;
use std::os::fd::BorrowedFd;

use coralio_aio::AlignedBuf;

use crate::record::{BLOCK, Scan, encode, size};

/// The file's length goes up by this much at a time, so that few syncs have a new length to write.
const STEP: u64 = 16 << 20;

/// Locks a log until its file is closed: two writers would write over each other's records.
///
/// # Errors
///
/// `ResourceBusy` if another program, or another part of this one, has the log open for writing.
pub fn lock(file: BorrowedFd<'_>) -> io::Result<()> {
    // The lock belongs to the open file, which the duplicate shares.
    match fs::File::from(file.try_clone_to_owned()?).try_lock() {
        Ok(()) => Ok(()),
        Err(fs::TryLockError::WouldBlock) => {
            let why = "another writer has this log open; end that program, or give another file";
            Err(io::Error::new(io::ErrorKind::ResourceBusy, why))
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(io::Error::new(error.kind(), format!("cannot lock it against a second writer: {error}")))
        }
    }
}

/// Records on their way to the file, in one aligned piece.
pub struct Batch {
    buffer: AlignedBuf,
    len: usize,
    number: u64,
    /// Where it goes.
    pub offset: u64,
    /// The length that the file is to have before.
    pub grow_to: Option<u64>,
}

impl Batch {
    /// What is to be written: whole blocks.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len.next_multiple_of(BLOCK as usize)]
    }
}

/// A record's place in a batch.
#[derive(Clone, Copy)]
pub struct Ticket {
    batch: u64,
    /// The record's number in the log.
    pub number: u64,
}

/// What the owner of a ticket does next.
pub enum Turn {
    /// Its record is on the medium.
    Durable,
    /// It never will be.
    Failed(io::Error),
    /// Nobody writes: it does, for all of its batch.
    Lead,
    /// It waits in this one of the two queues.
    Wait(usize),
}

/// The state that the lock is around.
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
    /// Goes on behind what a scan has found. A batch has room for one record, at most so long, of each writer: none has two.
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

    /// Puts a record into the batch that is filling.
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

    /// What the leader writes. From here on the next batch fills.
    pub fn take(&mut self) -> Batch {
        let mut next = self.spare.take().expect("one writes at a time");
        next.len = 0;
        next.number = self.filling.number + 1;
        let mut batch = mem::replace(&mut self.filling, next);
        batch.offset = self.end;
        let used = batch.len;
        let padded = batch.bytes().len();
        // The buffer has been used before.
        batch.buffer[used..padded].fill(0);
        self.end += padded as u64;
        batch.grow_to = (self.end > self.len).then(|| self.end.next_multiple_of(STEP));
        self.len = batch.grow_to.unwrap_or(self.len);
        batch
    }

    /// The batch is durable, or the log has failed for good. Returns the queue of those who waited for it; one of the other
    /// leads next.
    pub fn finish(&mut self, batch: Batch, result: io::Result<()>) -> usize {
        self.writing = false;
        let queue = (batch.number % 2) as usize;
        match result {
            Ok(()) => self.durable = batch.number + 1,
            Err(error) => self.failed = Some((error.kind(), format!("the log takes no more: {error}"))),
        }
        self.spare = Some(batch);
        queue
    }

    /// Whether no record will get in any more.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// How many batches were begun: as many syncs.
    pub fn batches(&self) -> u64 {
        self.filling.number
    }

    /// Where the log ends, for the file's length.
    pub fn end(&self) -> u64 {
        self.end
    }
}
