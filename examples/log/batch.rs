//! Batches of records, and where they go in the file. Shared by both implementations, so that the
//! comparison covers waiting, waking and I/O.

use std::io;

use coralio::AlignedBuf;

use crate::record::{BLOCK, Scan, encode, size};

/// The file's length grows in steps of this size, so that few syncs must also write a new length.
const STEP: u64 = 16 << 20;

/// Records on their way to the file, in one aligned buffer.
pub struct Batch {
    buffer: AlignedBuf,
    len: usize,
}

impl Batch {
    /// Creates an empty batch with room for one record of at most `payload` bytes per writer; no
    /// writer has two at a time.
    pub fn new(writers: usize, payload: usize) -> Batch {
        let room = (writers * size(payload)).next_multiple_of(BLOCK as usize);
        Batch { buffer: AlignedBuf::new(room, BLOCK as usize), len: 0 }
    }

    /// Adds a record.
    pub fn push(&mut self, number: u64, payload: &[u8]) {
        self.len += encode(&mut self.buffer[self.len..], number, payload);
    }

    /// Empties the batch. Returns the bytes to write: whole blocks.
    fn take(&mut self) -> &[u8] {
        let used = std::mem::take(&mut self.len);
        let padded = used.next_multiple_of(BLOCK as usize);
        // The buffer contains data of an earlier batch.
        self.buffer[used..padded].fill(0);
        &self.buffer[..padded]
    }
}

/// The place of the next batch.
#[derive(Clone, Copy)]
pub struct End {
    /// The end of the log, to which the file is truncated when it is closed.
    pub offset: u64,
    /// The length of the file.
    len: u64,
}

impl End {
    /// Returns the end of a log that continues after the records that a scan has found.
    pub fn after(found: &Scan) -> End {
        End { offset: found.end.next_multiple_of(BLOCK), len: found.end }
    }

    /// Writes a batch, extending the file if it must grow, and empties it. The caller syncs.
    pub fn write(
        &mut self,
        batch: &mut Batch,
        set_len: impl FnOnce(u64) -> io::Result<()>,
        write: impl FnOnce(&[u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let (bytes, offset) = (batch.take(), self.offset);
        self.offset += bytes.len() as u64;
        if self.offset > self.len {
            self.len = self.offset.next_multiple_of(STEP);
            set_len(self.len)?;
        }
        write(bytes, offset)
    }
}

/// The error of a log that a second writer opens: the two would overwrite each other's records.
pub fn busy() -> io::Error {
    let why = "another writer has this log open; stop that program, or choose another file";
    io::Error::new(io::ErrorKind::ResourceBusy, why)
}

/// The error of a log that cannot be locked.
pub fn cannot_lock(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot lock the log against a second writer: {error}"))
}
