//! Records: the unit of the log, and the format of a snapshot.
//!
//! ```text
//!   checksum    length of key    length of value    key    value
//!   4 bytes     4 bytes          8 bytes
//! ```
//!
//! Records are not numbered. Suppose that a crash leaves a torn record and an intact one after it:
//! if a new record of the same size overwrites the torn one, the stale record after it becomes
//! valid again. Recovery therefore truncates the log.

const HEADER: usize = 16;

/// Appends a record to `into`.
pub fn encode(into: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let start = into.len();
    into.extend([0; 4]);
    into.extend(u32::try_from(key.len()).expect("a key is shorter than 4 GiB").to_le_bytes());
    into.extend((value.len() as u64).to_le_bytes());
    into.extend(key);
    into.extend(value);
    let checksum = crc32fast::hash(&into[start + 4..]);
    into[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// Splits off the record at the start of `bytes`. Returns key, value and the rest; `None` if there is
/// no valid record. `checks`: whether to compare the checksum.
pub fn decode(bytes: &[u8], checks: bool) -> Option<(&[u8], &[u8], &[u8])> {
    let (header, body) = bytes.split_at_checked(HEADER)?;
    let [checksum, key_len] = [0, 4].map(|at| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes")));
    let value_len = u64::from_le_bytes(header[8..].try_into().expect("8 bytes"));
    let (key, rest) = body.split_at_checked(key_len as usize)?;
    let (value, rest) = rest.split_at_checked(value_len as usize)?;
    let checked = &bytes[4..bytes.len() - rest.len()];
    (!checks || crc32fast::hash(checked) == checksum).then_some((key, value, rest))
}
