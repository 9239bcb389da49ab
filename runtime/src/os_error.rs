//! System errors with an explanation (rule E14).
//!
//! An [`io::Error`] has either the system's code or a text of its own, never both: [`io::Error::raw_os_error`] is `None` for one that
//! was made from a text. Here the text is kept, with the system's error as its source, since the text is what a user sees who writes
//! `?` or `fn main() -> io::Result<()>`, and since `kind` answers most questions that programs ask. An error type of our own would have
//! both, but every function that returns `io::Result`, and `std::io::Read` and `Write`, would lose the code all the same. Programs that
//! need the code ask for it by [`OsCode::os_code`].

use std::error::Error;
use std::fmt;
use std::io;

/// The system's code (`errno`) of an [`io::Error`], whether or not it has an explanation.
///
/// ```
/// use coralio_runtime::OsCode;
/// use std::io;
///
/// let plain = io::Error::from_raw_os_error(28); // ENOSPC
/// assert_eq!(plain.os_code(), Some(28));
/// let explained = io::Error::new(plain.kind(), plain);
/// assert_eq!((explained.raw_os_error(), explained.os_code()), (None, Some(28)));
/// ```
pub trait OsCode {
    /// Returns the code of the system's error: this one, or the first among its sources. `None` if none of them is the system's.
    fn os_code(&self) -> Option<i32>;
}

impl OsCode for io::Error {
    fn os_code(&self) -> Option<i32> {
        if let Some(code) = self.raw_os_error() {
            return Some(code);
        }
        let mut next = self.get_ref().map(|inner| inner as &(dyn Error + 'static));
        while let Some(error) = next {
            // Its own `source` would pass over the error that it contains.
            if let Some(code) = error.downcast_ref::<io::Error>().map(OsCode::os_code) {
                return code;
            }
            next = error.source();
        }
        None
    }
}

/// A text in place of a system error's own, which is its source.
#[derive(Debug)]
struct Explained {
    text: String,
    cause: io::Error,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Explained {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.cause)
    }
}

/// Creates an error of this kind and text, from which [`OsCode::os_code`] returns the code of `cause`.
#[doc(hidden)]
pub fn explained(kind: io::ErrorKind, text: impl Into<String>, cause: io::Error) -> io::Error {
    io::Error::new(kind, Explained { text: text.into(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_survives_every_wrapping() {
        // E14: a text of ours, twice; a foreign wrapper; and none where there was none.
        let plain = || io::Error::from_raw_os_error(libc::EIO);
        let ours = explained(io::ErrorKind::Other, "outer", explained(plain().kind(), "inner", plain()));
        assert_eq!((ours.os_code(), ours.to_string()), (Some(libc::EIO), "outer".into()));
        assert_eq!(io::Error::other(ours).os_code(), Some(libc::EIO));
        assert_eq!(io::Error::other("text").os_code(), None);
        assert_eq!(explained(io::ErrorKind::Other, "text", io::Error::other("text")).os_code(), None);
    }
}
