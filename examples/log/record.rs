//! What a record looks like in the file, and how they are found again.
//!
//! ```text
//!   checksum  length  number   payload              of all from `length` on
//!   4 bytes   4       8        length               little-endian
//! ```
//!
//! Records follow each other, each filled up with zeros to a multiple of 16 bytes, so that no header lies across two blocks. A
//! batch begins with a block and is filled up with zeros to the next. Numbers go up by one, so what is left of another time
//! is not taken for the next record. The first that is not whole ends the log: a torn tail.

use std::io;

use coralio_aio::AlignedBuf;

/// Batches begin and end on a block's border: what every disk takes.
pub const BLOCK: u64 = 4096;

/// Checksum, length, number.
const HEADER: usize = 16;

/// The longest payload: a record fits the window of the scan.
pub const LONGEST: usize = 64 << 10;

/// What is read at once; each record is in it as a whole after at most one more read.
const WINDOW: usize = 1 << 20;

/// Bytes that a record with this payload takes.
pub fn size(payload: usize) -> usize {
    (HEADER + payload).next_multiple_of(HEADER)
}

/// Writes a record to the start of `room`, and returns how long it is.
pub fn encode(room: &mut [u8], number: u64, payload: &[u8]) -> usize {
    let record = &mut room[..size(payload.len())];
    record[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    record[8..16].copy_from_slice(&number.to_le_bytes());
    let (body, rest) = record[HEADER..].split_at_mut(payload.len());
    body.copy_from_slice(payload);
    rest.fill(0);
    let checksum = crc32fast::hash(&record[4..HEADER + payload.len()]);
    record[..4].copy_from_slice(&checksum.to_le_bytes());
    record.len()
}

/// What is at the start of some bytes.
enum Found<'a> {
    Record(&'a [u8]),
    /// Zeros, to the end of the block.
    Padding,
    /// What no record begins with, or one that is not whole.
    Torn,
    /// It goes on beyond these bytes.
    More,
}

fn decode(bytes: &[u8], number: u64) -> Found<'_> {
    let Some(header) = bytes.get(..HEADER) else {
        return if bytes.is_empty() { Found::More } else { Found::Torn };
    };
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let len = word(4) as usize;
    if header.iter().all(|byte| *byte == 0) {
        return Found::Padding;
    }
    if len == 0 || len > LONGEST || header[8..] != number.to_le_bytes() {
        return Found::Torn;
    }
    let Some(record) = bytes.get(..size(len)) else { return Found::More };
    let record = &record[..HEADER + len];
    if crc32fast::hash(&record[4..]) == word(0) { Found::Record(&record[HEADER..]) } else { Found::Torn }
}

/// What a scan has found: a log of whole records, and what comes behind it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    /// Whole records, numbered from 0.
    pub records: u64,
    /// Where the last of them ends, in bytes.
    pub end: u64,
    /// Behind that is something that is neither zeros nor a record.
    pub torn: bool,
}

impl Scan {
    /// Refuses what has no record and is not empty: to cut that off would destroy somebody's file.
    pub fn check_foreign(&self) -> io::Result<()> {
        if self.records > 0 || !self.torn {
            return Ok(());
        }
        let why = "is no log, or one whose first record was never whole; give another file, or remove this one";
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }
}

/// Reads records from the start until there is none, and shows each payload to `see`. `read` is a positioned read that fills
/// its buffer unless the file ends.
///
/// # Errors
///
/// What `read` says.
pub fn scan(mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>, mut see: impl FnMut(&[u8])) -> io::Result<Scan> {
    let mut window = AlignedBuf::new(WINDOW, BLOCK as usize);
    let (mut start, mut filled) = (0, read(&mut window, 0)?);
    let (mut found, mut at) = (Scan::default(), 0);
    loop {
        match decode(&window[((at - start) as usize).min(filled)..filled], found.records) {
            Found::Record(payload) => {
                see(payload);
                at += size(payload.len()) as u64;
                found.records += 1;
                found.end = at;
            }
            // A batch begins here, or nothing.
            Found::Padding if at > 0 && at.is_multiple_of(BLOCK) => return Ok(found),
            // Nothing at all, or a file of another kind that begins with zeros.
            Found::Padding if at == 0 => {
                while window[..filled].iter().all(|byte| *byte == 0) {
                    if filled < WINDOW {
                        return Ok(found);
                    }
                    start += filled as u64;
                    filled = read(&mut window, start)?;
                }
                return Ok(Scan { torn: true, ..found });
            }
            Found::Padding => at = at.next_multiple_of(BLOCK),
            Found::Torn => return Ok(Scan { torn: true, ..found }),
            Found::More if filled < WINDOW => return Ok(Scan { torn: at - start < filled as u64, ..found }),
            Found::More => {
                start = at - at % BLOCK;
                filled = read(&mut window, start)?;
            }
        }
    }
}
