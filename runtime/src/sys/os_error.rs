//! System errors with an explanation (rule E14).
//!
//! An [`io::Error`] has either the system's code or a custom text, never both:
//! [`io::Error::raw_os_error`] returns `None` for an error made from a text. Errors made here keep
//! the text, with the system's error as source, since users of `?` or a `main` that returns
//! `io::Result<()>` see the text, and since `kind` is enough for most programs. A separate error
//! type would have both, but every function that returns `io::Result`, and `std::io::Read` and
//! `Write`, would still lose the code. Programs that need the code call [`OsCode::os_code`].

use std::error::Error;
use std::fmt;
use std::io;

/// The system's code (`errno`) of an [`io::Error`], whether or not it has an explanation.
///
/// ```
/// use coralio::task::OsCode;
/// use std::io;
///
/// let plain = io::Error::from_raw_os_error(28); // ENOSPC
/// assert_eq!(plain.os_code(), Some(28));
/// let explained = io::Error::new(plain.kind(), plain);
/// assert_eq!((explained.raw_os_error(), explained.os_code()), (None, Some(28)));
/// ```
pub trait OsCode {
    /// Returns the code of the first system error in the chain of sources, this error included.
    /// `None` if there is none.
    fn os_code(&self) -> Option<i32>;
}

impl OsCode for io::Error {
    fn os_code(&self) -> Option<i32> {
        if let Some(code) = self.raw_os_error() {
            return Some(code);
        }
        let mut next = self.get_ref().map(|inner| inner as &(dyn Error + 'static));
        while let Some(error) = next {
            // Its own `source` would skip the error that it contains.
            if let Some(code) = error.downcast_ref::<io::Error>().map(OsCode::os_code) {
                return code;
            }
            next = error.source();
        }
        None
    }
}

/// A custom text for a system error, which is its source.
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

/// Creates an error of this kind and text; [`OsCode::os_code`] returns the code of `cause` for it.
#[doc(hidden)]
pub fn explained(kind: io::ErrorKind, text: impl Into<String>, cause: io::Error) -> io::Error {
    io::Error::new(kind, Explained { text: text.into(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_code_survives_every_wrapping() {
        // E14: the code survives a text of ours, twice, and a foreign wrapper; without a code there
        // is none.
        let plain = || io::Error::from_raw_os_error(libc::EIO);
        let ours = explained(io::ErrorKind::Other, "outer", explained(plain().kind(), "inner", plain()));
        assert_eq!((ours.os_code(), ours.to_string()), (Some(libc::EIO), "outer".into()));
        assert_eq!(io::Error::other(ours).os_code(), Some(libc::EIO));
        assert_eq!(io::Error::other("text").os_code(), None);
        assert_eq!(explained(io::ErrorKind::Other, "text", io::Error::other("text")).os_code(), None);
    }
}
