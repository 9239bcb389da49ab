//! Validates the table of internal snapshots. This crate does not use the table, but rejects a
//! malformed one.

use std::io;

use coralio::{AlignedBuf, File};

use super::header::{Header, SNAPSHOT_LEN, be16, be32};
use super::top::{PAGE, read_padded};
use crate::error::damaged;

/// Limits of other implementations: bytes of the whole table, and of an entry's extra data.
const MAX_BYTES: u64 = 64 << 20;
const MAX_EXTRA: u64 = 1024;

/// Bytes that are read at a time.
const WINDOW: usize = 64 << 10;

/// Checks that the entries are within the file, and within the limits of other implementations.
pub(crate) fn check(file: &File, header: &Header) -> io::Result<()> {
    if header.snapshots == 0 {
        return Ok(());
    }
    let len = file.len()?;
    let mut window = AlignedBuf::new(WINDOW, PAGE);
    // File offset of the window; nothing has been read yet.
    let mut start = u64::MAX;
    let mut at = header.snapshots_offset;
    for number in 1..=header.snapshots {
        if at.checked_add(SNAPSHOT_LEN).is_none_or(|end| end > len) {
            return Err(damaged(format!(
                "the entry of snapshot {number}, at {at:#x}, lies beyond the end of the file"
            )));
        }
        if at < start || at + SNAPSHOT_LEN > start + WINDOW as u64 {
            start = at & !511;
            read_padded(file, &mut window, start)?;
        }
        let entry = &window[(at - start) as usize..][..SNAPSHOT_LEN as usize];
        let (id, name, extra) = (be16(entry, 12), be16(entry, 14), u64::from(be32(entry, 36)));
        if extra > MAX_EXTRA {
            return Err(damaged(format!(
                "the entry of snapshot {number} has {extra} bytes of extra data; the limit is {MAX_EXTRA}"
            )));
        }
        at += (SNAPSHOT_LEN + extra + u64::from(id) + u64::from(name)).next_multiple_of(8);
        if at - header.snapshots_offset > MAX_BYTES {
            return Err(damaged(format!("its snapshot table exceeds {MAX_BYTES} bytes")));
        }
    }
    Ok(())
}
