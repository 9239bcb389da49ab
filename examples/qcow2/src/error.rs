//! What is wrong with an image, in words.

use std::fmt::Display;
use std::io;

/// The image's own tables are wrong.
pub(crate) fn damaged(what: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

/// The image is fine, but this program does not do what it asks for.
pub(crate) fn unsupported(what: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what.to_string())
}

/// The caller asks for what cannot be.
pub(crate) fn invalid(what: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.to_string())
}

/// The image is open for reading only.
pub(crate) fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the image is open for reading only: open it for writing")
}

/// Puts what it was about before an error.
pub(crate) fn about<T>(what: impl Display, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}

/// Refuses what reaches beyond the disk's end.
pub(crate) fn within(offset: u64, len: u64, size: u64) -> io::Result<()> {
    if offset.checked_add(len).is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(invalid(format!("{len} bytes at {offset} reach beyond the end of the disk, which has {size}")))
}
