//! The format of records, and the scan that finds them.
//!
//! ```text
//!   checksum  length  number   payload              the checksum covers everything from `length`
//!   4 bytes   4       8        length               little-endian
//! ```
//!
//! Records follow each other, each padded with zeros to a multiple of 16 bytes, so that no header
//! crosses a block boundary. A batch starts at a block boundary and is padded with zeros to the
//! next. Record numbers increase by one, so a leftover of earlier content is not taken for the next
//! record. The first incomplete record ends the log: a torn tail.

use std::io;

use coralio::AlignedBuf;

/// Batches start and end at block boundaries, which every disk accepts.
pub const BLOCK: u64 = 4096;

/// Checksum, length and number.
const HEADER: usize = 16;

/// The maximum payload; a record fits into the window of the scan.
pub const LONGEST: usize = 64 << 10;

/// Bytes per read; each record fits completely after at most one further read.
const WINDOW: usize = 1 << 20;

/// Returns the size of a record with this payload.
pub fn size(payload: usize) -> usize {
    (HEADER + payload).next_multiple_of(HEADER)
}

/// Writes a record to the start of `room`. Returns its size.
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

/// The decoded start of a byte sequence.
enum Found<'a> {
    Record(&'a [u8]),
    /// Zeros up to the end of the block.
    Padding,
    /// Not the start of a record, or an incomplete record.
    Torn,
    /// The record continues beyond these bytes.
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

/// The result of a scan: the complete records, and what follows them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    /// Number of complete records, numbered from 0.
    pub records: u64,
    /// The end of the last record, in bytes.
    pub end: u64,
    /// The records are followed by data other than zeros.
    pub torn: bool,
}

impl Scan {
    /// Rejects a nonempty file without records: truncating it would destroy a file of another
    /// program.
    pub fn check_foreign(&self) -> io::Result<()> {
        if self.records > 0 || !self.torn {
            return Ok(());
        }
        let why = "is not a log, or its first record is incomplete; choose another file, or remove this one";
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }
}

/// Reads records from the start to the first incomplete one, and passes each payload to `see`.
/// `read` is a positioned read that fills its buffer unless the file ends.
///
/// # Errors
///
/// The errors of `read`.
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
            // At a block boundary, padding means that no batch follows.
            Found::Padding if at > 0 && at.is_multiple_of(BLOCK) => return Ok(found),
            // Either an empty file, or a file of another kind that begins with zeros.
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
