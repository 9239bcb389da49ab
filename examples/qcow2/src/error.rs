//! Constructors for errors about images.

use std::fmt::Display;
use std::io;

/// Creates an error for metadata that is invalid.
pub(crate) fn damaged(what: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

/// Creates an error for a valid image that needs an unsupported feature.
pub(crate) fn unsupported(what: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what.to_string())
}

/// Creates an error for an invalid argument.
pub(crate) fn invalid(what: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.to_string())
}

/// Creates an error for a write to a read-only image.
pub(crate) fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the image is open read-only: open it for writing")
}

/// Prefixes an error with its subject.
pub(crate) fn about<T>(what: impl Display, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}

/// Rejects a range that extends beyond the end of the disk.
pub(crate) fn within(offset: u64, len: u64, size: u64) -> io::Result<()> {
    if offset.checked_add(len).is_some_and(|end| end <= size) {
        return Ok(());
    }
    Err(invalid(format!("{len} bytes at {offset} reach beyond the end of the disk, which has {size} bytes")))
}
